#!/bin/bash
# LLaVA-Bench in the wild; the score needs a judge (docs/judges.md). Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark llavabench ${SPLIT:+--split "$SPLIT"} "$@"
