#!/bin/bash
# Stage 2 of LLaVA-1.6 (LLaVA-NeXT): tower, projector, newline token and language model learn from pictures in tiles.
# LLaVA-1.6's own training was never released. Grids, tile merging, the tower's learning rate and the length are those
# that its checkpoints remember; learning rate 1e-5 is that of LLaVA-NeXT's later finetune_clip.sh. The batch of 128 is
# LLaVA-1.5's, for the real one is not known. Its 760k samples were not released: the default is LLaVA-1.5's mixture.
MODEL=${MODEL:-lmsys/vicuna-7b-v1.5}
PROJECTOR=${PROJECTOR-./checkpoints/llava-v1.6-vicuna-7b-pretrain/mm_projector.bin}
DATA_PATH=${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}
IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.6-vicuna-7b}
GRIDS=${GRIDS:-"[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]"}
TRAIN_TOWER=${TRAIN_TOWER:-True}
BATCH_SIZE=${BATCH_SIZE:-4}
ACCUMULATION=${ACCUMULATION:-4} # 128 samples a step on 8 devices
LEARNING_RATE=${LEARNING_RATE:-1e-5}
MAX_LENGTH=${MAX_LENGTH:-4096}
source "$(dirname "$0")/../training.sh"

start --version v1 --image_aspect_ratio anyres --image_grid_pinpoints "$GRIDS" --mm_patch_merge_type spatial_unpad \
    --unfreeze_mm_vision_tower "$TRAIN_TOWER" --mm_vision_tower_lr 2e-6 --group_by_modality_length True "$@"
