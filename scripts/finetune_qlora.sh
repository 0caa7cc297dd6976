#!/bin/bash
# finetune_lora.sh over a language model in 4 bits.
exec bash "$(dirname "$0")/finetune_lora.sh" --bits 4 "$@"
