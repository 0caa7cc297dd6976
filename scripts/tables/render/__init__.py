"""Tables and pages, rendered from the paper's numbers and from cells that are there."""
