"""This project's models inside other evaluation harnesses. Importing this imports none of them."""
