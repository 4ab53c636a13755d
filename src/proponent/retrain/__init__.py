"""Recipes, subsets, retraining and its ledger: how models are trained on subsets, and what is kept of them.

As a function it is `proponent.retrain.run.retrain`.

>>> import numpy as np
>>> import proponent as pp
>>> from sklearn.linear_model import Ridge
>>> x = np.arange(8.0)[:, None]
>>> pp.retrain(Ridge(), (x, x[:, 0]), (x[:2], x[:2, 0]), pp.halves(3))
Ledger(3 models, 3 subsets of 8 training examples × 2 queries)
"""

from proponent.verbs import also_a_verb

also_a_verb(__name__, "proponent.retrain.run.retrain")
