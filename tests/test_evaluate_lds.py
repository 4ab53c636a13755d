"""The linear datamodeling score: against counting by hand, its ceiling against simulation, its interval against coverage."""

import time

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

import proponent as pp
from proponent.attribution import Attribution
from proponent.errors import InputError, ProponentWarning
from proponent.evaluate import expected_spearman, lds, noise_ceiling
from proponent.evaluate.correlation import Moments, Ranks
from proponent.evaluate.resampling import resampled
from proponent.retrain.ledger import Ledger
from proponent.retrain.recipe import SklearnRecipe
from proponent.retrain.run import retrain
from proponent.retrain.subsets import fractions, halves
from truth import ranks

NAMES = np.array(list("abcdefghijkl"))


def attribution(score, train=None, query=None, **facts):
    q, n = score.shape
    train = np.arange(n) if train is None else train
    return Attribution.of(score, query=np.arange(q) if query is None else query, train=train, method="made", **facts)


def ledger_of(included, measured, train=None, query=None, **facts):
    train = np.arange(included.shape[1]) if train is None else train
    query = np.arange(measured.shape[1]) if query is None else query
    return Ledger.of(included, measured, train=train, query=query, **facts)


def noisy(rng, n=30, q=40, subsets=100, repeats=5, noise=1.0):
    """Planted effects, and a ledger of half subsets with noise of the given variance relative to the effects'."""
    effects = rng.normal(size=(q, n))
    drawn = halves(subsets, repeats=repeats, seed=int(rng.integers(1000)))(n)
    clean = drawn.included @ effects.T
    measured = clean + np.sqrt(noise) * clean.std(axis=0) * rng.normal(size=clean.shape)
    return attribution(effects), ledger_of(drawn.included, measured, seeds=drawn.seeds)


def spearman_of(x, y):
    ones = np.ones(x.shape[1])
    return Moments.of(Ranks.of(x).among(ones), Ranks.of(y).among(ones), ones).correlation()


# the number itself


def test_it_is_what_counting_gives_with_ties_seeds_failures_and_axes_in_another_order():
    rng = np.random.default_rng(0)
    score, drawn = rng.integers(-2, 3, size=(3, 12)) * 1.0, halves(15, repeats=2)(12)
    measured = np.round(drawn.included @ rng.normal(size=(12, 3)) + rng.normal(size=(30, 3)), 1)
    measured[[3, 8, 9]] = np.nan
    errors = ["" if not np.isnan(row).any() else "no convergence" for row in measured]
    ledger = ledger_of(drawn.included, measured, train=NAMES, query=["x", "y", "z"], seeds=drawn.seeds, errors=errors)
    order = rng.permutation(12)
    result = lds(attribution(score[[2, 0]][:, order], NAMES[order], ["z", "x"]), ledger)
    truth = ranks.lds(score, drawn.included, measured)
    np.testing.assert_allclose(result.values, [truth[2], truth[0]], atol=1e-12)
    assert result.mean == pytest.approx((truth[2] + truth[0]) / 2)
    assert (result.failed, result.models, result.subsets) == (3, 27, 14)
    assert result.to_pandas()["query"].tolist() == ["z", "x"]
    assert "3 models failed" in repr(result)


def test_an_example_drawn_twice_counts_twice():
    rng = np.random.default_rng(1)
    included = rng.integers(0, 4, size=(20, 6)).astype(np.uint8)
    score, measured = rng.normal(size=(2, 6)), rng.normal(size=(20, 2))
    result = lds(attribution(score), ledger_of(included, measured), bootstrap=0)
    np.testing.assert_allclose(result.values, ranks.lds(score, included, measured), atol=1e-12)


