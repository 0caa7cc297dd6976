#!/usr/bin/env bash
# 3. Pictures and LLaVA-format JSON for the two training stages, and the development questions.
source "$(dirname "$0")/common.sh"
$PYTHON -m scripts.embedded.data --split train --scenes "${SCENES:-6400}" --out "$RUNS/data"
$PYTHON -m scripts.embedded.data --split dev --scenes 100 --out "$RUNS/dev"
