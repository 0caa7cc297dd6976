"""Training: LLaVA's two stages from LLaVA's flags and JSON data."""
