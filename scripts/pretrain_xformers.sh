#!/bin/bash
# pretrain.sh in float32 with memory-efficient attention, for GPUs without bfloat16.
export PROGRAM=llava/train/train_xformers.py BATCH_SIZE=${BATCH_SIZE:-4} ACCUMULATION=${ACCUMULATION:-4}
exec bash "$(dirname "$0")/pretrain.sh" --bf16 False --tf32 False "$@"
