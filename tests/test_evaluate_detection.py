"""Detection against counting pairs and thresholds, and its intervals against coverage."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.evaluate import detection
from truth import ranks


@pytest.mark.parametrize("seed", range(4))
def test_areas_are_what_counting_gives_with_ties(seed):
    rng = np.random.default_rng(seed)
    value, bad = rng.integers(0, 6, size=25) * 1.0, rng.random(25) < 0.3
    result = detection(value, bad)
    assert result.auroc == pytest.approx(ranks.auroc(-value, bad)) == pytest.approx(roc_auc_score(bad, -value))
    assert result.auprc == pytest.approx(ranks.average_precision(-value, bad))
    assert result.auprc == pytest.approx(average_precision_score(bad, -value))
    assert result.auroc_lower < result.auroc < result.auroc_upper
    assert result.auprc_lower < result.auprc < result.auprc_upper


def test_a_known_case():
    values = Values.of(np.array([0.1, 0.5, 0.2, 0.9]), train=list("abcd"), method="example")
    result = detection(values, np.array([True, True, False, False]))
    assert result.auroc == 0.75  # 0.5 is not below 0.2
    assert result.auprc == pytest.approx((1 + 2 / 3) / 2)
    assert (result.k, result.precision, result.recall) == (2, 0.5, 0.5)
    one = detection(values, np.array([True, True, False, False]), k=1)
    assert (one.precision, one.recall) == (1, 0.5)
    assert result.to_pandas().to_dict("list") == {"inspected": [0.25, 0.75], "found": [0.5, 1.0]}
    assert result.base_rate == 0.5


def test_high_is_bad_where_it_is_said_and_ties_that_k_cuts_count_in_proportion():
    value, bad = np.array([3.0, 2.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False, False])
    result = detection(value, bad, lowest_is_bad=False, k=2)
    assert result.auroc == pytest.approx((3 + 1 + 2 / 2) / 6)
    assert result.recall == pytest.approx((1 + 1 / 3) / 2)
    assert detection(-value, bad, k=2).recall == result.recall
    assert detection(value, bad).auroc == pytest.approx(1 - result.auroc)


def test_an_attribution_is_judged_by_its_mean_over_queries_and_missing_values_are_left_out():
    score = np.array([[0.0, 2.0, -4.0, np.nan], [1.0, 2.0, 1.0, np.nan]])
    scores = Attribution.of(score, query=[0, 1], train=range(4), method="made")
    result = detection(scores, np.array([False, False, True, True]))
    assert (result.auroc, result.rows, result.bad) == (1, 3, 1)
    assert "1 rows without a value" in repr(result)
    assert "mean score over the queries" in repr(result)


@pytest.mark.parametrize(("bad", "good", "shift"), [(20, 180, 1.0), (60, 240, 2.5), (8, 40, 3.5)])
def test_intervals_cover(bad, good, shift):
    is_bad = np.arange(bad + good) < bad
    rng = np.random.default_rng(bad)
    many = np.arange(100_000) < 100_000 * bad // (bad + good)
    area = norm.cdf(shift / np.sqrt(2))
    precision = average_precision_score(many, rng.normal(size=len(many)) + shift * many)
    results = [detection(-rng.normal(size=bad + good) - shift * is_bad, is_bad, bootstrap=60) for _ in range(250)]
    assert np.mean([r.auroc_lower <= area <= r.auroc_upper for r in results]) >= 0.91
    assert np.mean([r.auprc_lower <= precision <= r.auprc_upper for r in results]) >= 0.89
    assert np.mean([r.auroc_upper - r.auroc_lower for r in results]) < 0.3


def test_a_perfect_order_of_few_rows_is_not_called_certain():
    few, many = (detection(np.arange(n), np.arange(n) < n // 5) for n in (10, 1000))
    assert few.auroc == few.auroc_upper == many.auroc == 1
    assert few.auroc_lower < 0.75
    assert 0.97 < many.auroc_lower < 1
    assert few.auprc_lower < many.auprc_lower < 1
    worst = detection(-np.arange(10), np.arange(10) < 2)
    assert (worst.auroc, worst.auroc_lower) == (0, 0)
    assert worst.auroc_upper == pytest.approx(1 - few.auroc_lower)


@pytest.mark.parametrize(
    ("values", "bad", "settings", "said"),
    [
        (np.ones(3), np.array([True, False]), {}, "one boolean per row"),
        (np.ones(3), np.array([1, 0, 0]), {}, "booleans of shape"),
        (np.ones(3), np.ones(3, bool), {}, "3 bad rows of 3"),
        (np.ones((3, 2)), np.ones(3, bool), {}, "one number per row"),
        (np.ones(3), np.array([True, False, False]), {"k": 4}, "1 ≤ k ≤ 3"),
    ],
)
def test_wrong_input_is_refused_in_words(values, bad, settings, said):
    with pytest.raises(InputError, match=said):
        detection(values, bad, **settings)
