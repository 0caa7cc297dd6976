#!/usr/bin/env bash
# 7. The committed cells: blind, unpruned, every method at four budgets. Two processes of one thread each, side by side,
# which on two cores takes half as long as one of two threads. Resumable; LIMIT=n for fewer questions.
export OMP_NUM_THREADS=1
source "$(dirname "$0")/common.sh"
LIMIT=${LIMIT:-1000}
[ -e playground/data/embedded/answers.jsonl ] || $PYTHON -m scripts.embedded.data --out playground/data/embedded
cells() { $PYTHON -m scripts.tables.cell --limit "$LIMIT" --out results "$@"; }
# shellcheck disable=SC2046 # the rows are words
budget() { cells $($PYTHON -m scripts.embedded.rows "$1") "${@:2}"; }
{ budget 64 --blind --pruner none && budget 192; } &
first=$!
budget 128
budget 32
wait "$first"
