#!/usr/bin/env bash
# 8. What training with pruned tokens does (the shape of the paper's Table 6): stage 2 goes on for STEPS steps from the
# model that ships, with all tokens and with FlowCut and FlowCut+ at 192 and 128, on the same fresh scenes; then the
# cells of what comes out, into results/trained_<tokens>/ and results/trained_plus_<tokens>/. Resumable.
source "$(dirname "$0")/common.sh"
STEPS=${STEPS:-40}
LIMIT=${LIMIT:-250}
[ -e "$RUNS/more/finetune.json" ] ||
    $PYTHON -m scripts.embedded.data --split train --first 6400 --scenes $((8 * STEPS)) --out "$RUNS/more"
for pruner in none flowcut:budget=192 flowcut:budget=128 flowcut_plus:budget=192 flowcut_plus:budget=128; do
    tokens=${pruner##*=}
    tokens=${tokens/none/576}
    run=trained_$tokens
    [[ $pruner == flowcut_plus:* ]] && run=trained_plus_$tokens
    [ -e "$RUNS/$run/trainer_state.json" ] ||
        $PYTHON -m llava.train.train --model_name_or_path playground/embedded --version v1 --pruner "$pruner" \
            --data_path "$RUNS/more/finetune.json" --image_folder "$RUNS/more/images" --image_aspect_ratio pad \
            --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 \
            --mm_use_im_start_end False --mm_use_im_patch_token False \
            --bf16 False --use_cpu True \
            --output_dir "$RUNS/$run" --num_train_epochs 1 --per_device_train_batch_size 8 \
            --save_strategy steps --save_steps 50 --save_total_limit 1 --learning_rate 2e-4 --weight_decay 0. \
            --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 10 --model_max_length 2048 \
            --dataloader_num_workers 0
    $PYTHON -m scripts.tables.cell --model-path "$RUNS/$run" --pruner "$pruner" --limit "$LIMIT" \
        --out "results/$run"
done
$PYTHON -m scripts.embedded.training_record --runs "$RUNS" --out results/embedded/training.json
