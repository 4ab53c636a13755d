"""Reductions and samplers against enumerated games, and stated errors against simulated ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaincinv
from sklearn.linear_model import Lasso, Ridge
from tests.truth import games

from proponent.errors import InputError
from proponent.methods.rounds import draw
from proponent.methods.samplers import ORDERS, PATIENCE, SAMPLERS, Sampling, Semivalue, Walks
from proponent.retrain.lasso import lasso
from proponent.retrain.moments import Halves, Moments
from proponent.retrain.reduce import (
    Contrast,
    beta_sizes,
    binomial_sizes,
    marginals,
    semivalues,
    shapley_sizes,
)
from proponent.retrain.regress import FOLDS, Spectrum, folded_residuals, folds, ridge
from proponent.retrain.stopping import Budget, RankStability, SoFar, StandardError, rank_stability
from proponent.retrain.subsets import bernoulli, fractions

Array = np.ndarray[Any, np.dtype[Any]]

SHAPLEY = Semivalue(shapley_sizes, float)
BETA_4_1 = Semivalue(partial(beta_sizes, alpha=4, beta=1), lambda u: float(betaincinv(1, 4, u)))
BETAS = [(16, 1), (4, 1), (1, 4)]


# Semivalues


@pytest.mark.parametrize("n", [1, 2, 3, 6, 10])
def test_exact_values_are_those_of_the_definition(n: int) -> None:
    worth = games.random_worth(n, seed=n, games=2)
    of_sizes = {
        "shapley": (shapley_sizes(n), lambda g: games.shapley(g, n)),
        "banzhaf": (binomial_sizes(n), lambda g: games.banzhaf(g, n)),
        "weighted banzhaf": (binomial_sizes(n, 0.3), lambda g: games.banzhaf(g, n, 0.3)),
    }
    of_sizes |= {
        f"beta{ab}": (beta_sizes(n, *ab), partial(games.beta_shapley, n=n, alpha=ab[0], beta=ab[1])) for ab in BETAS
    }
    for name, (sizes, truth) in of_sizes.items():
        expected = np.stack([truth(games.of_worth(column)) for column in worth.T], axis=1)
        np.testing.assert_allclose(semivalues(worth, sizes), expected, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("n", [2, 5, 8, 10])
def test_exact_values_are_means_over_all_orders(n: int) -> None:
    worth = games.random_worth(n, seed=100 + n)
    weights = {"shapley": (shapley_sizes(n), None)}
    if n < 10:
        weights |= {"banzhaf": (binomial_sizes(n), games.place_weights_of_banzhaf(n))}
        weights |= {str(ab): (beta_sizes(n, *ab), games.place_weights_of_beta(n, *ab)) for ab in BETAS}
    for name, (sizes, of_place) in weights.items():
        expected = games.by_all_orders(worth[:, 0], n, of_place)
        np.testing.assert_allclose(semivalues(worth, sizes)[:, 0], expected, rtol=0, atol=1e-12, err_msg=name)


def test_sizes_are_probabilities_with_the_published_means() -> None:
    """The convention trap: Beta(16, 1) favours small subsets, of mean (n − 1) β / (α + β)."""
    s = np.arange(50)
    for alpha, beta, mean in ((16, 1, 2.9), (1, 4, 39.2), (1, 1, 24.5), (4, 1, 9.8)):
        assert float(beta_sizes(50, alpha, beta) @ s) == pytest.approx(mean, abs=0.05)
        np.testing.assert_allclose(
            50 * beta_sizes(50, alpha, beta), games.place_weights_of_beta(50, alpha, beta), rtol=1e-12
        )
    np.testing.assert_allclose(beta_sizes(30, 1, 1), shapley_sizes(30), rtol=1e-13)
    np.testing.assert_allclose(30 * binomial_sizes(30, 0.2), games.place_weights_of_banzhaf(30, 0.2), rtol=1e-12)
    for sizes in (beta_sizes(20_000, 16, 1), binomial_sizes(20_000), beta_sizes(20_000, 0.5, 0.5)):
        assert np.isfinite(sizes).all() and sizes.sum() == pytest.approx(1, abs=1e-9)


def test_a_failed_fit_is_left_out_of_exact_values() -> None:
    n, worth = 4, games.random_worth(4, seed=5)
    worth[0b0110] = np.nan
    found = semivalues(worth, shapley_sizes(n))[:, 0]
    for i in range(n):
        pairs = [s for s in range(2**n) if not s >> i & 1 and 0b0110 not in (s, s | 1 << i)]
        weight = np.array([1 / n / [1, 3, 3, 1][s.bit_count()] for s in pairs])
        gained = np.array([worth[s | 1 << i, 0] - worth[s, 0] for s in pairs])
        assert found[i] == pytest.approx(weight @ gained / weight.sum(), abs=1e-13)


def test_marginals_touching_a_failed_fit_are_unknown() -> None:
    order, along = np.array([2, 0, 3, 1]), np.array([[0.0], [1.0], [np.nan], [4.0], [5.5]])
    assert marginals(order, along, shapley_sizes(4)).ravel().tolist()[1:3] == [1.5, 1.0]
    assert np.isnan(marginals(order, along, shapley_sizes(4)).ravel()[[0, 3]]).all()


# Samplers


def sampled(sampler: str, semivalue: Semivalue, worth: Array, draws: int, seed: int, **other: Any) -> Halves:
    """A sampler's draws in a game whose values lie in an array."""
    n = int(np.log2(len(worth)))
    play = games.lookup(worth)
    of = {"strata": 3, "tolerance": 0.0} | other
    scheme = Sampling(sampler, seed, 1, **of).scheme(semivalue, n)
    start = 0 if sampler in ("owen", "exact") or n == 1 else 2
    drawn = draw(scheme, lambda included, seeds: play(included), Budget(start + draws * scheme.cost), "draws")
    assert drawn.draws == draws
    return drawn.tally


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "exact"])
@pytest.mark.parametrize("kind", ["shapley", "beta"])
def test_every_sampler_is_unbiased_and_its_standard_error_is_that_of_a_thousand_runs(sampler: str, kind: str) -> None:
    n, runs = 5, 1000
    worth = games.random_worth(n, seed=1)
    semivalue, truth = {
        "shapley": (SHAPLEY, games.shapley(games.of_worth(worth[:, 0]), n)),
        "beta": (BETA_4_1, games.beta_shapley(games.of_worth(worth[:, 0]), n, 4, 1)),
    }[kind]
    tallies = [sampled(sampler, semivalue, worth, draws=40, seed=run).whole for run in range(runs)]
    estimate = np.array([t.mean[:, 0] for t in tallies])
    stderr = np.array([t.stderr[:, 0] for t in tallies])
    z = (estimate.mean(axis=0) - truth) / (estimate.std(axis=0, ddof=1) / np.sqrt(runs))
    assert np.abs(z).max() < 3.5, z
    stated = (stderr**2).mean(axis=0) / estimate.var(axis=0, ddof=1)
    assert np.abs(stated - 1).max() < 0.15, stated


