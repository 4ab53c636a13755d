"""Linear models refitted on many subsets, against independent Newton steps and scikit-learn."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.linear_model import LinearRegression, LogisticRegression, LogisticRegressionCV, Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC

from proponent.examples import Examples
from proponent.retrain import newton, newton_chains, newton_descent, newton_stack
from proponent.retrain.newton_losses import Squares, TwoClasses
from proponent.retrain.newton_models import FittedLogistic
from proponent.retrain.recipe import MEASUREMENTS, SklearnRecipe
from truth.linear import refit_binary, refit_softmax

N = 90
TIGHT = dict(solver="newton-cholesky", tol=1e-11, max_iter=10_000)


def breast(columns=8):
    X, y = load_breast_cancer(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[:N]
    return X[rows, :columns], y[rows]


def wine():
    X, y = load_wine(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[:N]
    return X[rows], np.array(["red", "rosé", "white"])[y[rows]]


def subsets(seed=0, smallest=4):
    """Halves, bootstraps, and the prefixes of an order: 6 + 3 + some."""
    rng = np.random.default_rng(seed)
    halves = (rng.random((6, N)) < 0.5).astype(np.uint8)
    bootstraps = np.stack([np.bincount(rng.integers(N, size=N), minlength=N) for _ in range(3)]).astype(np.uint8)
    place = np.argsort(rng.permutation(N))
    prefixes = (place < np.arange(smallest, N + 1)[:, None]).astype(np.uint8)
    return np.concatenate([halves, prefixes, bootstraps])


def some(included, every=7):
    """Few enough to check one by one: heads and links of chains, and others."""
    return np.r_[0:6, 6 : len(included) - 3 : every, len(included) - 4 : len(included)]


def logits(model, X):
    return getattr(model, "decision_function", model.predict)(X)


def off(found, true):
    return np.abs(found - true).max() / (1 + np.abs(true).max())


def scaled(X):
    return StandardScaler().fit_transform(X)


@pytest.mark.parametrize("C", [1.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_two_classes_are_fitted_to_each_subsets_own_optimum(C, weighted):
    X, y = breast()
    X = scaled(X)
    w = np.random.default_rng(1).uniform(0.1, 3.0, N) if weighted else None
    included = subsets()
    models = newton.fit_many(LogisticRegression(C=C), Examples.of((X, y), weights=w), included)
    X1, penalty = np.c_[X, np.ones(N)], np.r_[np.full(8, 1 / C), 0.0]
    for s in some(included):
        weight = included[s] * (1.0 if w is None else w)
        true = X1 @ refit_binary(X1, 2.0 * y - 1.0, weight, penalty)
        assert off(models[s].decision_function(X), true) < 1e-8


def test_classes_that_a_subset_lacks_are_left_out():
    X, y = wine()
    X = scaled(X)
    order = np.argsort(y == "white", kind="stable")
    late = (np.argsort(order) < np.arange(6, N + 1)[:, None]).astype(np.uint8)
    included = np.concatenate([subsets(smallest=6), late[[len(np.unique(y[row > 0])) > 1 for row in late]]])
    models = newton.fit_many(LogisticRegression(), Examples.of((X, y)), included)
    held = [len(model.classes_) for model in models]
    assert {2, 3} == set(held)
    X1, penalty = np.c_[X, np.ones(N)], np.r_[np.ones(13), 0.0]
    for s in [*some(included), *np.flatnonzero(np.array(held) == 2)[::5]]:
        classes = np.unique(y[included[s] > 0])
        assert models[s].classes_.tolist() == classes.tolist()
        rows = np.repeat(np.arange(N), included[s])
        codes = np.searchsorted(classes, y[rows])
        if len(classes) == 2:
            true = X1 @ refit_binary(X1[rows], 2.0 * codes - 1.0, np.ones(len(rows)), penalty)
        else:
            theta = refit_softmax(X1[rows], codes, 3, np.ones(len(rows)), penalty)
            true = X1 @ (theta - theta.mean(axis=0)).T
        assert off(models[s].decision_function(X), true) < 1e-8


def test_four_classes_of_which_some_are_missing():
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(40, 3)), np.arange(40) % 4
    included = np.stack([(y != gone).astype(np.uint8) for gone in range(4)])
    included[:, ::5] = 0
    for row, model in zip(included, newton.fit_many(LogisticRegression(), Examples.of((X, y)), included), strict=True):
        classes = np.unique(y[row > 0])
        theta = refit_softmax(
            np.c_[X, np.ones(40)], np.searchsorted(classes, y) % 3, 3, row.astype(float), np.array([1.0, 1.0, 1.0, 0.0])
        )
        assert model.classes_.tolist() == classes.tolist()
        assert off(model.decision_function(X), np.c_[X, np.ones(40)] @ (theta - theta.mean(axis=0)).T) < 1e-8


LINEAR = {
    "ridge": (Ridge(alpha=0.5), 1e-10),
    "ridge, no intercept": (Ridge(fit_intercept=False), 1e-10),
    "ridge after a scaler": (make_pipeline(StandardScaler(), Ridge()), 1e-8),
    "least squares": (LinearRegression(), 1e-10),
    "least squares after a scaler": (make_pipeline(StandardScaler(), LinearRegression()), 1e-10),
    "ridge classifier": (RidgeClassifier(), 1e-10),
    "balanced ridge classifier": (RidgeClassifier(class_weight="balanced"), 1e-10),
    "ridge classifier with class weights": (RidgeClassifier(class_weight={0: 1.0, 1: 3.0}), 1e-10),
    "scaler, spread only": (make_pipeline(StandardScaler(with_mean=False), Ridge(fit_intercept=False)), 1e-8),
    "scaler, mean only": (make_pipeline(StandardScaler(with_std=False), Ridge()), 1e-10),
    "logistic after a scaler": (make_pipeline(StandardScaler(), LogisticRegression(**TIGHT)), 1e-7),
    "balanced logistic": (LogisticRegression(class_weight="balanced", C=1e-3, **TIGHT), 1e-7),
    "logistic with class weights": (LogisticRegression(class_weight={0: 1.0, 1: 3.0}, C=1e-3, **TIGHT), 1e-7),
    "logistic, no intercept": (LogisticRegression(fit_intercept=False, C=1e-3, **TIGHT), 1e-7),
    "liblinear": (
        LogisticRegression(solver="liblinear", intercept_scaling=3.0, tol=1e-12, max_iter=100_000, C=1e-3),
        1e-5,
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_estimators_agree_with_scikit_learn(name):
    estimator, tolerance = LINEAR[name]
    X, y = breast()
    if name == "liblinear":
        X = scaled(X)
    y = (
        y
        if hasattr(estimator, "classes_") or "gistic" in name or "classif" in name or name == "liblinear"
        else X[:, 0] + y
    )
    included = subsets(smallest=20)
    models = newton.fit_many(estimator, Examples.of((X, y)), included)
    for s in some(included):
        rows = np.repeat(np.arange(N), included[s])
        true = clone(estimator).fit(X[rows], y[rows])
        assert off(logits(models[s], X), logits(true, X)) < tolerance
        assert (models[s].predict(X) == true.predict(X)).all() or not hasattr(true, "classes_")


def test_several_classes_agree_with_scikit_learn():
    X, y = wine()
    included = subsets(smallest=20)
    for estimator in (
        RidgeClassifier(class_weight="balanced"),
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", **TIGHT)),
    ):
        models = newton.fit_many(estimator, Examples.of((X, y)), included)
        for s in some(included):
            rows = np.repeat(np.arange(N), included[s])
            true = clone(estimator).fit(X[rows], y[rows])
            assert off(models[s].decision_function(X), true.decision_function(X)) < 1e-7
            assert (models[s].predict(X) == true.predict(X)).all()


def test_columns_that_are_constant_in_a_subset_are_scaled_by_one():
    rng = np.random.default_rng(5)
    X = np.c_[rng.normal(size=(N, 2)), rng.random(N) < 0.05, 1e6 + (rng.random(N) < 0.1), np.zeros(N), np.full(N, 7.0)]
    y = (X[:, 0] + X[:, 2] + rng.normal(size=N) > 0).astype(int)
    included = np.concatenate([subsets(smallest=6)[:20], (X[:, 2] == 0).astype(np.uint8)[None]])
    estimator = make_pipeline(StandardScaler(), LogisticRegression(**TIGHT))
    for row, model in zip(included, newton.fit_many(estimator, Examples.of((X, y)), included), strict=True):
        rows = np.repeat(np.arange(N), row)
        true = clone(estimator).fit(X[rows], y[rows])
        assert off(model.decision_function(X[rows]), true.decision_function(X[rows])) < 1e-7


def test_wide_features_are_solved_in_the_span_of_the_rows():
    rng = np.random.default_rng(6)
    X = sparse.random(N, 120, density=0.1, random_state=0, format="csr")
    y = (np.asarray(X[:, 0].todense()).ravel() + rng.normal(size=N) > 0).astype(int)
    included = subsets(smallest=20)
    for estimator in (LogisticRegression(C=10.0, **TIGHT), Ridge(0.1, solver="cholesky")):
        models = newton.fit_many(estimator, Examples.of((X, y)), included)
        for s in some(included, every=20):
            rows = np.repeat(np.arange(N), included[s])
            true = clone(estimator).fit(X.toarray()[rows], y[rows])
            assert off(logits(models[s], X), logits(true, X.toarray())) < 1e-7


def test_a_model_depends_on_nothing_else_in_the_batch():
    X, y = breast()
    train, estimator = Examples.of((X, y)), make_pipeline(StandardScaler(), LogisticRegression(C=10.0))
    included = subsets(smallest=6)
    together = newton.fit_many(estimator, train, included)
    order = np.random.default_rng(0).permutation(len(included))
    shuffled = newton.fit_many(estimator, train, included[order])
    for s, model in zip(order, shuffled, strict=True):
        assert off(model.decision_function(X), together[s].decision_function(X)) < 1e-9
    for s in some(included, every=20):
        (alone,) = newton.fit_many(estimator, train, included[[s]])
        assert off(alone.decision_function(X), together[s].decision_function(X)) < 1e-9
    again = newton.fit_many(estimator, train, included)
    assert all((a.coef_ == b.coef_).all() for a, b in zip(again, together, strict=True))


def test_chains_may_also_lose_rows_and_repeat():
    X, y = breast()
    X = scaled(X)
    grows = subsets(smallest=40)[6:-3]
    included = np.concatenate([grows[::-1], grows[[3, 3]]])
    models = newton.fit_many(LogisticRegression(), Examples.of((X, y)), included)
    forward = newton.fit_many(LogisticRegression(), Examples.of((X, y)), grows)
    for model, true in zip(models, [*forward[::-1], forward[3], forward[3]], strict=True):
        assert off(model.decision_function(X), true.decision_function(X)) < 1e-9


def test_a_chain_costs_few_evaluations(monkeypatch):
    """Warm: from one prefix to the next few gradients are needed, and a new curvature seldom."""
    X, y = load_breast_cancer(return_X_y=True)
    X, y = scaled(X)[:200], y[:200]
    counted = {"at": 0, "curvatures": 0}
    for name in counted:
        real = getattr(newton_stack.Stack, name)

        def count(self, theta, name=name, real=real):
            counted[name] += len(self)
            return real(self, theta)

        monkeypatch.setattr(newton_stack.Stack, name, count)
    place = np.argsort(np.random.default_rng(0).permutation(200))
    included = (place < np.arange(20, 201)[:, None]).astype(np.uint8)
    newton.fit_many(LogisticRegression(C=0.123), Examples.of((X, y)), included)
    assert counted["at"] < 7 * len(included)
    assert counted["curvatures"] < 0.6 * len(included)


def test_losses_of_far_logits_are_finite_and_right():
    z = np.array([-1e4, -800.0, -30.0, -1.0, 0.0, 1e-9, 1.0, 36.0, 60.0, 800.0, 1e4])
    value, slope = TwoClasses(np.ones(11)).at(z[None, None, :], np.ones((1, 11)))
    np.testing.assert_allclose(slope[0, 0], -np.exp(-np.logaddexp(0.0, z)), rtol=1e-14, atol=1e-300)
    np.testing.assert_allclose(value, np.logaddexp(0.0, -z).sum(), rtol=1e-14)
    each = [TwoClasses(np.ones(1)).at(f.reshape(1, 1, 1), np.ones((1, 1)))[0][0] for f in z]
    np.testing.assert_allclose(each, np.logaddexp(0.0, -z), rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("loss", [TwoClasses(np.where(np.arange(N) % 3, 1.0, -1.0)), Squares(np.arange(N)[None] / N)])
def test_a_followed_optimum_is_the_first_order_answer(loss):
    """The error of a Newton step falls as the square of the change."""
    rng = np.random.default_rng(2)
    design, penalty = newton_stack.Design(rng.normal(size=(N, 4))), np.full((1, 4), 1.0)
    before = newton_stack.Stack(design, loss, np.ones((1, N)), penalty)
    start = newton_descent.minimise(before, np.zeros((1, 1, 4)))
    errors = []
    for by in (0.2, 0.1, 0.05):
        weight, grown = np.ones((1, N)), np.full((1, 4), by)
        weight[0, 7] += by
        after = newton_stack.Stack(design, loss, weight, penalty + grown)
        inverse = newton_descent.inverse_curvatures(after, start.theta)
        found = after.followed(inverse, start.theta, np.array([7]), np.array([by]), grown)
        errors.append(np.abs(found - newton_descent.minimise(after, start.theta).theta).max())
    if isinstance(loss, Squares):
        assert max(errors) < 1e-9
    else:
        assert 3.5 < errors[0] / errors[1] < 4.5 and 3.5 < errors[1] / errors[2] < 4.5


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(C=3.0), make_pipeline(StandardScaler(), LogisticRegression())]
)
def test_one_curvature_shared_by_all_leads_to_the_same_optima(monkeypatch, estimator):
    """What large models do: no curvature of their own unless all else fails."""
    X, y = wine()
    included = subsets()[:6]
    train = Examples.of((X, y))
    own = newton.fit_many(estimator, train, included)
    monkeypatch.setattr(newton_chains, "OWN", 0.0)
    shared = newton.fit_many(estimator, train, included)
    monkeypatch.setattr(newton_descent, "STEPS", 5)
    failed = newton.fit_many(estimator, train, included)
    for a, b in zip(own, shared, strict=True):
        assert off(a.decision_function(X), b.decision_function(X)) < 1e-8
    assert all(model is None for model in failed)


def test_without_a_finite_optimum_scikit_learn_fits():
    X, y = breast()
    X = scaled(X)
    y[:6] = [0, 1, 0, 1, 0, 1]
    included = np.zeros((3, N), np.uint8)
    included[0, :6] = included[1] = 1
    included[2, :60] = 1
    unpenalised = LogisticRegression(C=np.inf)
    separable, mixed, more = newton.fit_many(unpenalised, Examples.of((X[:, :3], y)), included)
    assert separable is None and mixed is not None and more is not None
    true = LogisticRegression(C=np.inf, **TIGHT).fit(X[:, :3], y)
    assert off(mixed.decision_function(X[:, :3]), true.decision_function(X[:, :3])) < 1e-7
    few, enough = newton.fit_many(LinearRegression(), Examples.of((X, X[:, 0] + y)), included[[0, 1]])
    assert few is None and enough is not None
    fitted = SklearnRecipe(LinearRegression()).fit_many(Examples.of((X, X[:, 0] + y)), included, np.zeros(3, np.int64))
    assert off(fitted[0].predict(X), LinearRegression().fit(X[:6], (X[:, 0] + y)[:6]).predict(X)) < 1e-10


def test_chains_of_least_squares_stay_determined():
    """Rows are taken away until the weights are no longer determined: these subsets are not claimed."""
    rng = np.random.default_rng(8)
    X, y = rng.normal(size=(N, 5)), rng.normal(size=N)
    included = (np.arange(N) < np.arange(20, 2, -1)[:, None]).astype(np.uint8)
    models = newton.fit_many(LinearRegression(), Examples.of((X, y)), included)
    assert [model is None for model in models] == [row.sum() < 6 for row in included]


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_measuring_many_is_measuring_each(measurement):
    X, y = wine()
    query = Examples.of((X[:20], y[:20]))
    included = subsets(smallest=6)
    included = included[[len(np.unique(y[row > 0])) > 1 for row in included]]
    for target, estimator in ((y, LogisticRegression(C=0.1)), (y == "red", LogisticRegression(C=0.1))):
        query = Examples.of((scaled(X)[:20], target[:20]))
        models = newton.fit_many(estimator, Examples.of((scaled(X), target)), included[8:])
        recipe = SklearnRecipe(estimator, measurement)
        each = np.stack([recipe.measure(model, query) for model in models])
        np.testing.assert_allclose(newton.measure_many(models, query, measurement), each, rtol=1e-8, atol=1e-8)


def test_measuring_many_regressions_and_scores_without_probabilities():
    X, y = breast()
    X = scaled(X)
    train, included = Examples.of((X, X[:, 0] + y)), subsets(smallest=30)
    models = newton.fit_many(Ridge(), train, included)
    for measurement in ("loss", "prediction"):
        each = np.stack([SklearnRecipe(Ridge(), measurement).measure(model, train) for model in models])
        np.testing.assert_allclose(newton.measure_many(models, train, measurement), each, atol=1e-10)
    labelled = Examples.of((X, y))
    models = newton.fit_many(RidgeClassifier(), labelled, included)
    each = np.stack([SklearnRecipe(RidgeClassifier(), "correct").measure(model, labelled) for model in models])
    assert (newton.measure_many(models, labelled, "correct") == each).all()
    with pytest.raises(ValueError, match="without probabilities"):
        newton.measure_many(models, labelled, "loss")


def test_margins_stay_exact_where_probabilities_round_to_one():
    model = FittedLogistic(np.array([[60.0]]), np.zeros(1), np.array([0, 1]))
    query = Examples.of((np.array([[1.0], [-1.0]]), np.array([1, 1])))
    np.testing.assert_allclose(newton.measure_many([model], query, "margin"), [[60.0, -60.0]])
    np.testing.assert_allclose(newton.measure_many([model], query, "loss"), [[-np.exp(-60.0), -60.0]])


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (LinearSVC(), "LinearSVC"),
        (LogisticRegressionCV(), "LogisticRegressionCV"),
        (make_pipeline(MinMaxScaler(), LogisticRegression()), "MinMaxScaler → LogisticRegression"),
        (LogisticRegression(l1_ratio=0.5, solver="saga"), "L1"),
        (Ridge(positive=True), "positive"),
        (make_pipeline(StandardScaler(), LogisticRegression(fit_intercept=False)), "intercept"),
        (make_pipeline(StandardScaler(), LogisticRegression(solver="liblinear")), "intercept"),
    ],
)
def test_what_is_not_taken_is_said(estimator, reason):
    X, y = breast()
    assert reason in newton.why_not(estimator, Examples.of((X, y)))
    assert not newton.supports(estimator, Examples.of((X, y)))


def test_data_that_is_not_taken_is_said():
    X, y = breast()
    holes = X.copy()
    holes[3, 3] = np.nan
    assert "NaN" in newton.why_not(LogisticRegression(), Examples.of((holes, y)))
    assert "without labels" in newton.why_not(LogisticRegression(), Examples.of(X))
    assert "parameters" in newton.why_not(LogisticRegression(), Examples.of((np.eye(2100), np.arange(2100) % 2)))
    weights = np.ones(N)
    assert "balanced" in newton.why_not(
        LogisticRegression(class_weight="balanced"), Examples.of((X, y), weights=weights)
    )
    assert newton.why_not(LogisticRegression(), Examples.of((X, y), weights=weights)) is None
