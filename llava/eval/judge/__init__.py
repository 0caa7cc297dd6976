"""A language model as judge: protocols, client, stored replies, and judging of all answers."""
