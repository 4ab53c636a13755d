"""Stability, baselines and the table of methods: known answers, and the way they are said."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

import proponent as pp
from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.evaluate import baselines, compare, removal_curve, stability
from proponent.examples import Examples
from proponent.retrain.ledger import Ledger
from proponent.retrain.recipe import FunctionRecipe, SklearnRecipe
from proponent.retrain.run import retrain
from proponent.retrain.subsets import halves
from truth import ranks


def attribution(score, train=None, query=None, **facts):
    q, n = score.shape
    train, query = np.arange(n) if train is None else train, np.arange(q) if query is None else query
    return Attribution.of(score, query=query, train=train, method="made", **facts)


# stability


def test_stability_is_the_mean_over_pairs_and_queries_in_any_order_of_ids():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 9, size=(3, 4, 15)) * 1.0
    order, turn = rng.permutation(15), [2, 0, 3, 1]
    results = [attribution(score[0]), attribution(score[1][:, order], train=order)]
    results.append(attribution(score[2][turn], query=turn))
    result = stability(results, k=3)
    pairs = [(0, 1), (0, 2), (1, 2)]
    truth = [[ranks.spearman(score[a, q], score[b, q]) for a, b in pairs] for q in range(4)]
    np.testing.assert_allclose(result.per_query, np.mean(truth, axis=1))
    assert result.mean == pytest.approx(np.mean(truth))
    assert result.pairs[0, 2] == pytest.approx(np.mean(truth, axis=0)[1])
    assert result.lower < result.mean < result.upper
    assert len(result.to_pandas()) == 4


def test_stability_of_equal_turned_and_unrelated_results():
    rng = np.random.default_rng(1)
    score = rng.normal(size=(30, 100))
    assert stability([attribution(score)] * 3).mean == pytest.approx(1)
    assert stability([attribution(score)] * 2).overlap == 1
    turned = stability([attribution(score), attribution(-score)])
    assert (turned.mean, turned.overlap) == (pytest.approx(-1), 0)
    other = stability([attribution(score), attribution(rng.normal(size=(30, 100)))])
    assert abs(other.mean) < 0.06
    assert other.overlap == pytest.approx(0.1, abs=0.06)


def test_stability_of_values_and_of_constant_results():
    a, b = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])
    values = [
        Values.of(a, train=range(4), method="made"),
        Values.of(b[[3, 1, 0, 2]], train=[3, 1, 0, 2], method="made"),
    ]
    result = stability(values, k=1)
    assert (result.mean, result.overlap) == (pytest.approx(0.8), 0)
    assert np.isnan(result.lower)
    mixed = stability([attribution(np.vstack([a, np.ones(4)])), attribution(np.vstack([b, a]))])
    assert mixed.mean == pytest.approx(0.8)
    assert np.isnan(mixed.per_query).tolist() == [False, True]


def test_stability_refuses_what_cannot_be_compared():
    score = np.arange(6.0).reshape(2, 3)
    values = Values.of(np.arange(3.0), train=range(3), method="made")
    for results, said in [
        ([attribution(score)], "at least two"),
        ([attribution(score), attribution(score, train=[1, 2, 3])], "other ids on the train axis"),
        ([attribution(score), attribution(score, query=[1, 2])], "other ids on the query axis"),
        ([attribution(score), values], "attributions and values together"),
        ([attribution(np.ones((2, 3)))] * 2, "results that are constant"),
    ]:
        with pytest.raises(InputError, match=said):
            stability(results)


# baselines


def test_bm25_is_the_formula_word_by_word():
    rng = np.random.default_rng(2)
    words = np.array(list("abcdefgh"))
    texts = [rng.choice(words, size=rng.integers(1, 12)).tolist() for _ in range(15)]
    asked = [["a", "b", "a"], ["h", "zz"], ["zz"]]
    made = baselines.bm25([" ".join(t) for t in texts], [" ".join(a) for a in asked], k1=1.5, b=0.6)
    truth = [ranks.bm25(texts, a, 1.5, 0.6) for a in asked]
    np.testing.assert_allclose(made.dataset.score, truth)
    assert made.unit == "BM25 score"
    assert baselines.bm25(["", "!"], ["a"]).dataset.score.values.tolist() == [[0, 0]]
    with pytest.raises(InputError, match="wanted texts"):
        baselines.bm25(np.ones((2, 2)), np.ones((2, 2)))


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_embedding_similarity_is_the_cosine_of_those_with_the_same_label(kind):
    train = Examples.of((kind([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]), [1, 0, 1]), ids=["a", "b", "c"])
    query = (kind([[1.0, 0.0], [0.0, 5.0]]), [1, 0])
    made = baselines.embedding_similarity(train, query)
    np.testing.assert_allclose(made.dataset.score, [[0.6, 0, 0], [0.8, 1, 0]])
    assert made.dataset["train"].values.tolist() == ["a", "b", "c"]
    same = baselines.embedding_similarity(train, query, same_label=True)
    np.testing.assert_allclose(same.dataset.score, [[0.6, 0, 0], [0, 1, 0]])
    with pytest.raises(InputError, match="query vectors of 3 numbers"):
        baselines.embedding_similarity(train, np.ones((1, 3)))
    with pytest.raises(InputError, match="without labels"):
        baselines.embedding_similarity(np.ones((2, 2)), np.ones((1, 2)), same_label=True)


def test_loss_and_confidence_are_what_the_model_says_of_its_own_examples():
    X, y = load_digits(return_X_y=True)
    X, y = X[:200] / 16, y[:200]
    y[:5] = (y[:5] + 1) % 10
    model = LogisticRegression(C=0.1).fit(X, y)
    p = model.predict_proba(X)
    recipe = SklearnRecipe(LogisticRegression(C=0.1))
    np.testing.assert_allclose(baselines.loss(recipe, (X, y)).value, np.log(p[np.arange(200), y]), rtol=1e-6)
    confidence = baselines.confidence(recipe, (X, y), model=model).value
    np.testing.assert_array_equal(np.argsort(confidence), np.argsort(p.max(axis=1)))
    found = pp.evaluate.detection(baselines.loss(recipe, (X, y)), np.arange(200) < 5)
    assert found.auroc > 0.95
    with pytest.raises(InputError, match="cannot measure a prediction"):
        baselines.confidence(FunctionRecipe(lambda e, s: 0, lambda m, q: np.zeros(len(q))), (X, y))


def test_random_scores_are_random_and_repeatable():
    train, query = np.zeros((50, 1)), np.zeros((40, 1))
    one, two, other = (baselines.random(train, query, seed=s).dataset.score.values for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


# the table


def planted(rng, n=20, q=6):
    effects, drawn = rng.normal(size=(q, n)), halves(50)(n)
    return effects, Ledger.of(drawn.included, drawn.included @ effects.T, train=range(n), query=range(q))


def test_the_table_sorts_methods_and_says_what_they_cost_and_what_is_missing():
    rng = np.random.default_rng(3)
    effects, ledger = planted(rng)
    truth = attribution(effects)

    def refuses():
        raise InputError("a model", "another model", "change it")

    methods = {
        "chance": attribution(rng.normal(size=effects.shape), unit="number"),
        "exact": attribution(effects, attributes={"seconds": 3.5}),
        "made now": lambda: attribution(effects + rng.normal(size=effects.shape)),
        "values": Values.of(effects.mean(axis=0), train=range(20), method="mean"),
        "refuses": refuses,
        "elsewhere": attribution(effects[:, :5]),
    }
    is_bad = effects.mean(axis=0) < np.quantile(effects.mean(axis=0), 0.2)
    made = compare(methods, ledger=ledger, truth=truth, is_bad=is_bad, noise_free=True, bootstrap=100)
    table = made.table.set_index("method")
    assert table.index[:2].tolist() == ["exact", "made now"]
    assert table.loc["exact", ["lds", "loo_pearson", "loo_spearman", "auroc", "slope"]].tolist() == pytest.approx(
        [1] * 5
    )
    assert table.loc["values", "auroc"] == 1
    assert table.loc["values", "lds"] < table.loc["made now", "lds"]
    assert np.isnan(table.loc["chance", "slope"])
    assert table.loc["exact", "seconds"] == 3.5
    assert 0 <= table.loc["made now", "seconds"] < 5
    assert np.isnan(table.loc["chance", "seconds"])
    assert "change it" in table.loc["refuses", "note"]
    assert table.loc["elsewhere", "note"].startswith("lds: Got scores of 5 training examples")
    assert np.isnan(table.loc["refuses", "lds"])
    assert made.judgements["exact"]["lds"].ceiling == 1
    pd.testing.assert_frame_equal(made.to_pandas(), made.table)
    text = str(made)
    assert "1.000 [1.000, 1.000]" in text
    assert "lds_lower" not in text
    assert "change it" in text
    assert "nan" not in text.lower()
    assert compare(methods, is_bad=is_bad, truth=truth, sort="auroc", bootstrap=0).sorted_by == "auroc"


def test_differences_between_methods_are_known_more_sharply_than_their_scores():
    rng = np.random.default_rng(4)
    drawn, effects = halves(60, repeats=2)(20), rng.normal(size=(10, 20))
    clean = drawn.included @ effects.T
    measured = clean + 2 * clean.std(axis=0) * rng.normal(size=clean.shape)
    ledger = Ledger.of(drawn.included, measured, train=range(20), query=range(10), seeds=drawn.seeds)
    near = effects + 0.3 * rng.normal(size=effects.shape)
    made = compare({"exact": attribution(effects), "near": attribution(near)}, ledger=ledger)
    row = made.versus("exact").iloc[0]
    scores = made.table.set_index("method")
    assert row["difference"] == pytest.approx(scores.loc["near", "lds"] - scores.loc["exact", "lds"])
    assert row["lower"] < row["difference"] < row["upper"]
    assert row["upper"] - row["lower"] < 0.6 * (scores.loc["exact", "lds_upper"] - scores.loc["exact", "lds_lower"])
    with pytest.raises(InputError, match="no linear datamodeling score of 'exat'"):
        made.versus("exat")


def test_metrics_of_ones_own_have_their_columns():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(100, 2))
    clean, bad = (X[:, 0] > 0).astype(int), rng.random(100) < 0.2
    data, query = (X, np.where(bad, 1 - clean, clean)), (X + 0.1, (X[:, 0] + 0.1 > 0).astype(int))
    recipe = SklearnRecipe(KNeighborsClassifier(1), measurement="correct")
    methods = {
        "knn_shapley": lambda: pp.KNNShapley(k=1).fit(data).values(query),
        "random": lambda: baselines.random(data, query),
    }
    made = compare(
        methods, is_bad=bad, metrics={"removal": lambda v: removal_curve(v, recipe, data, query)}, sort="auroc"
    )
    assert made.table["method"].tolist() == ["knn_shapley", "random"]
    assert made.table["removal_gain"][0] > max(0, made.table["removal_gain"][1])
    assert made.judgements["knn_shapley"]["removal"].kind == "removal"


def test_a_table_of_nothing_is_refused():
    values = Values.of(np.arange(3.0), train=range(3), method="made")
    for methods, settings, said in [
        ({}, {"is_bad": np.array([True, False, False])}, "0 methods"),
        ({"a": values}, {}, "0 metrics"),
        ({"a": values}, {"is_bad": np.array([True, False, False]), "sort": "auroch"}, "auroc"),
    ]:
        with pytest.raises(InputError, match=said):
            compare(methods, **settings)


def test_influence_beats_every_baseline_of_a_logistic_model():
    X, y = load_digits(return_X_y=True)
    keep = np.isin(y, [3, 8])
    X, y = X[keep] / 16, y[keep]
    train, query = (X[:150], y[:150]), (X[150:190], y[150:190])
    recipe = SklearnRecipe(LogisticRegression(C=0.1))
    methods = {
        "influence": lambda: pp.Influence().fit(recipe, train).score(query),
        "similarity": lambda: baselines.embedding_similarity(train, query, same_label=True),
        "loss": lambda: baselines.loss(recipe, train),
        "confidence": lambda: baselines.confidence(recipe, train),
        "random": lambda: baselines.random(train, query),
    }
    made = compare(methods, ledger=retrain(recipe, train, query, halves(60)), noise_free=True, bootstrap=100)
    table = made.table.set_index("method")
    assert table.index[0] == "influence"
    assert table.loc["influence", "lds_lower"] > table["lds_upper"].drop("influence").max()
    assert table.loc["random", "lds_lower"] < 0 < table.loc["random", "lds_upper"]


def test_every_name_of_the_room_resolves_and_judging_loads_no_torch():
    assert pp.evaluate.__all__ == sorted(pp.evaluate.__all__)
    for name in pp.evaluate.__all__:
        assert getattr(pp.evaluate, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        pp.evaluate.nothing
    code = (
        "import sys, proponent as pp\n"
        "for name in pp.evaluate.__all__:\n"
        "    if name != 'training_step': getattr(pp.evaluate, name)\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_an_estimator_is_taken_as_a_recipe():
    assert baselines.loss(Ridge(), ([[0.0], [1.0]], [0.0, 1.0])).value.shape == (2,)
