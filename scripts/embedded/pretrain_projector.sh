#!/usr/bin/env bash
# 4. LLaVA's stage 1: only the projector learns, on captions, from an aligned start.
source "$(dirname "$0")/common.sh"
$PYTHON -m scripts.embedded.align_projector --tower "$RUNS/vision/tower" --facts "$RUNS/language/embed_facts.pt" \
    --out "$RUNS/aligned/mm_projector.bin"
$PYTHON -m llava.train.train \
    --model_name_or_path "$RUNS/language/language" --version plain \
    --data_path "$RUNS/data/pretrain.json" --image_folder "$RUNS/data/images" \
    --vision_tower "$RUNS/vision/tower" --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 \
    --mm_use_im_start_end False --mm_use_im_patch_token False \
    --tune_mm_mlp_adapter True --pretrain_mm_mlp_adapter "$RUNS/aligned/mm_projector.bin" \
    --bf16 True --use_cpu True --attn_implementation eager \
    --output_dir "$RUNS/pretrain" --max_steps 40 --per_device_train_batch_size 8 --save_strategy steps --save_steps 20 \
    --save_total_limit 1 --learning_rate 5e-4 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine \
    --logging_steps 10 --model_max_length 2048 --dataloader_num_workers 0 "$@"
