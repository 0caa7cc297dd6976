#!/bin/bash
# Stage 1 of LLaVA-1.5: the projector learns to caption. Names to override and shared flags: scripts/training.sh.
DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-./scripts/zero2.json}
DATA_PATH=${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}
IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-pretrain}
BATCH_SIZE=${BATCH_SIZE:-32} # 256 in all on 8 devices
LEARNING_RATE=${LEARNING_RATE:-1e-3}
SAVE_STEPS=${SAVE_STEPS:-24000}
source "$(dirname "$0")/../training.sh"

start --version plain --tune_mm_mlp_adapter True "$@"
