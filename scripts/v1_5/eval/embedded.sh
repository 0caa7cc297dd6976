#!/bin/bash
# The embedded benchmark: PRUNER=flowcut:budget=64 LIMIT=200 bash scripts/v1_5/eval/embedded.sh. Settings: see common.sh.
MODEL=${MODEL:-playground/embedded}
CONV_MODE=${CONV_MODE-} # the checkpoint says it itself
EVAL_ROOT=${EVAL_ROOT:-playground/data}
source "$(dirname "$0")/common.sh"

[[ -n ${DRY-} || -f $EVAL_ROOT/embedded/answers.jsonl ]] || "$PYTHON" -m scripts.embedded.data --out "$EVAL_ROOT/embedded" --split test
benchmark embedded "$@"
