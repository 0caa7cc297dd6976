"""What an answer costs, stage by stage: `python -m llava.eval.efficiency`."""
