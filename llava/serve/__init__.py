"""Chat in the terminal and in the browser, and its HTTP services; see docs/serving.md."""
