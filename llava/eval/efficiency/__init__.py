"""Measures the cost of an answer by stages: `python -m llava.eval.efficiency`."""
