"""Chat in the terminal and in the browser, and the HTTP services behind it; docs/serving.md tells how."""
