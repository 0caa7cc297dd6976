#!/bin/bash
# Stage 2 of LLaVA-1.5: projector and language model learn dialogues, after pretrain.sh. 128 samples a step on 8 devices.
# Names to override and shared flags: scripts/training.sh.
PROJECTOR=${PROJECTOR-./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin}
DATA_PATH=${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}
IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b}
LEARNING_RATE=${LEARNING_RATE:-2e-5}
source "$(dirname "$0")/../training.sh"

start --version v1 --image_aspect_ratio pad --group_by_modality_length True "$@"
