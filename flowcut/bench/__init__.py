"""What pruning saves, measured on models of published size with random weights: `python -m flowcut.bench`."""
