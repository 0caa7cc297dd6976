"""Measured numbers, one JSON each.

A specification stands at the bottom (`spec`). Above it are what a cell's answers follow from (`identity`) and its JSON
(`document`), and on top what produces cells (`produce`, `in_process`) and gathers those of a table.
"""
