#!/bin/bash
# MM-Vet; the score needs a judge (docs/judges.md). Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark mmvet ${SPLIT:+--split "$SPLIT"} "$@"
