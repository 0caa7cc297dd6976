"""Evaluation: questions in, answers out, scores. `answer` is the one place that prompts, generates and decodes."""
