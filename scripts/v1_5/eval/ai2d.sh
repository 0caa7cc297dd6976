#!/bin/bash
# AI2D, test. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark ai2d ${SPLIT:+--split "$SPLIT"} "$@"
