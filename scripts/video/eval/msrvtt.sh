#!/bin/bash
# Video-LLaVA-7B on MSRVTT-QA; accuracy and score need a judge (docs/judges.md). Settings: see ../../v1_5/eval/common.sh.
MODEL=${MODEL:-LanguageBind/Video-LLaVA-7B-hf}
CONV_MODE=${CONV_MODE-}
source "$(dirname "$0")/../../v1_5/eval/common.sh"
benchmark msrvtt ${SPLIT:+--split "$SPLIT"} "$@"
