"""Recipes and refits: how a model is trained on a subset."""
