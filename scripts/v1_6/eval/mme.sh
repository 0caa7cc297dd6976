#!/bin/bash
# LLaVA-NeXT-7B on MME: perception + cognition. Settings: see ../../v1_5/eval/common.sh.
MODEL=${MODEL:-liuhaotian/llava-v1.6-vicuna-7b}
source "$(dirname "$0")/../../v1_5/eval/common.sh"
benchmark mme ${SPLIT:+--split "$SPLIT"} "$@"
