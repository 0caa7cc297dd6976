#!/usr/bin/env bash
# 7. The committed cells: blind, unpruned, every method at four budgets. Two processes of one thread each, side by side,
# which on two cores takes half as long as one of two threads. Resumable; LIMIT=n for fewer questions, MORE=n for those
# of the methods that neither MAIN nor RIVALS of rows.py names. Their times come last, in a run of their own.
export OMP_NUM_THREADS=1
source "$(dirname "$0")/common.sh"
LIMIT=${LIMIT:-1000}
MORE=${MORE:-500}
[ -e playground/data/embedded/answers.jsonl ] || $PYTHON -m scripts.embedded.data --out playground/data/embedded
cells() { $PYTHON -m scripts.tables.cell --limit "$@" --out results; }
rows() { $PYTHON -m scripts.embedded.rows "$1"; }
# shellcheck disable=SC2046 # the rows are words
{
    cells "$LIMIT" --blind --pruner none $(rows random) $(rows flowcut_plus) $(rows tome)
    cells "$MORE" $(rows 64)
    cells "$MORE" $(rows 192)
} &
first=$!
# shellcheck disable=SC2046
{
    cells "$LIMIT" $(rows fastervlm) $(rows flowcut) $(rows divprune) $(rows scope) $(rows cdpruner) $(rows vispruner)
    cells "$MORE" $(rows 128)
    cells "$MORE" $(rows 32)
}
wait "$first"

OMP_NUM_THREADS=$(nproc) $PYTHON -m scripts.embedded.times