def test_standardised_errors_of_many_draws_have_unit_variance() -> None:
    n = 5
    worth = games.random_worth(n, seed=1)
    truth = games.shapley(games.of_worth(worth[:, 0]), n)
    z = []
    for run in range(250):
        whole = sampled("permutation", SHAPLEY, worth, draws=200, seed=run).whole
        z.append((whole.mean[:, 0] - truth) / whole.stderr[:, 0])
    assert np.mean(z) == pytest.approx(0, abs=0.1) and np.var(z) == pytest.approx(1, abs=0.12)
    assert np.mean(np.abs(z) < 1.96) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("sampler", ["permutation", "antithetic", "stratified", "truncated", "exact"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_shapley_values_add_up_to_what_all_are_worth(sampler: str, n: int) -> None:
    worth = 5 * games.random_worth(n, seed=3, games=3) + 100
    halves = sampled(sampler, SHAPLEY, worth, draws=1 if sampler == "exact" else 3, seed=0, tolerance=0.3)
    np.testing.assert_allclose(halves.whole.mean.sum(axis=0), worth[-1] - worth[0], rtol=0, atol=1e-11)


def test_players_that_are_alike_get_the_same_where_theory_says_so() -> None:
    n = 6
    swapped = np.array([(s & ~0b11) | (s & 1) << 1 | s >> 1 & 1 for s in range(2**n)])
    worth = games.random_worth(n, seed=4)
    worth = worth + worth[swapped]  # players 0 and 1 can trade places
    exact = sampled("exact", SHAPLEY, worth, draws=1, seed=0).whole.mean[:, 0]
    assert exact[0] == pytest.approx(exact[1], abs=1e-13)
    halves = sampled("permutation", SHAPLEY, worth, draws=3000, seed=0).whole
    assert abs(halves.mean[0, 0] - halves.mean[1, 0]) < 4 * (halves.stderr[0, 0] + halves.stderr[1, 0])
    nobody = np.repeat(games.random_worth(n - 1, seed=5), 2, axis=0)  # player 0 never matters
    for sampler in SAMPLERS:
        draws = 1 if sampler == "exact" else 4
        assert sampled(sampler, SHAPLEY, nobody, draws=draws, seed=0, tolerance=0.0).whole.mean[0, 0] == 0


def test_truncated_walks_stop_at_the_same_place_whatever_the_round_and_cost_less() -> None:
    n, asked = 40, []

    def levels_off(included: Array, seeds: Array) -> Array:
        asked.append(len(included))
        size = included.sum(axis=1, dtype=float)
        return np.stack([1 - np.exp(-size / 3), included[:, :5].any(axis=1)], axis=1)

    add = Sampling("truncated", 0, 1, 2, 0.01).scheme(SHAPLEY, n).start(levels_off)
    at_once, cost = add(None, range(8)).whole.mean, sum(asked)
    one_by_one = None
    for t in range(8):
        one_by_one = add(one_by_one, range(t, t + 1))
    assert one_by_one is not None
    np.testing.assert_array_equal(at_once, one_by_one.whole.mean)
    np.testing.assert_allclose(at_once.sum(axis=0), [1 - np.exp(-n / 3), 1], atol=1e-12)
    add = Sampling("truncated", 0, 1, 2, 0.0).scheme(SHAPLEY, n).start(levels_off)
    asked.clear()
    full = add(None, range(8)).whole.mean
    assert cost < 0.85 * sum(asked) and np.abs(at_once - full).max() < 0.01


def test_truncated_walks_do_not_stop_where_they_are_close_by_chance() -> None:
    n = 20
    worth_of_size = np.array([0.0] * 7 + [1.0] * (PATIENCE - 1) + [0.0] * (n - PATIENCE - 6) + [1.0])

    def by_size(included: Array, seeds: Array) -> Array:
        return worth_of_size[included.sum(axis=1)][:, None]

    def draws(tolerance: float | None) -> Array:
        scheme = Walks(shapley_sizes(n), ORDERS["truncated"], 2, tolerance, seed=0, seeds=1)
        return scheme.start(by_size)(None, range(3)).whole.mean

    np.testing.assert_array_equal(draws(0.01), draws(None))
    worth_of_size[7 + PATIENCE - 1] = 1.0  # one place longer
    assert not np.array_equal(draws(0.01), draws(None))


def test_stratified_orders_put_each_player_once_into_every_stratum() -> None:
    orders = ORDERS["stratified"](np.random.default_rng(0), 12, 4)
    places = np.argsort(orders, axis=1)
    assert (np.sort(places // 3, axis=0) == np.arange(4)[:, None]).all()


def test_a_failed_fit_inside_a_walk_drops_its_neighbours_there_and_nothing_else() -> None:
    n, worth = 5, games.random_worth(5, seed=6)
    play = games.lookup(worth)
    broken = 0b01011

    def fails(included: Array, seeds: Array) -> Array:
        code = included.astype(int) @ (1 << np.arange(n))
        return np.where((code == broken)[:, None], np.nan, play(included))

    scheme = Sampling("permutation", 0, 1, 1, 0.0).scheme(SHAPLEY, n)
    drawn = draw(scheme, fails, Budget(2 + 400 * scheme.cost), "draws")
    expected, count = np.zeros(n), np.zeros(n)
    for t in range(400):
        held = 0
        for i in np.random.default_rng([0, t]).permutation(n):
            if broken not in (held, held | 1 << i):
                expected[i] += worth[held | 1 << i, 0] - worth[held, 0]
                count[i] += 1
            held |= 1 << int(i)
    np.testing.assert_array_equal(drawn.tally.whole.count[:, 0], count)
    np.testing.assert_allclose(drawn.tally.whole.mean[:, 0], expected / count, atol=1e-12)
    assert drawn.failed > 0 and (count < 400).any()


@pytest.mark.parametrize("sampler", ["permutation", "antithetic", "stratified", "truncated", "owen"])
def test_rounds_of_any_size_give_the_same_bits(sampler: str) -> None:
    worth = games.random_worth(6, seed=7, games=2)
    play = games.lookup(worth)
    found = []
    for at_once in (1, 50, 5000):
        scheme = Sampling(sampler, 3, 2, 2, 0.1).scheme(SHAPLEY, 6)
        found.append(draw(scheme, lambda z, seeds: play(z) + 0.1 * seeds[:, None], Budget(500), "draws", at_once).tally)
    for halves in found[1:]:
        np.testing.assert_array_equal(halves.whole.mean, found[0].whole.mean)
        np.testing.assert_array_equal(halves.stderr, found[0].stderr)


# Moments and differences of means


@given(st.integers(2, 30), st.integers(0, 2**20), st.floats(-1e6, 1e6))
@settings(max_examples=50)
def test_moments_are_those_of_numpy_however_they_are_merged(draws: int, seed: int, level: float) -> None:
    x = np.random.default_rng(seed).normal(size=(draws, 3, 2)) + level
    one_by_one = Moments.empty(3, 2)
    for d in x:
        one_by_one = one_by_one.merged(Moments.of_draw(d))
    half = draws // 2
    left, right = (Moments.of_rows(np.ones((len(p), 3)), p) for p in (x[:half], x[half:])) if half else (None, None)
    for m in [one_by_one] + ([left.merged(right)] if left and right else []):
        np.testing.assert_allclose(m.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(m.stderr, x.std(axis=0, ddof=1) / np.sqrt(draws), rtol=1e-6)


def test_draws_that_all_agree_are_not_certain() -> None:
    moments = Moments.empty(2, 1)
    for d in ([[0.0], [1.0]], [[0.0], [3.0]]):
        moments = moments.merged(Moments.of_draw(np.array(d)))
    assert moments.stderr[0, 0] == pytest.approx(2 / 2)  # the largest deviation / draws
    assert moments.stderr[1, 0] == pytest.approx(1.0)
    certain = Moments.of_draw(np.ones((2, 1)))
    assert certain.merged(certain).stderr.ravel().tolist() == [0, 0]  # in a game where nothing varies


def test_contrast_is_a_difference_of_means_with_welchs_interval() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.integers(0, 2, (60, 4)), rng.normal(size=(60, 3)) * [1, 5, 0.1] + 1000
    contrast = Contrast.empty(4, 3)
    for rows in (slice(0, 7), slice(7, 8), slice(8, 60)):
        contrast = contrast.with_rows(z[rows], y[rows])
    lower, upper = contrast.interval(0.9)
    for i in range(4):
        for c in range(3):
            inside, outside = y[z[:, i] == 1, c], y[z[:, i] == 0, c]
            expected = stats.ttest_ind(inside, outside, equal_var=False).confidence_interval(0.9)
            assert contrast.value[i, c] == pytest.approx(inside.mean() - outside.mean(), abs=1e-9)
            assert (lower[i, c], upper[i, c]) == pytest.approx(tuple(expected), abs=1e-7)


def test_contrast_leaves_out_failed_fits_and_knows_what_it_does_not_know() -> None:
    z = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    y = np.array([[1.0], [2.0], [np.nan], [4.0]])
    contrast = Contrast.empty(3, 1).with_rows(z, y)
    assert contrast.value[0, 0] == -2.0 and np.isnan(contrast.value[1:]).all()


def test_each_example_against_its_own_measurement_is_the_diagonal() -> None:
    rng = np.random.default_rng(1)
    z, y = rng.integers(0, 2, (50, 6)), rng.normal(size=(50, 6))
    for paired in (False, True):
        whole = Contrast.empty(6, 6, paired=paired).with_rows(z, y)
        own = Contrast.empty(6, 1, paired=paired).with_rows(z[:20], y[:20, :, None]).with_rows(z[20:], y[20:, :, None])
        numbers = [(c.value, c.stderr, *c.interval(0.95)) for c in (whole, own)]
        for of_all, of_own in zip(*numbers, strict=True):
            np.testing.assert_allclose(of_own[:, 0], np.diag(of_all), rtol=1e-9)


def test_pairs_have_the_variance_of_their_summed_errors() -> None:
    rng = np.random.default_rng(2)
    z = fractions(0.7, 40, antithetic=True)(8).included
    y = rng.normal(size=(40, 2)) + np.repeat(rng.normal(size=(20, 2)), 2, axis=0) + 50
    y[7] = np.nan
    contrast = Contrast.empty(8, 2, paired=True).with_rows(z[:10], y[:10]).with_rows(z[10:], y[10:])
    kept = ~np.isnan(y[:, 0])
    for i in range(8):
        inside, outside = kept & (z[:, i] == 1), kept & (z[:, i] == 0)
        m1, m0 = inside.sum(), outside.sum()
        error = np.where(inside[:, None], (y - y[inside].mean(0)) / m1, 0) - np.where(
            outside[:, None], (y - y[outside].mean(0)) / m0, 0
        )
        pairs = error.reshape(20, 2, 2)
        variance = (
            y[inside].var(axis=0, ddof=1) / m1
            + y[outside].var(axis=0, ddof=1) / m0
            + 2 * (pairs[:, 0] * pairs[:, 1]).sum(0)
        )
        np.testing.assert_allclose(contrast.stderr[i], np.sqrt(variance), rtol=1e-9)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("size", [4, 6])
def test_downsampling_intervals_cover_at_their_rate(antithetic: bool, size: int) -> None:
    """1,000 runs of 60 subsets in a game without structure; the truth is by enumeration."""
    n, runs = 8, 1000
    worth = games.random_worth(n, seed=8)
    truth = games.fixed_size_contrast(worth[:, 0], n, size)
    play = games.lookup(worth)
    held, z2 = [], []
    for run in range(runs):
        z = fractions(size / n, 60, seed=run, antithetic=antithetic)(n).included
        contrast = Contrast.empty(n, 1, paired=antithetic).with_rows(z, play(z))
        lower, upper = contrast.interval(0.9)
        held.append((lower[:, 0] <= truth) & (truth <= upper[:, 0]))
        z2.append(((contrast.value[:, 0] - truth) / contrast.stderr[:, 0]) ** 2)
    assert np.mean(held) == pytest.approx(0.9, abs=0.015)
    assert 0.9 < np.mean(z2) < 1.25  # Student's t of the 15 or so subsets without an example


@pytest.mark.parametrize("chance", [(0.5, 0.4), (0.97, 0.6), (1.0, 0.9), (1.0, 1.0)])
def test_intervals_of_memorization_cover_near_zero_and_one(chance: tuple[float, float]) -> None:
    rng = np.random.default_rng(3)
    truth = chance[0] - chance[1]
    z = fractions(0.7, 100)(50).included
    held = []
    for _ in range(40):
        y = (rng.random((100, 50)) < np.where(z, *chance)).astype(float)
        lower, upper = Contrast.empty(50, 1).with_rows(z, y[:, :, None]).interval(0.95)
        held.append((lower <= truth) & (truth <= upper))
    assert 0.93 < np.mean(held) <= 1.0
    assert np.mean(held) < 0.99 or chance[1] >= 0.9  # an interval that is never wrong is too wide


def test_maximum_sample_reuse_is_unbiased_for_banzhaf() -> None:
    n, runs = 5, 1000
    worth = games.random_worth(n, seed=9)
    play = games.lookup(worth)
    for p in (0.5, 0.3):
        truth = games.banzhaf(games.of_worth(worth[:, 0]), n, p)
        estimate = np.empty((runs, n))
        z2 = np.empty((runs, n))
        for run in range(runs):
            z = bernoulli(p, 80, seed=run)(n).included
            contrast = Contrast.empty(n, 1).with_rows(z, play(z))
            estimate[run] = contrast.value[:, 0]
            z2[run] = ((contrast.value[:, 0] - truth) / contrast.stderr[:, 0]) ** 2
        z = (estimate.mean(axis=0) - truth) / (estimate.std(axis=0, ddof=1) / np.sqrt(runs))
        assert np.abs(z).max() < 3.5, (p, z)
        assert 0.9 < z2.mean() < 1.2, (p, z2.mean())


# Regressions


def linear_game(n: int, m: int, noise: float, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    coefficient = rng.normal(size=(n, 3))
    z = rng.integers(0, 2, (m, n))
    return z, z @ coefficient + [5.0, 0.0, -100.0] + noise * rng.normal(size=(m, 3)), coefficient


@pytest.mark.parametrize("shape", [(12, 60), (60, 40)])
def test_ridge_is_scikit_learns_in_the_primal_and_in_the_dual(shape: tuple[int, int]) -> None:
    z, y, _ = linear_game(*shape, noise=0.5, seed=0)
    found = ridge(z, y)
    expected = Ridge(alpha=found.penalty, solver="svd").fit(z, y).coef_.T
    np.testing.assert_allclose(found.coefficient, expected, atol=1e-8)


def test_left_out_and_folded_residuals_are_those_of_refits() -> None:
    z, y, _ = linear_game(10, 30, noise=1.0, seed=1)
    spectrum, centred = Spectrum.of(z), y - y.mean(axis=0)
    projected = spectrum.left.T @ centred
    for penalty in (1e-3, 5.0):
        for found, parts in (
            (spectrum.left_out_residuals(centred, projected, penalty), [np.array([s]) for s in range(30)]),
            (folded_residuals(spectrum, centred, projected, penalty), folds(30)),
        ):
            for rows in parts:
                rest = np.setdiff1d(np.arange(30), rows)
                refit = Ridge(alpha=penalty, solver="svd").fit(z[rest], y[rest])
                np.testing.assert_allclose(found[rows], y[rows] - refit.predict(z[rows]), atol=1e-7)


def test_ridge_recovers_a_planted_linear_game() -> None:
    z, y, coefficient = linear_game(40, 100, noise=0.0, seed=2)
    found = ridge(z, y)
    np.testing.assert_allclose(found.coefficient, coefficient, atol=1e-3)
    assert (found.r2 > 0.9999).all() and (found.lds > 0.999).all()


def test_ridge_standard_errors_are_those_of_a_thousand_runs() -> None:
    rng = np.random.default_rng(4)
    coefficient = rng.normal(size=10)
    z2 = []
    for run in range(300):
        rng = np.random.default_rng([4, run])
        z = rng.integers(0, 2, (80, 10))
        noise = rng.normal(size=80) * (0.5 + z[:, 0])  # unequal variances
        found = ridge(z, (z @ coefficient + noise)[:, None])
        z2.append(((found.coefficient[:, 0] - coefficient) / found.stderr[:, 0]) ** 2)
    assert 0.85 < np.mean(z2) < 1.2, np.mean(z2)


def test_held_out_quality_of_noise_is_nothing() -> None:
    rng = np.random.default_rng(5)
    z, y = rng.integers(0, 2, (200, 20)), rng.normal(size=(200, 200))
    found = ridge(z, y, penalties=np.array([1.0]))
    assert abs(found.lds.mean()) < 0.02 and found.r2.mean() < 0.02


def test_constant_measurements_have_no_effects() -> None:
    z, y, _ = linear_game(6, 50, noise=0.1, seed=6)
    y[:, 1] = 3.0
    for found in (ridge(z, y), lasso(z, y, resamples=0)):
        assert np.abs(found.coefficient[:, 1]).max() < 1e-12
        assert np.isnan(found.r2[1]) and np.isnan(found.lds[1]) and (found.r2[[0, 2]] > 0.9).all()
    with pytest.raises(InputError, match=f"at least {2 * FOLDS}"):
        ridge(z[:5], y[:5])


def test_lasso_is_scikit_learns_and_finds_the_few_that_matter() -> None:
    rng = np.random.default_rng(7)
    coefficient = np.zeros((60, 2))
    coefficient[:4, 0], coefficient[10:13, 1] = 2.0, -3.0
    z = rng.integers(0, 2, (120, 60))
    y = z @ coefficient + 0.1 * rng.normal(size=(120, 2)) + 7
    found = lasso(z, y, resamples=10)
    centred = z - z.mean(axis=0)
    for c in range(2):
        alpha = found.penalty * np.abs(centred.T @ (y[:, c] - y[:, c].mean())).max() / len(z)
        expected = Lasso(alpha=alpha, tol=1e-10, max_iter=100_000).fit(z, y[:, c]).coef_
        np.testing.assert_allclose(found.coefficient[:, c], expected, atol=1e-3)
    assert np.abs(found.coefficient - coefficient).max() < 0.2
    assert (found.r2 > 0.98).all() and np.isfinite(found.stderr).all() and (found.stderr[:4, 0] > 0).all()


# Stop rules


def so_far(mean_even: Array, mean_odd: Array, trainings: int = 100, cost: int = 10, draws: int = 40) -> SoFar:
    count = np.full((len(mean_even), 1), draws // 2)
    spread = np.full((len(mean_even), 1), draws / 2 - 1.0)
    none = np.zeros((1, 1))
    halves = Halves(*(Moments(count, np.asarray(m, float)[:, None], spread, none) for m in (mean_even, mean_odd)))
    return SoFar(trainings, cost, draws, halves)


def test_stop_rules() -> None:
    alike, other = np.arange(5.0), np.array([1.0, 0.0, 2.0, 4.0, 3.0])
    assert Budget(105).done(so_far(alike, alike)) and not Budget(110).done(so_far(alike, alike))
    error = float(so_far(alike, alike).tally.stderr[0, 0])
    assert StandardError(error * 1.01).done(so_far(alike, alike))
    assert not StandardError(error * 0.99).done(so_far(alike, alike))
    assert not StandardError(error * 1.01).done(so_far(alike, alike, draws=10))
    mixed = so_far(alike, alike)
    mixed.tally.even.deviations[0] = mixed.tally.odd.deviations[0] = 1e6
    assert StandardError(error * 1.01, share=0.8).done(mixed) and not StandardError(error * 1.01).done(mixed)
    r = stats.spearmanr(alike, other).statistic
    assert rank_stability(so_far(alike, other).tally) == pytest.approx(2 * r / (1 + r))
    assert RankStability(2 * r / (1 + r) - 0.01).done(so_far(alike, other))
    assert not RankStability(2 * r / (1 + r) + 0.01).done(so_far(alike, other))
    assert not RankStability(0.5).done(so_far(np.zeros(5), np.zeros(5)))  # nothing to rank
    either, both = Budget(105) | StandardError(1e-9), Budget(105) & StandardError(1e-9)
    assert either.done(so_far(alike, alike)) and not both.done(so_far(alike, alike))
    assert (either.most, both.most) == (105, np.inf)
    for wrong in (lambda: Budget(0), lambda: StandardError(0.0), lambda: RankStability(1.0)):
        with pytest.raises(InputError):
            wrong()


def test_rank_stability_predicts_the_agreement_of_two_runs() -> None:
    worth = games.random_worth(8, seed=9) + 0.5 * np.array([[s.bit_count() ** 0.5] for s in range(256)])
    worth += np.array([[sum((s >> i & 1) * 0.3 * i for i in range(8))] for s in range(256)])
    predicted, found = [], []
    for run in range(200):
        one, other = (sampled("permutation", SHAPLEY, worth, draws=20, seed=2 * run + k) for k in (0, 1))
        predicted.append(rank_stability(one))
        found.append(stats.spearmanr(one.whole.mean[:, 0], other.whole.mean[:, 0]).statistic)
    assert np.mean(predicted) == pytest.approx(np.mean(found), abs=0.05)


def test_a_budget_below_one_draw_is_refused_and_one_above_is_never_exceeded() -> None:
    worth = games.random_worth(6, seed=10)
    play = games.lookup(worth)
    scheme = Sampling("antithetic", 0, 1, 1, 0.0).scheme(SHAPLEY, 6)
    with pytest.raises(InputError, match="at least 12, of which 10 for one draw"):
        draw(scheme, lambda z, seeds: play(z), Budget(11), "draws")
    for budget in (12, 21, 22, 99):
        drawn = draw(scheme, lambda z, seeds: play(z), Budget(budget), "draws", at_once=7)
        assert drawn.trainings <= budget < drawn.trainings + 10
    with pytest.raises(InputError, match="did you mean 'permutation'"):
        Sampling("permutations", 0, 1, 1, 0.0)
    with pytest.raises(InputError, match="at most 12"):
        Sampling("exact", 0, 1, 1, 0.0).scheme(SHAPLEY, 13)
