"""A language model as judge: protocols, clients, replies on disk, and the review of all answers."""
