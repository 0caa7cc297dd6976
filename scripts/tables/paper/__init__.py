"""The paper's tables as data: printed numbers, and the pruner that measures each row."""
