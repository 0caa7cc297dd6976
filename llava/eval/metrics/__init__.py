"""How answers are compared with the truth, and how sure a mean is."""
