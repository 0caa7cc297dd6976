#!/bin/bash
# finetune.sh with LoRA in place of the language model's own weights, the tower frozen. Not published for LLaVA-1.6:
# rank, scale and learning rates are those of LLaVA-1.5's finetune_lora.sh.
export TRAIN_TOWER=False
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.6-vicuna-7b-lora}
export LEARNING_RATE=${LEARNING_RATE:-2e-4}
exec bash "$(dirname "$0")/finetune.sh" --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 "$@"
