"""Other token pruning methods behind the same contract: one paper, one file, one dataclass."""
