"""Tables and pages, rendered from the paper's numbers and from existing cells."""
