#!/bin/bash
# Stage 1 of the first LLaVA (not 1.5: that is v1_5/): a linear projector, 224 pixels. MODEL_VERSION names the language
# model's folder under ./checkpoints. Names to override and shared flags: scripts/training.sh.
MODEL_VERSION=${MODEL_VERSION:-vicuna-v1-3-7b}
DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-./scripts/zero2.json}
MODEL=${MODEL:-./checkpoints/$MODEL_VERSION}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14}
PROJECTOR_TYPE=${PROJECTOR_TYPE:-linear}
DATA_PATH=${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}
IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-$MODEL_VERSION-pretrain}
LEARNING_RATE=${LEARNING_RATE:-2e-3}
SAVE_STEPS=${SAVE_STEPS:-24000}
source "$(dirname "$0")/training.sh"

start --version "${PROMPT_VERSION:-plain}" --tune_mm_mlp_adapter True "$@"