def test_planted_effects_score_one_their_opposites_minus_one_and_noise_zero():
    rng = np.random.default_rng(2)
    effects, drawn = rng.normal(size=(200, 40)), halves(60)(40)
    ledger = ledger_of(drawn.included, drawn.included @ effects.T)
    assert lds(attribution(3 * effects), ledger, bootstrap=0).mean == pytest.approx(1)
    opposite = lds(attribution(-effects), ledger, bootstrap=50)
    assert opposite.mean == pytest.approx(-1)
    assert "has the sign been turned?" in repr(opposite)
    chance = lds(attribution(rng.normal(size=(200, 40))), ledger)
    assert chance.lower < 0 < chance.upper
    assert abs(chance.mean) < 0.06


# the slope


def test_the_slope_regresses_truth_on_prediction_and_says_nothing_of_ranks():
    rng = np.random.default_rng(3)
    effects, drawn = rng.normal(size=(5, 20)) * np.array([[1, 10, 0.1, 1, 1]]).T, halves(80)(20)
    measured = 0.5 * drawn.included @ effects.T + np.arange(5)
    measured = measured + 0.3 * measured.std(axis=0) * rng.normal(size=measured.shape)
    ledger = ledger_of(drawn.included, measured)
    result = lds(attribution(effects), ledger)
    x, y = drawn.included @ effects.T, measured
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    assert result.slope == pytest.approx((x * y).sum() / (x * x).sum())
    np.testing.assert_allclose(result.slopes, (x * y).sum(axis=0) / (x * x).sum(axis=0))
    assert result.slope_lower < 0.5 < result.slope_upper
    assert result.slope_upper - result.slope_lower < 0.2
    cosine = lds(attribution(effects, unit="cosine"), ledger)
    assert np.isnan([cosine.slope, cosine.slope_lower, *cosine.slopes]).all()
    assert "No slope: a score is a cosine" in repr(cosine)
    assert cosine.mean == result.mean


# the ceiling


@pytest.mark.parametrize(("repeats", "published"), [(1, 0.477), (5, 0.770), (20, 0.923)])
def test_the_formula_agrees_with_simulation(repeats, published):
    rng = np.random.default_rng(repeats)
    clean = rng.normal(size=(4000, 100))
    seen = clean + np.sqrt(3 / repeats) * rng.normal(size=clean.shape)
    rho = 1 / np.sqrt(1 + 3 / repeats)
    simulated = spearman_of(clean, seen).mean()
    assert float(expected_spearman(rho, 100)) == pytest.approx(simulated, abs=0.003)
    assert float(expected_spearman(rho)) == pytest.approx(simulated, abs=0.01)
    assert simulated == pytest.approx(published, abs=0.005)


def test_the_formula_of_few_pairs_is_exact():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60_000, 5))
    y = 0.8 * x + 0.6 * rng.normal(size=x.shape)
    assert float(expected_spearman(0.8, 5)) == pytest.approx(spearman_of(x, y).mean(), abs=0.005)


@pytest.mark.parametrize("repeats", [2, 5, 20])
@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0, 10.0, "mixed"])
def test_a_perfect_predictor_scores_its_ceiling(repeats, noise):
    ceilings, scores = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        share = rng.gamma(1, 3, size=400) if noise == "mixed" else noise
        which = np.repeat(np.arange(100), repeats)
        clean = rng.normal(size=(100, 400))
        measured = clean[which] + np.sqrt(share) * rng.normal(size=(len(which), 400))
        ceilings.append(noise_ceiling(measured, which).mean())
        scores.append(spearman_of(clean.T, measured.reshape(100, repeats, 400).mean(axis=1).T).mean())
    assert np.mean(ceilings) == pytest.approx(np.mean(scores), abs=0.01)


@pytest.mark.parametrize("repeats", [2, 5])
@pytest.mark.parametrize("noise", [1.0, 3.0, 10.0])
def test_long_tails_do_not_lower_the_ceiling(repeats, noise):
    """Losses of a network: a monotone function of what is normal, of which the largest few make most of the variance."""
    rng = np.random.default_rng(repeats)
    which = np.repeat(np.arange(100), repeats)
    clean = rng.normal(size=(100, 500))
    z = (clean[which] + np.sqrt(noise) * rng.normal(size=(len(which), 500))) / np.sqrt(1 + noise)
    measured = np.exp(2 * z)
    score = spearman_of(clean.T, measured.reshape(100, repeats, 500).mean(axis=1).T).mean()
    assert noise_ceiling(measured, which).mean() == pytest.approx(score, abs=0.015)


