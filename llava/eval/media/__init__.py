"""Pictures and videos: fetched, decoded, and prepared ahead of the model."""
