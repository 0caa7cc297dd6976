#!/bin/bash
# MMMU, val. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark mmmu ${SPLIT:+--split "$SPLIT"} "$@"
