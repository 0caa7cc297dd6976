#!/bin/bash
# VizWiz: the file for test-dev's server; SPLIT=val scores val offline. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark vizwiz ${SPLIT:+--split "$SPLIT"} "$@"