def test_hits_and_misses_keep_their_variances():
    rng = np.random.default_rng(1)
    which = np.repeat(np.arange(100), 5)
    clean = rng.uniform(0.1, 0.9, size=(100, 400))
    measured = (rng.uniform(size=(500, 400)) < clean[which]).astype(float)
    score = spearman_of(clean.T, measured.reshape(100, 5, 400).mean(axis=1).T).mean()
    assert noise_ceiling(measured, which).mean() == pytest.approx(score, abs=0.03)


def test_the_score_of_the_planted_effects_is_its_ceiling():
    scores, ceilings = [], []
    for seed in range(12):
        result = lds(*noisy(np.random.default_rng(seed), n=60, q=60, repeats=3, noise=2.0), bootstrap=0)
        scores.append(result.mean)
        ceilings.append(result.ceiling)
    assert np.mean(scores) == pytest.approx(np.mean(ceilings), abs=0.01)
    assert 0.6 < np.mean(scores) < 0.9


def test_each_query_has_a_ceiling_of_its_own():
    rng = np.random.default_rng(5)
    which, share = np.repeat(np.arange(100), 5), np.repeat([0.1, 10.0], 100)
    clean = rng.normal(size=(100, 200))
    measured = clean[which] + np.sqrt(share) * rng.normal(size=(500, 200))
    ceilings = noise_ceiling(measured, which)
    assert ceilings[:100].mean() == pytest.approx(0.987, abs=0.01)
    assert ceilings[100:].mean() == pytest.approx(0.555, abs=0.05)


def test_few_repeated_subsets_tell_the_noise_of_all():
    rng = np.random.default_rng(6)
    which = np.concatenate([np.arange(200), np.arange(100)])
    clean = rng.normal(size=(200, 500))
    measured = clean[which] + rng.normal(size=(300, 500))
    means = np.array([measured[which == s].mean(axis=0) for s in range(200)])
    assert noise_ceiling(measured, which).mean() == pytest.approx(spearman_of(clean.T, means.T).mean(), abs=0.01)


def test_measurements_without_noise_have_a_ceiling_of_one_and_pure_noise_one_near_zero():
    rng = np.random.default_rng(7)
    which, clean = np.repeat(np.arange(50), 2), rng.normal(size=(50, 3))
    np.testing.assert_array_equal(noise_ceiling(clean[which], which), 1)
    assert noise_ceiling(rng.normal(size=(200, 400)), np.repeat(np.arange(100), 2)).mean() < 0.06
    assert noise_ceiling(np.zeros((100, 1)), which)[0] == 0


def test_one_model_a_subset_leaves_the_ceiling_unknown_unless_training_is_deterministic():
    scores, ledger = noisy(np.random.default_rng(8), repeats=1, noise=0.5)
    unknown, known = lds(scores, ledger, bootstrap=0), lds(scores, ledger, noise_free=True, bootstrap=0)
    assert np.isnan([unknown.ceiling, unknown.of_ceiling, *unknown.ceilings]).all()
    assert "No ceiling: each subset was trained once" in repr(unknown)
    assert (known.ceiling, known.of_ceiling, known.notes) == (1.0, known.mean, ())


