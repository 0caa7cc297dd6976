"""What only a GPU can show, in one command: `bash scripts/gpu/day.sh OUT`, then `python -m scripts.gpu.report OUT`."""
