#!/usr/bin/env bash
# 2. The language model, on symbolic scenes. Independent of step 1: run both at once with OMP_NUM_THREADS=1.
source "$(dirname "$0")/common.sh"
$PYTHON -m scripts.embedded.pretrain_language --out "$RUNS/language" "$@"
