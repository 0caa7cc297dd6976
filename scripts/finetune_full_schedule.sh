#!/bin/bash
# finetune.sh as the first LLaVA was trained: three epochs of 158k instructions.
export EPOCHS=${EPOCHS:-3} DATA_PATH=${DATA_PATH:-./playground/data/llava_instruct_158k.json}
exec bash "$(dirname "$0")/finetune.sh" "$@"
