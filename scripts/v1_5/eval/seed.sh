#!/bin/bash
# SEED-Bench: total over images and videos' frames. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark seed ${SPLIT:+--split "$SPLIT"} "$@"
