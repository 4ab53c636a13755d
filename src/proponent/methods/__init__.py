"""Methods of training-data attribution: a short file each, `fit(recipe, train) -> Fitted`, `Fitted.score(query)`."""
