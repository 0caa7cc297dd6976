#!/usr/bin/env bash
# 1. The vision tower, on fresh pictures: captions for CLS, names for the patches.
source "$(dirname "$0")/common.sh"
$PYTHON -m scripts.embedded.pretrain_vision --out "$RUNS/vision" "$@"
