#!/bin/bash
#SBATCH --job-name=llava
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
# A training script on several nodes: sbatch --nodes 4 scripts/slurm.sh scripts/v1_5/finetune.sh [flags]
# One torchrun a node, which meet at the first node. Checkpoints must lie where all nodes see them.
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # which, unlike head, reads to the end: pipefail
export LAUNCHER="torchrun --nnodes $SLURM_NNODES --nproc_per_node ${SLURM_GPUS_ON_NODE:-8} \
    --rdzv_backend c10d --rdzv_id $SLURM_JOB_ID --rdzv_endpoint $first:${PORT:-29500}"
exec srun bash "$@"
