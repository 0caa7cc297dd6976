#!/bin/bash
# Q-Bench, dev. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark qbench ${SPLIT:+--split "$SPLIT"} "$@"
