# Sourced by the scripts beside it and by those of v1_6, qwen2_vl and video. Settings come from the environment, further
# flags of the scripts go to `python -m llava.eval.launch` and win: bash scripts/v1_5/eval/gqa.sh --limit 200
# One process for each device in CUDA_VISIBLE_DEVICES; several nodes by SLURM's variables, or NNODES and NODE_RANK.
set -euo pipefail
MODEL=${MODEL:-liuhaotian/llava-v1.5-7b}
MODEL_BASE=${MODEL_BASE-}       # under a LoRA adapter or a projector
PRUNER=${PRUNER-}               # flowcut:budget=64, ...; none; empty: the one the checkpoint was trained with, if any
BATCH=${BATCH:-1}               # questions at a time; answers do not depend on it
LIMIT=${LIMIT-}                 # ask so many questions only, spread evenly
CONV_MODE=${CONV_MODE-vicuna_v1} # empty: the checkpoint's own
EVAL_ROOT=${EVAL_ROOT:-playground/data/eval}
PYTHON=${PYTHON:-python}

# benchmark NAME [FLAG ...]: check the files, answer, score. DRY=1 runs nothing: it lists every missing file and model
# with its source and size, and estimates the hours (SECONDS_PER_ANSWER=s sets the time of an answer).
benchmark() {
    "$PYTHON" -m llava.eval.launch "$1" --data "$EVAL_ROOT" --model-path "$MODEL" --batch-size "$BATCH" \
        ${MODEL_BASE:+--model-base "$MODEL_BASE"} ${PRUNER:+--pruner "$PRUNER"} ${LIMIT:+--limit "$LIMIT"} \
        ${CONV_MODE:+--conv-mode "$CONV_MODE"} ${DRY:+--dry-run} "${@:2}"
}
