#!/bin/bash
# finetune.sh with LoRA of rank 64 in place of the language model's own weights.
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-${MODEL_VERSION:-vicuna-v1-3-7b}-finetune_lora}
exec bash "$(dirname "$0")/finetune.sh" --lora_enable True "$@"
