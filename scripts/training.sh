# Sourced by the training scripts: the names that the environment can override, and the flags that all of them share.
# Run the scripts from the repository's root. Flags after a script's name are appended, and win: a flag given twice
# counts the second time.
set -euo pipefail

LAUNCHER=${LAUNCHER:-deepspeed}                           # e.g. "torchrun --nproc_per_node 8", or python for one device
DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-./scripts/zero3.json} # empty: without DeepSpeed
PROGRAM=${PROGRAM:-llava/train/train_mem.py}
MODEL=${MODEL:-lmsys/vicuna-13b-v1.5}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
PROJECTOR_TYPE=${PROJECTOR_TYPE:-mlp2x_gelu}
PROJECTOR=${PROJECTOR-} # mm_projector.bin to start from; empty: a new one, or the checkpoint's own
PRUNER=${PRUNER-}       # such as flowcut:budget=192; empty: as the checkpoint that the run starts from remembers
BATCH_SIZE=${BATCH_SIZE:-16}      # per device
ACCUMULATION=${ACCUMULATION:-1}   # batches to an optimizer step
EPOCHS=${EPOCHS:-1}
MAX_LENGTH=${MAX_LENGTH:-2048}
SAVE_STEPS=${SAVE_STEPS:-50000}
WORKERS=${WORKERS:-4}
REPORT_TO=${REPORT_TO:-none} # or wandb, tensorboard, once installed

# start <flags>...: the run. DATA_PATH, IMAGE_FOLDER, OUTPUT_DIR and LEARNING_RATE are the script's to set.
# DRY=1 trains nothing: it names everything that is wrong with the flags and files at once, in one process, with the
# source and size of what is missing, and estimates the hours (SAMPLES_PER_SECOND=n sets the speed).
start() {
    if [[ -n ${DRY-} ]]; then
        LAUNCHER=${PYTHON:-python} DEEPSPEED_CONFIG=
        set -- --dry_run True "$@"
    fi
    # shellcheck disable=SC2086 # a launcher brings its own flags
    $LAUNCHER "$PROGRAM" \
        ${DEEPSPEED_CONFIG:+--deepspeed "$DEEPSPEED_CONFIG"} \
        --model_name_or_path "$MODEL" \
        --data_path "$DATA_PATH" \
        --image_folder "$IMAGE_FOLDER" \
        --vision_tower "$VISION_TOWER" \
        ${PROJECTOR:+--pretrain_mm_mlp_adapter "$PROJECTOR"} \
        ${PRUNER:+--pruner "$PRUNER"} \
        --mm_projector_type "$PROJECTOR_TYPE" \
        --mm_vision_select_layer -2 \
        --mm_use_im_start_end False \
        --mm_use_im_patch_token False \
        --bf16 True \
        --output_dir "$OUTPUT_DIR" \
        --num_train_epochs "$EPOCHS" \
        --per_device_train_batch_size "$BATCH_SIZE" \
        --per_device_eval_batch_size 4 \
        --gradient_accumulation_steps "$ACCUMULATION" \
        --evaluation_strategy "no" \
        --save_strategy "steps" \
        --save_steps "$SAVE_STEPS" \
        --save_total_limit 1 \
        --learning_rate "$LEARNING_RATE" \
        --weight_decay 0. \
        --warmup_ratio 0.03 \
        --lr_scheduler_type "cosine" \
        --logging_steps 1 \
        --tf32 True \
        --model_max_length "$MAX_LENGTH" \
        --gradient_checkpointing True \
        --dataloader_num_workers "$WORKERS" \
        --lazy_preprocess True \
        --report_to "$REPORT_TO" \
        "$@"
}
