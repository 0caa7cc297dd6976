"""The commands of `flowcut` that have no room of their own: list, show, compare."""
