"""A planted domain mismatch is found first, and clean data raise no alarm."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from proponent.applications.slices import MISSING, OTHER, Factors, find_misleading_slices, slices
from proponent.errors import InputError

CITIES = ["Bern", "Genf", "Chur", "Thun"]


def people(n, rng):
    """Rows whose label depends on two numbers and the city."""
    frame = pd.DataFrame(
        {
            "city": rng.choice(CITIES, n, p=[0.4, 0.3, 0.2, 0.1]),
            "age": rng.integers(18, 90, n),
            "income": rng.normal(size=n),
            "colour": rng.choice(["red", "blue", "green"], n),
        }
    )
    logit = (
        1.2 * frame["income"]
        + (frame["age"] - 54) / 20
        + frame["city"].map({"Bern": 1, "Genf": -1, "Chur": 0, "Thun": 0})
    )
    return frame, (rng.random(n) < expit(logit).to_numpy()).astype(float)


def encoded(frame):
    numbers = np.column_stack([(frame["age"] - 54) / 20, frame["income"]])
    levels = [
        (frame[c] == v).to_numpy(float)
        for c, vs in (("city", CITIES), ("colour", ["red", "blue", "green"]))
        for v in vs
    ]
    return np.column_stack([numbers, *levels, np.ones(len(frame))])


def fit(X, y, l2, rows=None):
    """Logistic regression by Newton steps: the mean over len(y) rows of the losses of `rows`, plus l2 / 2 |w|²."""
    w, n = np.zeros(X.shape[1]), len(y)
    keep = np.ones(n) if rows is None else rows.astype(float)
    for _ in range(30):
        p = expit(X @ w)
        H = (X.T * (keep * p * (1 - p))) @ X / n + l2 * np.eye(len(w))
        w = w - np.linalg.solve(H, X.T @ (keep * (p - y)) / n + l2 * w)
    return w, H


def influence(X, y, Xq, yq, l2=0.01):
    """score[q, i] = g_q · H⁻¹ g_i / n, the predicted rise of minus the loss of q by training on i."""
    w, H = fit(X, y, l2)
    g, gq = X * (expit(X @ w) - y)[:, None], Xq * (expit(Xq @ w) - yq)[:, None]
    return Factors(train=g / len(y), heldout=np.linalg.solve(H, gq.T).T)


def test_a_slice_with_flipped_labels_is_found_first():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        (train, y), (heldout, yq) = people(1500, rng), people(800, rng)
        thun = (train["city"] == "Thun").to_numpy()
        flip = thun & (rng.random(len(y)) < 0.85)
        y = np.where(flip, 1 - (train["income"] > 0), y)
        yq = np.where(heldout["city"] == "Thun", heldout["income"] > 0, yq).astype(float)
        found = find_misleading_slices(
            train, heldout, influence(encoded(train), y, encoded(heldout), yq), labels=(y, yq)
        )
        worst = found.iloc[0]
        assert (worst["column"], worst["value"]) == ("city", "Thun")
        assert worst["flagged"]
        assert worst["effect"] < worst["effect_upper"] < 0
        assert worst["n_train"] == thun.sum()
        assert "raise the mean loss" in worst["reason"]
        assert f"mean label is {y[thun].mean():.4g}, that of the held-out rows" in worst["reason"]


def test_a_changed_balance_is_found_first_and_named():
    rng = np.random.default_rng(0)
    (train, y), (heldout, yq) = people(3000, rng), people(1500, rng)
    y = np.where((train["city"] == "Thun") & (rng.random(3000) < 0.7), 1.0, y)
    effects = influence(encoded(train), y, encoded(heldout), yq)
    classes = np.array(["no", "yes"])
    found = find_misleading_slices(train, heldout, effects, labels=(classes[y.astype(int)], classes[yq.astype(int)]))
    assert found.iloc[0]["value"] == "Thun"
    assert found.iloc[0]["flagged"]
    assert "are labelled" in found.iloc[0]["reason"]


def test_the_effect_predicts_refitting_without_the_slice():
    rng = np.random.default_rng(1)
    (train, y), (heldout, yq) = people(3000, rng), people(1500, rng)
    y = np.where((train["city"] == "Thun") & (rng.random(3000) < 0.7), 1.0, y)
    X, Xq, l2 = encoded(train), encoded(heldout), 0.01
    found = find_misleading_slices(train, heldout, influence(X, y, Xq, yq, l2))
    truth = []
    for s in slices(train, heldout):
        w, _ = fit(X, y, l2)
        without, _ = fit(X, y, l2, ~s.train)
        loss = [np.logaddexp(0, -(2 * yq - 1) * (Xq @ v))[s.heldout].mean() for v in (w, without)]
        truth.append({"column": s.column, "value": s.value, "truth": loss[1] - loss[0]})
    both = found.merge(pd.DataFrame(truth), on=["column", "value"])
    assert len(both) == len(found)
    assert both["effect"].corr(both["truth"], method="spearman") > 0.8
    worst = both.iloc[0]
    assert 0.2 < worst["effect"] / worst["truth"] < 1.5


def test_clean_data_raise_no_alarm():
    alarms = []
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        (train, y), (heldout, yq) = people(500, rng), people(500, rng)
        found = find_misleading_slices(train, heldout, influence(encoded(train), y, encoded(heldout), yq))
        alarms.append(found["flagged"].any())
    assert np.mean(alarms) <= 0.05


def test_numbers_agree_with_a_matrix_of_scores():
    rng = np.random.default_rng(2)
    A, B = rng.normal(size=(60, 3)), rng.normal(size=(40, 3))
    train, heldout = pd.DataFrame({"x": list("ab") * 30}), pd.DataFrame({"x": list("ab") * 20})
    row = find_misleading_slices(train, heldout, Factors(A, B)).set_index("value").loc["a"]
    scores = (B @ A.T)[::2, ::2]
    error = np.sqrt(scores.sum(1).var(ddof=1) / 20 + 30 * scores.mean(0).var(ddof=1))
    assert row["effect"] == pytest.approx(scores.sum(1).mean())
    assert row["z"] == pytest.approx(row["effect"] / error)
    assert row["effect_elsewhere"] == pytest.approx((B @ A.T)[1::2, ::2].sum(1).mean())
    assert row["effect_upper"] - row["effect"] == pytest.approx(
        2.0930 * error, rel=1e-4
    )  # t with 19 degrees of freedom
    assert (row["n_train"], row["n_heldout"], row["share"]) == (30, 20, 0.5)


def test_the_reason_names_the_label_that_differs_most():
    frame = pd.DataFrame({"x": list("ab") * 40})
    effects = Factors(np.ones((80, 1)), np.ones((80, 1)))
    mine = np.array(["u"] * 40 + ["v"] * 30 + ["w"] * 10)
    theirs = np.array(["u"] * 36 + ["v"] * 8 + ["w"] * 36)
    reason = find_misleading_slices(frame, frame, effects, labels=(mine, theirs))["reason"][0]
    assert reason.endswith("12% of them are labelled w, of the held-out rows 45%.")


def test_levels_ranges_rare_and_missing_values():
    train = pd.DataFrame(
        {
            "level": ["a"] * 50 + ["b"] * 40 + ["c"] * 4 + ["d"] * 6,
            "number": [np.nan] * 20 + list(range(80)),
            "flag": [True, False] * 50,
            "name": [f"n{i}" for i in range(100)],
        }
    )
    heldout = train.assign(level=["a"] * 50 + ["new"] * 50)
    got = {(s.column, s.value): (int(s.train.sum()), int(s.heldout.sum())) for s in slices(train, heldout, bins=4)}
    assert got == {
        ("level", "a"): (50, 50),
        ("level", OTHER): (10, 50),
        ("number", "≤ 19.75"): (20, 20),
        ("number", "19.75 to 39.5"): (20, 20),
        ("number", "39.5 to 59.25"): (20, 20),
        ("number", "> 59.25"): (20, 20),
        ("number", MISSING): (20, 20),
        ("flag", "True"): (50, 50),
        ("flag", "False"): (50, 50),
    }


def test_no_slice_no_row_and_wrong_input_is_refused():
    frame = pd.DataFrame({"x": ["a"] * 20})
    assert find_misleading_slices(frame, frame, Factors(np.ones((20, 1)), np.ones((20, 1)))).empty
    with pytest.raises(InputError, match=r"columns that differ \(\['x', 'y'\]\)"):
        find_misleading_slices(frame, frame.rename(columns={"x": "y"}), Factors(np.ones((20, 1)), np.ones((20, 1))))
    two = pd.DataFrame({"x": list("ab") * 10})
    with pytest.raises(InputError, match="3 held-out rows for a table of 20"):
        find_misleading_slices(two, two, Factors(np.ones((20, 1)), np.ones((3, 1))))
