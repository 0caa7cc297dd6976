"""One file per benchmark: `score` one answer, `aggregate` the scores."""
