"""The paper's tables: programs, over the rooms `paper` (data), `cells` (measured numbers) and `render`.

A room imports from the rooms before it, never from one after it.
"""
