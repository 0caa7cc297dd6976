#!/bin/bash
# Stage 1 of LLaVA-1.5: the projector learns to caption. Run from the repository's root. Every capital name below can be
# overridden by the environment; further flags are appended: `LEARNING_RATE=2e-3 scripts/v1_5/pretrain.sh --seed 1`.
set -euo pipefail

LAUNCHER=${LAUNCHER:-deepspeed}
DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-./scripts/zero2.json} # empty: no DeepSpeed, with LAUNCHER=python or torchrun
MODEL=${MODEL:-lmsys/vicuna-13b-v1.5}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
DATA_PATH=${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}
IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-pretrain}
BATCH_SIZE=${BATCH_SIZE:-32} # per device; 256 in all on 8 devices
LEARNING_RATE=${LEARNING_RATE:-1e-3}
WORKERS=${WORKERS:-4}
REPORT_TO=${REPORT_TO:-wandb}

$LAUNCHER llava/train/train_mem.py \
    ${DEEPSPEED_CONFIG:+--deepspeed "$DEEPSPEED_CONFIG"} \
    --model_name_or_path "$MODEL" \
    --version plain \
    --data_path "$DATA_PATH" \
    --image_folder "$IMAGE_FOLDER" \
    --vision_tower "$VISION_TOWER" \
    --mm_projector_type mlp2x_gelu \
    --tune_mm_mlp_adapter True \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --bf16 True \
    --output_dir "$OUTPUT_DIR" \
    --num_train_epochs 1 \
    --per_device_train_batch_size "$BATCH_SIZE" \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" \
    --save_strategy "steps" \
    --save_steps 24000 \
    --save_total_limit 1 \
    --learning_rate "$LEARNING_RATE" \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type "cosine" \
    --logging_steps 1 \
    --tf32 True \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers "$WORKERS" \
    --lazy_preprocess True \
    --report_to "$REPORT_TO" \
    "$@"
