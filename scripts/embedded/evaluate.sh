#!/usr/bin/env bash
# 7. The committed cells: blind, unpruned, three methods at four budgets. Two processes of one thread each, side by side,
# which on two cores takes half as long as one of two threads. Resumable; LIMIT=n for fewer questions.
export OMP_NUM_THREADS=1
source "$(dirname "$0")/common.sh"
LIMIT=${LIMIT:-1000}
rows() { for method in "$@"; do for budget in 192 128 64 32; do echo --pruner "$method:budget=$budget"; done; done; }
[ -e playground/data/embedded/answers.jsonl ] || $PYTHON -m scripts.embedded.data --out playground/data/embedded
# shellcheck disable=SC2046 # the rows are words
$PYTHON -m scripts.tables.cell --limit "$LIMIT" --out results --blind --pruner none $(rows random) &
$PYTHON -m scripts.tables.cell --limit "$LIMIT" --out results $(rows fastervlm flowcut)
wait
