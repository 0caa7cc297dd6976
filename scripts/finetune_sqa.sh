#!/bin/bash
# The first LLaVA on ScienceQA: twelve epochs of reasoning before answer (QCM-LEA).
export EPOCHS=${EPOCHS:-12} MODEL=${MODEL:-lmsys/vicuna-13b-v1.3}
export PROJECTOR=${PROJECTOR-./checkpoints/liuhaotian/llava-pretrain-vicuna-13b-v1.3/mm_projector.bin}
export DATA_PATH=${DATA_PATH:-./playground/data/ScienceQA/llava_train_QCM-LEA.json}
export IMAGE_FOLDER=${IMAGE_FOLDER:-./playground/data/ScienceQA/images/train}
export OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/llava-vicuna-13b-v1.3-pretrain_lcs558k_plain-ScienceQA_QCM_LEA-12e}
exec bash "$(dirname "$0")/finetune.sh" "$@"
