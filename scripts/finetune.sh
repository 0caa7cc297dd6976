#!/bin/bash
# Stage 2 of the first LLaVA (not 1.5: that is v1_5/), on 80k instructions about COCO pictures, after pretrain.sh.
# PROMPT_VERSION: v1 for Vicuna, llava_llama_2 for Llama-2-Chat. Names to override and shared flags: scripts/training.sh.
MODEL_VERSION=${MODEL_VERSION:-vicuna-v1-3-7b}
DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-./scripts/zero2.json}
MODEL=${MODEL:-./checkpoints/$MODEL_VERSION}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14}
PROJECTOR_TYPE=${PROJECTOR_TYPE:-linear}
PROJECTOR=${PROJECTOR-./checkpoints/llava-$MODEL_VERSION-pretrain/mm_projector.bin}
DATA_PATH=${DATA_PATH:-./playground/data/llava_instruct_80k.json}
IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data/coco/train2017}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-$MODEL_VERSION-finetune}
LEARNING_RATE=${LEARNING_RATE:-2e-5}
source "$(dirname "$0")/training.sh"

start --version "${PROMPT_VERSION:-v1}" "$@"
