"""Leave-one-out of linear models against slow refits; certificates must contain the truth, always."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.special import expit
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from proponent.attribution import Attribution
from proponent.errors import InputError, NotConverged, ProponentWarning, UnsupportedModel
from proponent.examples import Examples
from proponent.methods.leave_one_out import LeaveOneOut
from proponent.retrain.recipe import SklearnRecipe
from truth.linear import refit_binary, refit_ridge, refit_softmax, refit_squared_hinge


def binary(n=60, d=5, q=7, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    X, Q = rng.normal(size=(n, d)), rng.normal(size=(q, d))
    w = scale * rng.normal(size=d)
    label = lambda Z: np.where(rng.random(len(Z)) < expit(Z @ w + 0.3), "yes", "no")  # noqa: E731
    y = label(X)
    y[:2] = ["yes", "no"]
    return X, y, Q, label(Q)


def truth(refit, X, Q, measure, *, penalty, drop_penalty=None):
    """(q, n) measure(full) − measure(without i), refitting each time; X and Q carry their constant column."""
    n = len(X)
    full = measure(refit(np.arange(n), penalty))
    without = penalty if drop_penalty is None else drop_penalty
    return np.stack([full - measure(refit(np.delete(np.arange(n), i), without)) for i in range(n)], axis=1)


def constant(X):
    return np.c_[X, np.ones(len(X))]


def minus_log_loss(Q, s):
    return lambda theta: -np.logaddexp(0.0, -s * (Q @ theta))


def check(scores, expected, *, exact=1e-6):
    score = scores.dataset.score.to_numpy()
    lower, upper = scores.dataset.lower.to_numpy(), scores.dataset.upper.to_numpy()
    room = 1e-9 * (1.0 + np.abs(expected))  # the truth's own rounding
    assert (lower <= expected + room).all() and (expected - room <= upper).all()
    assert np.corrcoef(score.ravel(), expected.ravel())[0, 1] > 1 - exact
    return upper - lower


@pytest.mark.parametrize("measurement", ["loss", "margin", "probability"])
def test_logistic_two_steps_and_certificate(measurement):
    X, y, Q, yq = binary()
    s, t = np.where(y == "yes", 1.0, -1.0), np.where(yq == "yes", 1.0, -1.0)
    X1, Q1, penalty = constant(X), constant(Q), np.r_[np.full(5, 1 / 0.7), 0.0]
    value = {
        "loss": minus_log_loss(Q1, t),
        "margin": lambda theta: t * (Q1 @ theta),
        "probability": lambda theta: expit(t * (Q1 @ theta)),
    }[measurement]
    expected = truth(lambda k, p: refit_binary(X1[k], s[k], np.ones(len(k)), p), X1, Q1, value, penalty=penalty)
    recipe = SklearnRecipe(LogisticRegression(C=0.7), measurement=measurement)
    width = check(LeaveOneOut().fit(recipe, (X, y)).score((Q, yq)), expected)
    assert np.median(width / np.abs(expected)) < 0.05
    one = LeaveOneOut(steps=1).fit(recipe, (X, y)).score((Q, yq)).dataset.score.to_numpy()
    assert np.corrcoef(one.ravel(), expected.ravel())[0, 1] > 0.995
    exact = LeaveOneOut(steps="exact").fit(recipe, (X, y)).score((Q, yq))
    np.testing.assert_allclose(exact.dataset.score, expected, atol=1e-9)


def test_sample_weights_and_class_weights():
    X, y, Q, yq = binary(seed=1)
    rng = np.random.default_rng(2)
    weight = rng.uniform(0, 3, len(X)) * (rng.random(len(X)) > 0.1)
    s, t = np.where(y == "yes", 1.0, -1.0), np.where(yq == "yes", 1.0, -1.0)
    total = weight * np.where(y == "yes", 2.0, 0.5)
    X1, Q1, penalty = constant(X), constant(Q), np.r_[np.ones(5), 0.0]
    expected = truth(
        lambda k, p: refit_binary(X1[k], s[k], total[k], p), X1, Q1, minus_log_loss(Q1, t), penalty=penalty
    )
    recipe = SklearnRecipe(LogisticRegression(class_weight={"yes": 2.0, "no": 0.5}))
    train = Examples.of((X, y), weights=weight)
    scores = LeaveOneOut().fit(recipe, train).score((Q, yq))
    check(scores, expected)
    assert (scores.dataset.score.to_numpy()[:, weight == 0] == 0).all()


def test_multinomial_two_steps_and_certificate():
    rng = np.random.default_rng(3)
    X, Q = rng.normal(size=(45, 4)), rng.normal(size=(6, 4))
    W = rng.normal(size=(4, 3))
    y, yq = (X @ W + rng.gumbel(size=(45, 3))).argmax(1), (Q @ W + rng.gumbel(size=(6, 3))).argmax(1)
    X1, Q1, penalty = constant(X), constant(Q), np.r_[np.full(4, 0.5), 0.0]

    def leads(theta):
        f = Q1 @ theta.T
        return f - np.log(np.exp(f).sum(1, keepdims=True))

    for measurement, value in {
        "loss": lambda th: leads(th)[np.arange(6), yq],
        "probability": lambda th: np.exp(leads(th)[np.arange(6), yq]),
        "margin": lambda th: (lambda p: np.log(p / (1 - p)))(np.exp(leads(th)[np.arange(6), yq])),
    }.items():
        refit = lambda k, p: refit_softmax(X1[k], y[k], 3, np.ones(len(k)), p)  # noqa: E731
        expected = truth(refit, X1, Q1, value, penalty=penalty)
        recipe = SklearnRecipe(LogisticRegression(C=2.0, tol=1e-8), measurement=measurement)
        check(LeaveOneOut().fit(recipe, (X, y)).score((Q, yq)), expected, exact=1e-4)


def test_smooth_hinge_and_squared_hinge():
    X, y, Q, yq = binary(n=50, seed=4)
    s, t = np.where(y == "yes", 1.0, -1.0), np.where(yq == "yes", 1.0, -1.0)
    X1, Q1, penalty = constant(X), constant(Q), np.ones(6)  # LinearSVC regularises its intercept
    squared = truth(
        lambda k, p: refit_squared_hinge(X1[k], s[k], np.ones(len(k)), p),
        X1,
        Q1,
        lambda th: t * (Q1 @ th),
        penalty=penalty,
    )
    recipe = SklearnRecipe(LinearSVC(tol=1e-8, max_iter=100_000), measurement="margin")
    check(LeaveOneOut().fit(recipe, (X, y)).score((Q, yq)), squared)
    smooth = truth(
        lambda k, p: refit_binary(X1[k], s[k], np.ones(len(k)), p, hinge_temperature=0.01),
        X1,
        Q1,
        lambda th: t * (Q1 @ th),
        penalty=penalty,
    )
    recipe = SklearnRecipe(LinearSVC(loss="hinge", tol=1e-6, max_iter=1_000_000), measurement="margin")
    with pytest.warns(ProponentWarning, match="smooth hinge"):
        fitted = LeaveOneOut().fit(recipe, (X, y))
    check(fitted.score((Q, yq)), smooth)


def test_sgd_takes_its_share_of_the_penalty_along():
    X, y, Q, yq = binary(n=50, seed=5)
    s, t = np.where(y == "yes", 1.0, -1.0), np.where(yq == "yes", 1.0, -1.0)
    X1, Q1 = constant(X), constant(Q)
    alpha = 0.02
    on = np.r_[np.ones(5), 0.0]
    expected = truth(
        lambda k, p: refit_binary(X1[k], s[k], np.ones(len(k)), p),
        X1,
        Q1,
        minus_log_loss(Q1, t),
        penalty=alpha * 50 * on,
        drop_penalty=alpha * 49 * on,
    )
    model = SGDClassifier(loss="log_loss", alpha=alpha, max_iter=5000, tol=1e-6, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProponentWarning)
        fitted = LeaveOneOut().fit(SklearnRecipe(model), (X, y))
    check(fitted.score((Q, yq)), expected)


def test_ridge_is_press():
    X, y = load_diabetes(return_X_y=True)
    fitted = LeaveOneOut().fit(SklearnRecipe(Ridge(alpha=0.5), measurement="prediction"), (X, y))
    X1 = constant(X)
    H = X1.T @ X1 + np.diag(np.r_[np.full(10, 0.5), 0.0])
    hat = np.einsum("ij,jk,ik->i", X1, np.linalg.inv(H), X1)
    residual = y - X1 @ np.linalg.solve(H, X1.T @ y)
    press = residual / (1 - hat)
    np.testing.assert_allclose(y - fitted.out_of_sample_logits()[:, 0], press, rtol=1e-10)
    scores = fitted.score((X[:20], y[:20])).dataset
    assert float(np.abs(scores.upper - scores.lower).max()) < 1e-7 * float(np.abs(scores.score).max())
    refit = lambda k, p: refit_ridge(X1[k], y[k], np.ones(len(k)), p)  # noqa: E731
    expected = truth(refit, X1[:60], X1[:5], lambda th: X1[:5] @ th, penalty=np.r_[np.full(10, 0.5), 0.0])
    part = LeaveOneOut().fit(SklearnRecipe(Ridge(alpha=0.5), measurement="prediction"), (X[:60], y[:60]))
    np.testing.assert_allclose(part.score((X[:5], y[:5])).dataset.score, expected, atol=1e-10 * np.abs(expected).max())


def test_least_squares_with_collinear_columns():
    rng = np.random.default_rng(6)
    X = rng.normal(size=(40, 3))
    X = np.c_[X, X[:, 0] + X[:, 1]]
    y = X @ [1.0, 2, 3, 4] + rng.normal(size=40)
    scores = (
        LeaveOneOut().fit(SklearnRecipe(LinearRegression(), measurement="prediction"), (X, y)).score((X[:5], y[:5]))
    )
    model = LinearRegression()
    full = model.fit(X, y).predict(X[:5])
    expected = np.stack(
        [full - model.fit(np.delete(X, i, 0), np.delete(y, i)).predict(X[:5]) for i in range(40)], axis=1
    )
    np.testing.assert_allclose(scores.dataset.score, expected, atol=1e-8)


@pytest.mark.filterwarnings("ignore::proponent.errors.ProponentWarning")
def test_a_row_that_alone_determines_a_coefficient():
    rng = np.random.default_rng(7)
    X = np.c_[rng.normal(size=(30, 2)), np.zeros(30)]
    X[4, 2] = 1.0
    y = rng.normal(size=30)
    scores = (
        LeaveOneOut().fit(SklearnRecipe(LinearRegression(), measurement="prediction"), (X, y)).score((X[:6], y[:6]))
    )
    lower, upper = scores.dataset.lower.to_numpy(), scores.dataset.upper.to_numpy()
    assert (np.isnan(scores.dataset.score.to_numpy()[:, 4]) | np.isinf(upper[:, 4] - lower[:, 4])).all()
    assert np.isfinite(np.delete(scores.dataset.score.to_numpy(), 4, axis=1)).all()


def test_wide_features_go_through_the_dual_and_sparse_equals_dense():
    X, y, Q, yq = binary(n=40, d=120, seed=8, scale=0.3)
    X[np.abs(X) < 0.8] = 0.0
    s, t = np.where(y == "yes", 1.0, -1.0), np.where(yq == "yes", 1.0, -1.0)
    X1, Q1, penalty = constant(X), constant(Q), np.r_[np.full(120, 0.2), 0.0]
    expected = truth(
        lambda k, p: refit_binary(X1[k], s[k], np.ones(len(k)), p), X1, Q1, minus_log_loss(Q1, t), penalty=penalty
    )
    recipe = SklearnRecipe(LogisticRegression(C=5.0, tol=1e-10))
    fitted = LeaveOneOut().fit(recipe, (X, y))
    assert fitted.fit.model.basis is not None and fitted.fit.model.problem.features <= 41
    check(fitted.score((Q, yq)), expected)
    thin = LeaveOneOut().fit(recipe, (sparse.csr_matrix(X), y)).score((sparse.csr_matrix(Q), yq))
    np.testing.assert_allclose(thin.dataset.score, fitted.score((Q, yq)).dataset.score, atol=1e-9)


@settings(max_examples=60)
@given(st.data())
def test_certificates_contain_the_truth_however_bad_the_data(data):
    """Badly conditioned, nearly separable, duplicated, outlying rows: the bound may be wide, never wrong."""
    seed = data.draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    n, d = data.draw(st.integers(8, 30)), data.draw(st.integers(1, 6))
    signal = data.draw(st.sampled_from([0.0, 1.0, 5.0, 50.0]))
    scales = 10.0 ** rng.uniform(-data.draw(st.integers(0, 4)), 1, d)
    X = rng.normal(size=(n, d)) * scales
    if data.draw(st.booleans()):
        X[rng.integers(n)] *= 20
    if data.draw(st.booleans()) and d > 1:
        X[:, 0] = X[:, 1] * (1 + 1e-5 * rng.normal(size=n))
    s = np.where(rng.random(n) < expit(signal * X @ rng.normal(size=d) / np.linalg.norm(scales)), 1.0, -1.0)
    s[:4] = [1, 1, -1, -1]
    C = 10.0 ** data.draw(st.integers(-3, 5))
    Q = rng.normal(size=(4, d)) * scales
    t = np.array([1.0, -1, 1, -1])
    X1, Q1, penalty = constant(X), constant(Q), np.r_[np.full(d, 1 / C), 0.0]
    model = LogisticRegression(C=C, tol=1e-6, max_iter=10_000, solver="newton-cholesky")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = LeaveOneOut().fit(SklearnRecipe(model), (X, s)).score((Q, t))
    expected = truth(
        lambda k, p: refit_binary(X1[k], s[k], np.ones(len(k)), p), X1, Q1, minus_log_loss(Q1, t), penalty=penalty
    )
    lower, upper, score = (scores.dataset[k].to_numpy() for k in ("lower", "upper", "score"))
    room = 1e-8 * (1.0 + np.abs(expected))
    assert (lower - room <= expected).all() and (expected <= upper + room).all()
    assert (lower <= score + room).all() and (score <= upper + room).all()
    with np.errstate(over="ignore"):
        wide = (upper - lower) / np.maximum(np.abs(expected), 1e-6)
    assert np.median(wide) < 0.05


def test_groups_by_woodbury_equal_refits():
    X, y, Q, yq = binary(n=80, seed=9)
    s, t = np.where(y == "yes", 1.0, -1.0), np.where(yq == "yes", 1.0, -1.0)
    groups = np.repeat(np.array(["a", "b", "c", "d"]), [2, 3, 30, 45])
    X1, Q1, penalty = constant(X), constant(Q), np.r_[np.ones(5), 0.0]
    value = minus_log_loss(Q1, t)
    full = value(refit_binary(X1, s, np.ones(80), penalty))
    keep = [np.flatnonzero(groups != g) for g in "abcd"]
    expected = np.stack([full - value(refit_binary(X1[k], s[k], np.ones(len(k)), penalty)) for k in keep], axis=1)
    fitted = LeaveOneOut().fit(SklearnRecipe(LogisticRegression()), (X, y))
    scores = fitted.score_groups((Q, yq), groups)
    assert scores.dataset["train"].to_numpy().tolist() == list("abcd")
    check(scores, expected, exact=1e-4)
    alone = fitted.score_groups((Q, yq), np.arange(80))
    single = fitted.score((Q, yq)).dataset
    assert (alone.dataset.lower <= single.upper.to_numpy()).all() and (
        single.lower.to_numpy() <= alone.dataset.upper
    ).all()
    assert np.corrcoef(alone.dataset.score.to_numpy().ravel(), single.score.to_numpy().ravel())[0, 1] > 0.9999


def test_groups_of_a_squared_hinge_equal_refits_within_their_bounds():
    X, y, Q, yq = binary(n=60, seed=12)
    s, t = np.where(y == "yes", 1.0, -1.0), np.where(yq == "yes", 1.0, -1.0)
    groups = np.repeat(np.array(["a", "b", "c"]), [3, 12, 45])
    X1, Q1, penalty = constant(X), constant(Q), np.ones(6)
    full = t * (Q1 @ refit_squared_hinge(X1, s, np.ones(60), penalty))
    kept = [np.flatnonzero(groups != g) for g in "abc"]
    expected = np.stack(
        [full - t * (Q1 @ refit_squared_hinge(X1[k], s[k], np.ones(len(k)), penalty)) for k in kept], axis=1
    )
    recipe = SklearnRecipe(LinearSVC(tol=1e-8, max_iter=100_000), measurement="margin")
    width = check(LeaveOneOut().fit(recipe, (X, y)).score_groups((Q, yq), groups), expected)
    assert np.isfinite(width).all()


def test_refits_of_any_estimator_agree_with_newton_steps():
    X, y = load_breast_cancer(return_X_y=True)
    recipe = SklearnRecipe(make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-10, max_iter=1000)))
    train, query = (X[:150], y[:150]), (X[300:305], y[300:305])
    refitted = LeaveOneOut(steps="refit").fit(recipe, train).score(query, rows=[3, 1, 40])
    assert refitted.dataset["train"].to_numpy().tolist() == [3, 1, 40]
    newton = LeaveOneOut().fit(recipe, train).score(query, rows=[3, 1, 40])
    # The refits also refit the scaler, which the Newton steps hold: hence only close.
    assert np.corrcoef(refitted.dataset.score.to_numpy().ravel(), newton.dataset.score.to_numpy().ravel())[0, 1] > 0.95


def test_self_influence_and_out_of_sample_logits_are_the_diagonal():
    X, y = load_digits(return_X_y=True)
    X, y = X[:150] / 16, y[:150]
    fitted = LeaveOneOut().fit(SklearnRecipe(LogisticRegression(C=0.5)), (X, y))
    diagonal = np.diag(fitted.score((X, y)).dataset.score.to_numpy())
    np.testing.assert_allclose(fitted.self_influence().value, diagonal, rtol=2e-3)  # scores of wide rows go further
    np.testing.assert_allclose(
        fitted.values((X, y)).value, fitted.score((X, y)).dataset.score.mean("query"), atol=1e-12
    )
    assert fitted.out_of_sample_logits().shape == (150, 10)
    assert (diagonal > -1e-9).all()


def test_streamed_is_the_same_and_goes_on_where_it_stopped(tmp_path):
    X, y, Q, yq = binary(n=700, seed=10)
    fitted = LeaveOneOut().fit(SklearnRecipe(LogisticRegression()), (X, y))
    memory = fitted.score((Q, yq))
    streamed = fitted.score((Q, yq), out=tmp_path / "scores.zarr")
    np.testing.assert_array_equal(memory.dataset.score, streamed.dataset.score)
    np.testing.assert_array_equal(memory.dataset.upper, streamed.dataset.upper)
    again = fitted.score((Q, yq), out=tmp_path / "scores.zarr")
    assert (
        isinstance(again, Attribution)
        and again.proponents(query=0, k=3)["id"].tolist() == memory.proponents(query=0, k=3)["id"].tolist()
    )
    with pytest.raises(Exception, match="another fingerprint"):
        fitted.score((Q[:3], yq[:3]), out=tmp_path / "scores.zarr")


def test_what_cannot_be_answered_is_refused_in_words():
    X, y, Q, yq = binary()
    with pytest.raises(UnsupportedModel, match="a Lasso; wanted a linear model with a convex objective"):
        LeaveOneOut().fit(SklearnRecipe(Lasso()), (X, (y == "yes") * 1.0))
    with pytest.raises(UnsupportedModel, match="penalty"):
        LeaveOneOut().fit(SklearnRecipe(SGDClassifier(loss="log_loss", penalty="l1", random_state=0)), (X, y))
    with pytest.raises(UnsupportedModel, match="one-versus-rest"):
        LeaveOneOut().fit(SklearnRecipe(LinearSVC()), (X, np.arange(60) % 3))
    with pytest.raises(InputError, match=r"labels .'maybe'. that the model never saw"):
        LeaveOneOut().fit(SklearnRecipe(LogisticRegression()), (X, y)).score((Q, np.full(7, "maybe")))
    with pytest.raises(InputError, match="queries without labels"):
        LeaveOneOut().fit(SklearnRecipe(LogisticRegression()), (X, y)).score(Q)
    with pytest.raises(InputError, match="queries with 4 features"):
        LeaveOneOut().fit(SklearnRecipe(LogisticRegression()), (X, y)).score((Q[:, :3], yq))
    assert LeaveOneOut().fit(SklearnRecipe(LogisticRegression(), measurement="prediction"), (X, y)).score(Q).shape == (
        7,
        60,
    )
    with pytest.raises(InputError, match="steps=3"):
        LeaveOneOut(steps=3)


def test_separable_data_without_regularisation_is_refused():
    X = np.linspace(-1, 1, 20)[:, None]
    y = (X[:, 0] > 0).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(NotConverged, match="separable"):
            LeaveOneOut().fit(SklearnRecipe(LogisticRegression(C=np.inf, max_iter=10)), (X, y))


def test_a_model_short_of_its_optimum_is_told():
    X, y, _, _ = binary(n=200, seed=11, scale=3.0)
    model = LogisticRegression(C=100.0, max_iter=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ProponentWarning)
        with warnings.catch_warnings(record=True) as seen:
            LeaveOneOut().fit(SklearnRecipe(model), (X, y))
    assert any("stops short" in str(w.message) for w in seen)
