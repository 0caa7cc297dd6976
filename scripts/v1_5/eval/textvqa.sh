#!/bin/bash
# TextVQA, val, with OCR tokens in the prompt. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark textvqa ${SPLIT:+--split "$SPLIT"} "$@"
