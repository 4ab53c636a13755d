"""Koh & Liang's formula, against derivatives taken by refitting."""

import numpy as np
import pytest
from scipy import sparse
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge

from proponent.errors import InputError
from proponent.methods.auto import attribute
from proponent.methods.influence import Influence
from proponent.retrain.recipe import SklearnRecipe
from truth.linear import refit_binary, refit_ridge, refit_softmax


def binary(n=40, d=4, seed=0):
    rng = np.random.default_rng(seed)
    X, Q = rng.normal(size=(n, d)), rng.normal(size=(5, d))
    w = rng.normal(size=d)
    return X, np.where(rng.random(n) < expit(X @ w), 1.0, -1.0), Q, np.where(rng.random(5) < expit(Q @ w), 1.0, -1.0)


def constant(X):
    return np.c_[X, np.ones(len(X))]


def slopes_by_refitting(refit, measure, n, step=1e-5):
    """d m_q / d s_i by central differences in the row weights, which is what the formula claims to be."""
    columns = []
    for i in range(n):
        up, down = np.ones(n), np.ones(n)
        up[i] += step
        down[i] -= step
        columns.append((measure(refit(up)) - measure(refit(down))) / (2 * step))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("measurement", ["loss", "margin", "probability"])
def test_is_the_derivative_in_the_row_weights(measurement):
    X, s, Q, t = binary()
    X1, Q1, penalty = constant(X), constant(Q), np.r_[np.ones(4), 0.0]
    value = {
        "loss": lambda th: -np.logaddexp(0, -t * (Q1 @ th)),
        "margin": lambda th: t * (Q1 @ th),
        "probability": lambda th: expit(t * (Q1 @ th)),
    }[measurement]
    expected = slopes_by_refitting(lambda w: refit_binary(X1, s, w, penalty), value, len(X))
    scores = Influence().fit(SklearnRecipe(LogisticRegression(), measurement), (X, s)).score((Q, t))
    np.testing.assert_allclose(scores.dataset.score, expected, rtol=1e-5, atol=1e-8)


def test_multinomial_and_conjugate_gradients_agree(monkeypatch):
    rng = np.random.default_rng(1)
    X, y, Q, yq = rng.normal(size=(30, 4)), np.arange(30) % 3, rng.normal(size=(5, 4)), np.array([0, 1, 2, 0, 1])
    X1, Q1, penalty = constant(X), constant(Q), np.r_[np.ones(4), 0.0]

    def value(theta):
        f = Q1 @ theta.T
        return (f - np.log(np.exp(f).sum(1, keepdims=True)))[np.arange(5), yq]

    expected = slopes_by_refitting(lambda w: refit_softmax(X1, y, 3, w, penalty), value, len(X))
    recipe = SklearnRecipe(LogisticRegression())
    dense = Influence().fit(recipe, (X, y)).score((Q, yq))
    np.testing.assert_allclose(dense.dataset.score, expected, rtol=1e-4, atol=1e-7)
    monkeypatch.setattr("proponent.convex.curvature.MAX_DENSE", 5)
    fitted = Influence(tolerance=1e-12).fit(recipe, (sparse.csr_matrix(X), y))
    assert type(fitted.curvature).__name__ == "MatrixFree"
    free = fitted.score((sparse.csr_matrix(Q), yq))
    np.testing.assert_allclose(free.dataset.score, dense.dataset.score, atol=1e-9)
    assert 0 < float(free.dataset.residual.max()) < 1e-9


def test_values_cost_one_solve_and_are_the_mean():
    X, s, Q, t = binary(seed=2)
    fitted = Influence().fit(LogisticRegression(), (X, s))
    np.testing.assert_allclose(
        fitted.values((Q, t)).value, fitted.score((Q, t)).dataset.score.mean("query"), atol=1e-12
    )


@pytest.mark.parametrize("wide", [False, True])
def test_perturbation_is_the_derivative_in_the_row(wide):
    X, s, Q, t = binary(n=12, d=30 if wide else 4, seed=3)
    d = X.shape[1]
    penalty = np.r_[np.ones(d), 0.0]
    fitted = Influence().fit(SklearnRecipe(LogisticRegression(tol=1e-10)), (X, s))
    assert (fitted.fit.model.basis is not None) == wide
    got = fitted.perturbation((Q, t), rows=[3, 7])
    for at, row in enumerate([3, 7]):
        for p in (0, d - 1):
            moved = []
            for h in (1e-5, -1e-5):
                Z = X.copy()
                Z[row, p] += h
                moved.append(-np.logaddexp(0, -t * (constant(Q) @ refit_binary(constant(Z), s, np.ones(12), penalty))))
            np.testing.assert_allclose(got[:, at, p], (moved[0] - moved[1]) / 2e-5, rtol=1e-4, atol=1e-8)


def test_ridge_perturbation():
    rng = np.random.default_rng(4)
    X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    got = Influence().fit(SklearnRecipe(Ridge(alpha=2.0), "prediction"), (X, y)).perturbation((X[:3], y[:3]), rows=[5])
    penalty = np.r_[np.full(3, 2.0), 0.0]
    moved = []
    for h in (1e-5, -1e-5):
        Z = X.copy()
        Z[5, 1] += h
        moved.append(constant(X[:3]) @ refit_ridge(constant(Z), y, np.ones(20), penalty))
    np.testing.assert_allclose(got[:, 0, 1], (moved[0] - moved[1]) / 2e-5, rtol=1e-5)


def test_attribute_chooses_and_says_why(monkeypatch):
    X, s, Q, t = binary(seed=5)
    assert "two Newton steps" in attribute(LogisticRegression(), (X, s), (Q, t)).dataset.attrs["reason"]
    forest = attribute(RandomForestClassifier(5, random_state=0), (X, s), (Q, t))
    assert "a RandomForestClassifier has no exact leave-one-out" in forest.dataset.attrs["reason"]
    monkeypatch.setattr("proponent.methods.recipes.SECOND_STEP_LIMIT", 10)
    assert "one Newton step" in attribute(LogisticRegression(), (X, s), (Q, t)).dataset.attrs["reason"]
    assert attribute(LogisticRegression(), (X, s), (Q, t), method="influence").method == "Influence"
    with pytest.raises(InputError, match="did you mean 'influence'"):
        attribute(LogisticRegression(), (X, s), (Q, t), method="influense")
