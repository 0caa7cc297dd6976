#!/bin/bash
# finetune_lora.sh over a language model in 4 bits (nf4), for GPUs that 13B in 16 bits does not fit into. LLaVA has
# published no such script for 1.5: the values are those of finetune_lora.sh. Quantised weights cannot be cut up, hence
# ZeRO stage 2.
export DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG-./scripts/zero2.json}
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-qlora}
exec bash "$(dirname "$0")/finetune_lora.sh" --bits 4 "$@"
