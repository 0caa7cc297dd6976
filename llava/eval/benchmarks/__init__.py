"""One benchmark a file: `score` one answer, `aggregate` the scores."""
