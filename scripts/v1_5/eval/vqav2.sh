#!/bin/bash
# VQAv2: the file for test-dev's server; SPLIT=val scores val2014 offline. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark vqav2 ${SPLIT:+--split "$SPLIT"} "$@"
