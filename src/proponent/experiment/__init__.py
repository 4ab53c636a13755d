"""Experiments: a Python file that says what to attribute, and the run directory that comes of it."""
