#!/bin/bash
# Q-Bench, dev, in Chinese. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
SPLIT=${SPLIT:-dev-zh}
benchmark qbench --split "$SPLIT" "$@"
