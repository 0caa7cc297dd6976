#!/usr/bin/env bash
# 7. The committed cells: blind, unpruned, three methods at four budgets. Resumable; LIMIT=n for fewer questions.
source "$(dirname "$0")/common.sh"
LIMIT=${LIMIT:-1000}
pruners=(--pruner none)
for method in random fastervlm flowcut; do
    for budget in 192 128 64 32; do pruners+=(--pruner "$method:budget=$budget"); done
done
[ -e playground/data/embedded/answers.jsonl ] || $PYTHON -m scripts.embedded.data --out playground/data/embedded
$PYTHON -m scripts.tables.cell --blind "${pruners[@]}" --limit "$LIMIT" --out results "$@"
