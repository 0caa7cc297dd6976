"""Evaluation: answering question files, and scoring the answers."""
