#!/usr/bin/env bash
# The figures of docs/flow.md and kept.png for the embedded model, as PNG and SVG. Needs pip install -e '.[flow]'; draws
# the benchmark's pictures if DATA has none. RUNS: where the reports go. About two minutes on one core.
# The curves follow from the committed cells alone: python -m scripts.tables.refresh. Photographs: scripts/real/figures.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
RUNS=${RUNS:-runs/figures}
PYTHON=${PYTHON:-.venv/bin/python}
DATA=${DATA:-playground/data/embedded}
MODEL=playground/embedded

[ -f "$DATA/answers.jsonl" ] || $PYTHON -m scripts.embedded.data --out "$DATA" --split test
$PYTHON -m flowcut.flow "$DATA"/images/test_000[0-7].png --model-path $MODEL --pruner flowcut:budget=64 \
    --question "What color is the square?" --out "$RUNS/flow"
for figure in fig2_maps fig3_trends fig3_relay fig4_criteria fig6_strength fig7_boxes fig8_kept; do
    for kind in png svg; do cp "$RUNS/flow/$figure.$kind" "docs/images/flow_${figure#*_}.$kind"; done
done
$PYTHON -m flowcut.flow docs/images/scene.png "$DATA"/images/test_000[34].png --model-path $MODEL \
    --pruner flowcut:budget=64 --against fastervlm:budget=64 --against random:budget=64 --out "$RUNS/kept"
for kind in png svg; do cp "$RUNS/kept/fig8_kept.$kind" "docs/images/kept.$kind"; done
