#!/bin/bash
# LLaVA-NeXT-7B on VQAv2: the file for test-dev's server; SPLIT=val scores val2014 offline. Settings: see ../../v1_5/eval/common.sh.
MODEL=${MODEL:-liuhaotian/llava-v1.6-vicuna-7b}
source "$(dirname "$0")/../../v1_5/eval/common.sh"
benchmark vqav2 ${SPLIT:+--split "$SPLIT"} "$@"
