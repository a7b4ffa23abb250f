"""Weights of one agent taken over by another: columns, task rows, layouts, and what could not be taken."""
