#!/bin/bash
# Table 6 of the FlowCut paper, first half: pretrain.sh for 7B with BUDGET visual tokens an image (192 or 128).
BUDGET=${BUDGET:-192}
export PRUNER=${PRUNER:-flowcut:budget=$BUDGET}
export MODEL=${MODEL:-lmsys/vicuna-7b-v1.5}
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.5-7b-pretrain-flowcut$BUDGET}
exec bash "$(dirname "$0")/pretrain.sh" "$@"
