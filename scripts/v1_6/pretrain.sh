#!/bin/bash
# Stage 1 of LLaVA-1.6 (LLaVA-NeXT): the projector learns to caption whole pictures, as in 1.5, on the same 558k.
# LLaVA-1.6's own training was never released. What the later scripts of its successors (LLaVA-NeXT's pretrain_clip.sh)
# have in common with LLaVA-1.5 is taken: plain captions, mlp2x_gelu, 336 pixels, learning rate 1e-3.
export MODEL=${MODEL:-lmsys/vicuna-7b-v1.5}
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-v1.6-vicuna-7b-pretrain}
exec bash "$(dirname "$0")/../v1_5/pretrain.sh" "$@"