@pytest.mark.parametrize("subsets", [3, 5, 6])
def test_few_subsets_leave_the_ceiling_unknown_in_words(subsets):
    rng = np.random.default_rng(subsets)
    included = (np.arange(8) != np.arange(subsets)[:, None]).astype(np.uint8)
    effects = rng.normal(size=(2, 8))
    truth = np.repeat(included @ effects.T, 2, axis=0)
    noise = rng.normal(size=(2 * subsets, 2)) * [1.0, 0.0]
    ledger = Ledger.of(np.repeat(included, 2, axis=0), truth + noise, train=range(8), query=["noisy", "exact"])
    scores = Attribution.of(effects, query=["noisy", "exact"], train=range(8), method="planted")
    result = lds(scores, ledger, bootstrap=0)
    assert result.ceilings[1] == 1
    assert np.isnan(result.ceilings[0]) == np.isnan(result.ceiling) == (subsets < 6)
    assert (f"No ceiling: {subsets} subsets are too few" in repr(result)) == (subsets < 6)
    assert noise_ceiling(truth, np.repeat(np.arange(subsets), 2)).tolist() == [1, 1]


# what cannot be ranked


def test_constant_predictions_count_as_zero_also_where_rounding_tells_them_apart():
    rng = np.random.default_rng(9)
    one = rng.random((40, 30)) < 0.5
    included = np.hstack([one, ~one]).astype(np.uint8)  # one of each pair of examples, which score alike
    effects, alike = rng.normal(size=(2, 60)), np.tile(rng.normal(size=30), 2)
    assert 0 < np.ptp(included @ alike) < 1e-12
    ledger = ledger_of(included, included @ effects.T)
    result = lds(attribution(np.vstack([effects[0], alike])), ledger)
    assert result.values.tolist() == [pytest.approx(1), 0]
    assert result.mean == pytest.approx(0.5)
    assert "1 queries have the same prediction" in repr(result)


def test_queries_whose_truth_is_constant_or_not_finite_are_left_out():
    rng = np.random.default_rng(10)
    drawn, effects = halves(40)(20), rng.normal(size=(3, 20))
    measured = drawn.included @ effects.T
    measured[:, 1], measured[4, 2] = 0.3, -np.inf
    result = lds(attribution(effects), ledger_of(drawn.included, measured), noise_free=True)
    assert np.isnan(result.values).tolist() == [False, True, True]
    assert result.mean == pytest.approx(1)
    assert (result.lower, result.ceiling) == (pytest.approx(1), 1)
    assert "2 queries are left out" in repr(result)


def test_scores_that_are_not_finite_count_as_zero_and_are_announced():
    rng = np.random.default_rng(11)
    drawn, effects = halves(40)(20), rng.normal(size=(2, 20))
    ledger = ledger_of(drawn.included, drawn.included @ effects.T)
    holes, zeros = effects.copy(), effects.copy()
    holes[:, 3], zeros[:, 3] = np.nan, 0
    with pytest.warns(ProponentWarning, match="2 scores that are not finite count as 0"):
        result = lds(attribution(holes), ledger, bootstrap=0)
    assert result.mean == lds(attribution(zeros), ledger, bootstrap=0).mean


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, led: (attribution(s.dataset.score.values[:, 1:]), led), "scores of 29 training examples"),
        (lambda s, led: (attribution(s.dataset.score.values, train=np.arange(30) + 1), led), "under the same ids"),
        (lambda s, led: (attribution(s.dataset.score.values, query=np.arange(40) + 1), led), "not measured"),
        (lambda s, led: (s, led.select(slice(0, 10))), "2 different subsets among 10 models"),
        (lambda s, led: (s, ledger_of(led.included, np.ones((500, 40)))), "the same for all subsets"),
        (lambda s, led: (s, ledger_of(led.included, np.full((500, 40), np.nan), errors=["no"] * 500)), "all failed"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_words(change, said):
    with pytest.raises(InputError, match=said):
        lds(*change(*noisy(np.random.default_rng(12))))


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="level between 0 and 1"):
        lds(*noisy(np.random.default_rng(12)), level=95)


# resampling


