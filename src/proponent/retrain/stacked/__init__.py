"""Training of many torch models at once, as one stacked model: with torch_recipe.py, all of `retrain` that knows torch."""
