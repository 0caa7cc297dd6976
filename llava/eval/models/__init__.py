"""Models that answer: this project's LLaVA classes, and transformers' own classes behind the same interface."""
