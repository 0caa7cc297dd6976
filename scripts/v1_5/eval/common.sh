# Sourced by the scripts beside it: answers a question file with one process per visible device, and merges.
# Settings from the environment; every process continues what an earlier run left.
MODEL=${MODEL:-liuhaotian/llava-v1.5-7b}
PRUNER=${PRUNER-}            # flowcut:budget=64, ...; none; empty: the one the checkpoint was trained with, if any
BATCH=${BATCH:-1}            # questions at a time; answers do not depend on it
LIMIT=${LIMIT:-}             # ask so many questions only, spread evenly
CONV_MODE=${CONV_MODE-vicuna_v1}
PYTHON=${PYTHON:-python}

# answer QUESTION_FILE IMAGE_FOLDER ANSWERS_FOLDER [FLAG ...]: leaves the answers in $MERGED, in the questions' order.
answer() {
    local questions=$1 images=$2 folder devices index failed=0
    local named=${PRUNER:-as_trained}
    folder="$3/$(basename "$MODEL")/${named//[:=,]/_}${LIMIT:+_limit_$LIMIT}"
    shift 3
    IFS=',' read -ra devices <<< "${CUDA_VISIBLE_DEVICES:-0}"
    local chunks=${#devices[@]} workers=()
    mkdir -p "$folder"
    for index in "${!devices[@]}"; do
        CUDA_VISIBLE_DEVICES=${devices[$index]} "$PYTHON" -m llava.eval.model_vqa_loader \
            --model-path "$MODEL" ${PRUNER:+--pruner "$PRUNER"} --batch-size "$BATCH" --temperature 0 \
            ${CONV_MODE:+--conv-mode "$CONV_MODE"} ${LIMIT:+--limit "$LIMIT"} \
            --question-file "$questions" --image-folder "$images" \
            --answers-file "$folder/${chunks}_$index.jsonl" --num-chunks "$chunks" --chunk-idx "$index" "$@" &
        workers+=($!)
    done
    for index in "${!workers[@]}"; do
        wait "${workers[$index]}" || failed=1
    done
    [ "$failed" = 0 ] || { echo "error: not every question was answered; start again to go on" >&2; return 1; }
    MERGED=$folder/merge.jsonl
    for index in "${!devices[@]}"; do
        cat "$folder/${chunks}_$index.jsonl"
    done > "$MERGED"
}
