"""Repeats, contradictions and leaks are found where they were planted, and chance twins are not made much of."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from proponent.applications.duplicates import (
    Rows,
    chance_of_twin,
    content_keys,
    exact_duplicates,
    find_duplicates,
)
from proponent.applications.near_duplicates import near_duplicates
from proponent.errors import InputError


def planted(X, n_pairs, size, rng):
    """X with the last n_pairs rows made near copies of the first ones, `size` away."""
    u = rng.normal(size=(n_pairs, X.shape[1]))
    X = X.copy()
    X[-n_pairs:] = X[:n_pairs] + size * u / np.linalg.norm(u, axis=1, keepdims=True)
    return X, {(i, len(X) - n_pairs + i) for i in range(n_pairs)}


def brute(X, threshold):
    d = np.array([np.linalg.norm(X - x, axis=1) for x in X])
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(d <= threshold), strict=True) if i < j}


def as_set(pairs):
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


DATA = {
    "isotropic": lambda rng: rng.normal(size=(3000, 60)),
    "decaying": lambda rng: rng.normal(size=(3000, 60)) * np.arange(1, 61) ** -1.0,
    "shifted": lambda rng: rng.normal(size=(3000, 60)) + 300,
    "few columns": lambda rng: rng.normal(size=(3000, 4)),
    "heavy tails": lambda rng: rng.standard_t(2.5, size=(3000, 30)),
}


@pytest.mark.parametrize("name", DATA)
def test_near_duplicates_are_found_and_others_are_not(name):
    rng = np.random.default_rng(1)
    X = DATA[name](rng)
    size = 0.5 * near_duplicates(X).threshold
    X, want = planted(X, 60, size, rng)
    got = as_set(near_duplicates(X))
    assert len(want & got) >= 0.95 * len(want)
    assert len(got - want) <= 5


def test_screening_misses_at_most_five_percent_of_what_brute_force_finds(monkeypatch):
    monkeypatch.setattr("proponent.applications.near_duplicates.BLOCK", 32)
    rng = np.random.default_rng(2)
    X = np.repeat(rng.normal(size=(300, 40)), 2, axis=0) + 0.3 * rng.normal(size=(600, 40))
    threshold = 2.7
    want = brute(X, threshold)
    got = as_set(near_duplicates(X, threshold=threshold))
    assert 100 < len(want) < 300
    assert got <= want
    assert len(got) >= 0.95 * len(want)


def test_tree_finds_what_brute_force_finds():
    X = np.random.default_rng(3).normal(size=(500, 3))
    assert as_set(near_duplicates(X, threshold=0.1)) == brute(X, 0.1)


@pytest.mark.parametrize("many", [3e8, 0], ids=["shared rare entries", "screened"])
def test_sparse_cosine_finds_what_brute_force_finds(many, monkeypatch):
    monkeypatch.setattr("proponent.applications.near_duplicates.MANY", many)
    rng = np.random.default_rng(4)
    X = sparse.random_array((400, 2000), density=0.01, rng=rng, format="csr")
    other = X[:80].copy()
    other.data *= rng.uniform(0.6, 1.4, size=other.nnz) * (rng.random(other.nnz) > 0.08)  # some words are gone
    other.eliminate_zeros()
    X = sparse.vstack([X, other]).tocsr()
    U = X.toarray() / np.linalg.norm(X.toarray(), axis=1, keepdims=True)
    want = brute(U, np.sqrt(0.2))
    got = as_set(near_duplicates(X))
    assert 20 < len(want) < 80
    assert got <= want
    assert len(got) == len(want) if many else len(got) >= 0.95 * len(want)


def test_equal_features_are_near_duplicates_of_the_first():
    X = np.random.default_rng(0).normal(size=(50, 5))
    X[[10, 20]] = X[3]
    pairs = near_duplicates(X)
    assert as_set(pairs) == {(3, 10), (3, 20)}
    assert pairs.distance.tolist() == [0, 0]


def test_rows_of_few_values_are_not_near_each_other():
    X = np.random.default_rng(0).integers(0, 2, size=(400, 14)).astype(float)
    pairs = near_duplicates(X)
    assert (pairs.distance == 0).all()


def test_numbers_drawn_at_random_are_hardly_ever_near_duplicates():
    found = [
        len(near_duplicates(np.random.default_rng(s).normal(size=(2000, d))).first)
        for s in range(3)
        for d in (1, 2, 6, 20)
    ]
    assert np.mean(found) < 1.5


def test_same_seed_same_pairs():
    X, _ = planted(np.random.default_rng(5).normal(size=(500, 30)), 20, 0.5, np.random.default_rng(6))
    a, b = near_duplicates(X, seed=3), near_duplicates(X, seed=3)
    assert as_set(a) == as_set(b)
    assert a.threshold == b.threshold


def test_non_finite_features_are_refused():
    with pytest.raises(InputError, match="finite"):
        near_duplicates(np.array([[np.nan, 1.0], [0.0, 1.0]]))


def test_content_of_tables_texts_and_arrays():
    frame = pd.DataFrame({"a": ["Yes ", "yes", "no", None, None], "b": [1.0, 1.0, 1.0, np.nan, np.nan]})
    a, b, c, d, e = exact_duplicates(content_keys(frame)).tolist()
    assert (a == b, d == e, a != d, c) == (True, True, True, -1)
    images = np.zeros((3, 4, 4))
    images[1, 0, 0] = 1
    assert (exact_duplicates(content_keys(images)) >= 0).tolist() == [True, False, True]
    matrix = sparse.csr_array(np.array([[0, 1.0], [1, 0], [0, 1]]))
    assert (exact_duplicates(content_keys(matrix)) >= 0).tolist() == [True, False, True]
    categories = pd.DataFrame({"a": pd.Categorical(["x", "y", "x"])})
    assert (exact_duplicates(content_keys(categories)) >= 0).tolist() == [True, False, True]


def unique_texts(n, rng):
    words = np.array([f"w{i}" for i in range(500)])
    return [" ".join(rng.choice(words, 8)) for _ in range(n)]


def test_kinds_partners_and_leaks():
    texts = unique_texts(100, np.random.default_rng(0))
    texts[50], texts[60], texts[61] = texts[3].upper(), texts[4], texts[4]
    labels = np.array(["ham"] * 100, dtype="U4")
    labels[60] = "spam"
    held = [*unique_texts(5, np.random.default_rng(1)), texts[9]]
    found = find_duplicates(
        Rows(texts, labels, name=lambda i: f"#{i}"), Rows(held, np.array(["ham"] * 6), name=lambda i: f"h{i}")
    )
    table = found.table.set_index("row")
    assert table["kind"].to_dict() == {
        3: "duplicate",
        50: "duplicate",
        4: "conflict",
        60: "conflict",
        61: "conflict",
        9: "duplicate",
    }
    assert table.loc[3, "partners"] == (50,)
    assert table.loc[9, "heldout_partners"] == (5,)
    assert table.loc[60, "partners"] == (4, 61)
    assert table.loc[4, "cluster"] == table.loc[61, "cluster"] != table.loc[3, "cluster"]
    assert table.loc[60, "severity"] > table.loc[61, "severity"]  # one spam against two ham
    assert table.loc[9, "severity"] > table.loc[3, "severity"]  # a leak is worse than a repeat
    assert "training row #3, with the same label" in table.loc[50, "reason"]
    assert "spam here, ham there (2 of 2)" in table.loc[60, "reason"]
    assert "held-out row h5" in table.loc[9, "reason"]
    assert found.twin_rate == pytest.approx(0.05)
    assert found.table["severity"].is_monotonic_decreasing


def test_near_duplicates_with_another_label_are_conflicts():
    X, _ = planted(np.random.default_rng(5).normal(size=(300, 8)), 2, 0.01, np.random.default_rng(6))
    y = np.zeros(300, dtype=int)
    y[0] = 1
    table = find_duplicates(Rows(X, y, X)).table.set_index("row")
    assert table["kind"].to_dict() == {0: "conflict", 298: "conflict", 1: "near_duplicate", 299: "near_duplicate"}
    assert table.loc[1, "distance"] == pytest.approx(0.01)
    assert "Nearly the same" in table.loc[1, "reason"]
    values = find_duplicates(Rows(X, y.astype(float), X), label_tolerance=2.0).table
    assert set(values["kind"]) == {"near_duplicate"}


def test_an_exact_twin_is_not_listed_as_a_near_one():
    X = np.random.default_rng(5).normal(size=(100, 8))
    X[7] = X[2]
    found = find_duplicates(Rows(X, None, X))
    assert found.table["kind"].tolist() == ["duplicate", "duplicate"]
    assert found.near_rate == 0


def test_twins_are_the_norm_in_a_table_of_few_categories():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({c: rng.choice(list("abc"), 1000) for c in "uvwxy"})
    found = find_duplicates(Rows(frame, rng.choice(["yes", "no"], 1000)))
    assert found.twin_rate == pytest.approx(found.chance_rate, abs=0.03)
    assert found.twin_rate > 0.9
    assert found.table["severity"].max() < 0.05
    assert found.table["reason"].str.contains("common in this data").all()


def test_copies_of_texts_are_not_put_down_to_chance():
    texts = unique_texts(50, np.random.default_rng(0)) * 2
    found = find_duplicates(Rows(texts))
    assert (found.twin_rate, found.chance_rate) == (1.0, 0.0)
    assert (found.table["severity"] == 0.4).all()


def test_chance_of_twin_is_the_rate_under_independence():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({c: rng.choice(30, 2000, p=np.arange(1, 31) / 465) for c in "abc"})
    observed = (exact_duplicates(content_keys(frame)) >= 0).mean()
    assert chance_of_twin(frame).mean() == pytest.approx(observed, abs=0.03)
    assert chance_of_twin(["a", "a"]).tolist() == [0, 0]


def test_mismatched_lengths_are_refused():
    with pytest.raises(InputError, match="2 labels for 3 rows"):
        Rows(["a", "b", "c"], np.array([0, 1]))


def test_no_rows_and_no_repeats():
    assert find_duplicates(Rows(["a", "b"])).table.empty
    assert find_duplicates(Rows(np.zeros((0, 3)))).table.empty
