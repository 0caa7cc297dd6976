"""The paper's tables: programs, on top of the packages `paper` (data), `cells` (measured numbers) and `render`.

Each of these packages imports only from those before it.
"""
