#!/bin/bash
# A finished LLaVA-1.6 goes on to learn a task of yours: set DATA_PATH and IMAGE_FOLDER.
export MODEL=${MODEL:-liuhaotian/llava-v1.6-vicuna-7b} PROJECTOR=${PROJECTOR-}
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.6-vicuna-7b-task}
exec bash "$(dirname "$0")/finetune.sh" "$@"
