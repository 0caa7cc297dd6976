#!/usr/bin/env bash
# 6. The checkpoint that ships, playground/embedded, from the result of step 5.
source "$(dirname "$0")/common.sh"
$PYTHON -m scripts.embedded.export --model "$RUNS/finetune" "$@"
