#!/bin/bash
# The embedded benchmark: PRUNER=flowcut:budget=64 LIMIT=200 bash scripts/v1_5/eval/embedded.sh
set -euo pipefail
MODEL=${MODEL:-playground/embedded}
CONV_MODE=${CONV_MODE-} # the checkpoint says it itself
source "$(dirname "$0")/common.sh"

DATA=${DATA:-playground/data/embedded}
[ -f "$DATA/answers.jsonl" ] || "$PYTHON" -m scripts.embedded.data --out "$DATA" --split test
answer "$DATA/questions.jsonl" "$DATA/images" "$DATA/answers" --max_new_tokens 8
"$PYTHON" -m llava.eval.benchmarks.embedded --data "$DATA" --answers-file "$MERGED"
