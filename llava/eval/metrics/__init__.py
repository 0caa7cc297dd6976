"""Comparison of answers with the truth, and confidence intervals."""
