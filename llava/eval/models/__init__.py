"""Models that answer: this project's LLaVA classes, and transformers' own classes with the same interface."""
