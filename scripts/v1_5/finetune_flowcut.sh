#!/bin/bash
# Table 6 of the FlowCut paper, second half: finetune.sh for 7B with BUDGET visual tokens an image (192 or 128), after
# pretrain_flowcut.sh with the same budget.
BUDGET=${BUDGET:-192}
export PRUNER=${PRUNER:-flowcut:budget=$BUDGET}
export MODEL=${MODEL:-lmsys/vicuna-7b-v1.5}
export PROJECTOR=${PROJECTOR-./checkpoints/llava-v1.5-7b-pretrain-flowcut$BUDGET/mm_projector.bin}
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.5-7b-flowcut$BUDGET}
exec bash "$(dirname "$0")/finetune.sh" "$@"
