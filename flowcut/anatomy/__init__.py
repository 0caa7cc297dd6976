"""Where each model family keeps its parts: one file per family."""
