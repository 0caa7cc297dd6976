#!/bin/bash
# POPE: mean F1 of three splits. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark pope ${SPLIT:+--split "$SPLIT"} "$@"
