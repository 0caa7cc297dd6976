#!/bin/bash
# finetune_task.sh with LoRA in place of the language model's own weights.
export MODEL=${MODEL:-liuhaotian/llava-v1.5-13b} PROJECTOR=${PROJECTOR-}
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-task-lora}
exec bash "$(dirname "$0")/finetune_lora.sh" "$@"