def test_ranks_in_a_resample_are_those_of_the_repeated_numbers():
    rng = np.random.default_rng(13)
    x, y = rng.integers(0, 8, size=(2, 4, 15)) * 1.0
    weight = np.bincount(rng.integers(15, size=15), minlength=15)
    repeated = np.repeat(np.arange(15), weight)
    fast = Moments.of(Ranks.of(x).among(weight), Ranks.of(y).among(weight), weight).correlation()
    np.testing.assert_allclose(fast, [ranks.spearman(x[q, repeated], y[q, repeated]) for q in range(4)])
    np.testing.assert_allclose(fast, [spearmanr(x[q, repeated], y[q, repeated])[0] for q in range(4)])


def test_resamples_draw_both_axes_alike_for_all_methods():
    seen = {}

    def keep(name):
        def statistic(weight):
            seen.setdefault(name, []).append(weight)
            return np.ones((1, 6)), np.ones((1, 6))

        return statistic

    for name in ("a", "b"):
        resampled(keep(name), 9, 6, count=20, seed=3)
    np.testing.assert_array_equal(seen["a"], seen["b"])
    assert np.array(seen["a"]).sum(axis=1).tolist() == [9] * 20
    assert len({w.tobytes() for w in seen["a"]}) > 15


def test_the_interval_covers_the_mean_over_all_subsets_and_queries():
    covered, width, spread = [], [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(10, 50))
        a, b = rng.normal(size=(2, 25, 10))
        rho = rng.uniform(0.3, 0.7, size=(25, 1))
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
        x, y = a @ features, rho * (a @ features) + np.sqrt(1 - rho**2) * (b @ rng.normal(size=(10, 50)))
        ledger = ledger_of(np.eye(50, dtype=np.uint8), y.T)
        result = lds(attribution(x), ledger, bootstrap=200, seed=seed)
        covered.append(result.lower <= 0.483 <= result.upper)  # the mean of 6/π arcsin(ρ/2) over these ρ is 0.482
        width.append((result.upper - result.lower) / 3.92)
        spread.append(result.mean)
    assert np.mean(covered) >= 0.9
    assert 0.9 < np.mean(width) / np.std(spread) < 1.5


def test_the_interval_lies_around_the_score_however_many_queries_there_are():
    rng = np.random.default_rng(16)
    x = rng.normal(size=(2000, 30))
    y = x + rng.normal(size=x.shape)
    result = lds(attribution(x), ledger_of(np.eye(30, dtype=np.uint8), y.T), bootstrap=200)
    assert result.upper - result.lower < 0.06
    assert (result.mean - result.lower) / (result.upper - result.lower) == pytest.approx(0.5, abs=0.15)
    assert result.draws.mean() == pytest.approx(result.mean)


def test_a_thousand_resamples_of_100_subsets_and_500_queries_take_seconds():
    scores, ledger = noisy(np.random.default_rng(14), n=50, q=500, repeats=2)
    start = time.perf_counter()
    lds(scores, ledger, bootstrap=1000)
    assert time.perf_counter() - start < 10


def test_the_same_seed_gives_the_same_bits():
    scores, ledger = noisy(np.random.default_rng(15))
    one, two, other = (lds(scores, ledger, seed=s, bootstrap=100) for s in (1, 1, 2))
    assert (one.lower, one.upper) == (two.lower, two.upper)
    assert one.lower != other.lower


# real models


def two_classes(seed, n):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 5))
    return X, (X[:, 0] + 0.5 * X[:, 1] + rng.normal(size=n) > 0).astype(int)


def test_influence_is_right_about_small_removals_in_order_and_in_size():
    train, query = two_classes(0, 200), two_classes(1, 30)
    recipe = SklearnRecipe(LogisticRegression(C=1.0, tol=1e-10))
    scores = pp.Influence().fit(recipe, train).score(query)
    small = retrain(recipe, train, query, fractions(0.98, 60))
    result = pp.evaluate.lds(scores, small, noise_free=True, bootstrap=100)
    assert result.mean > 0.97
    assert result.slope == pytest.approx(1, abs=0.1)
    half = pp.evaluate.lds(scores, retrain(recipe, train, query, halves(60)), noise_free=True, bootstrap=100)
    assert 0.7 < half.mean < result.mean
    assert half.slope > result.slope
