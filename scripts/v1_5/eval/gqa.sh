#!/bin/bash
# GQA, testdev balanced. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark gqa ${SPLIT:+--split "$SPLIT"} "$@"
