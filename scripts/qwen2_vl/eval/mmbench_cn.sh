#!/bin/bash
# Qwen2-VL-7B on MMBench, dev, in Chinese; circular. Settings: see ../../v1_5/eval/common.sh.
MODEL=${MODEL:-Qwen/Qwen2-VL-7B-Instruct}
CONV_MODE=${CONV_MODE-} # the model has a chat template of its own
source "$(dirname "$0")/../../v1_5/eval/common.sh"
benchmark mmbench_cn ${SPLIT:+--split "$SPLIT"} "$@"
