#!/bin/bash
# ScienceQA, test: accuracy of the questions with a picture. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark sqa ${SPLIT:+--split "$SPLIT"} "$@"
