#!/usr/bin/env bash
# 5. LLaVA's stage 2: projector and language model learn from questions, with all 576 tokens in place. The tower stays as
# it is, to save time; `--unfreeze_mm_vision_tower True --mm_vision_tower_lr 1e-4` trains it.
source "$(dirname "$0")/common.sh"
$PYTHON -m llava.train.train \
    --model_name_or_path "$RUNS/language/language" --version v1 \
    --data_path "$RUNS/data/finetune.json" --image_folder "$RUNS/data/images" --image_aspect_ratio pad \
    --vision_tower "$RUNS/vision/tower" --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 \
    --mm_use_im_start_end False --mm_use_im_patch_token False \
    --pretrain_mm_mlp_adapter "$RUNS/pretrain/mm_projector.bin" \
    --bf16 True --use_cpu True --attn_implementation eager \
    --output_dir "$RUNS/finetune" --num_train_epochs 1 --per_device_train_batch_size 8 --save_strategy steps \
    --save_steps 100 --save_total_limit 2 --learning_rate 6e-4 --weight_decay 0. --warmup_ratio 0.03 \
    --lr_scheduler_type cosine --logging_steps 10 --model_max_length 2048 --dataloader_num_workers 0 "$@"
