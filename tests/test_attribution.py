import numpy as np
import pandas as pd
import pytest

from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.examples import Examples


def made(n=4, q=3, ids=("a", "b", "c", "d")):
    rng = np.random.default_rng(0)
    train = Examples.of((rng.normal(size=(n, 2)), ["x", "y", "x", "y"][:n]), ids=list(ids), groups=["g", "g", "h", "h"])
    score = rng.normal(size=(q, n))
    return score, Attribution.of(
        score,
        query=[10, 20, 30],
        train=train,
        method="m",
        variables={"lower": score - 1},
        attributes={"settings": {"k": 1}},
    )


def test_ranking_agrees_with_sorting():
    score, scores = made()
    best = scores.proponents(query=20, k=4)
    expected = [i for i in np.argsort(-score[1]) if score[1, i] > 0]
    assert best["id"].tolist() == [list("abcd")[i] for i in expected]
    np.testing.assert_allclose(best["score"], score[1, expected])
    np.testing.assert_allclose(best["lower"], score[1, expected] - 1)
    worst = scores.opponents(query=20, k=4)
    assert set(worst["id"]) | set(best["id"]) == set("abcd")
    assert scores.top(query=20, k=1)["id"].tolist() == [list("abcd")[int(np.argmax(abs(score[1])))]]


def test_group_sums_are_sums():
    score, scores = made()
    total = scores.sum(["g", "g", "h", "h"])
    np.testing.assert_allclose(total.dataset["score"], np.stack([score[:, :2].sum(1), score[:, 2:].sum(1)], 1))


@pytest.mark.parametrize("ids", [("a", "b", "c", "d"), (1, 2, 3, 9)])
def test_saved_and_loaded_is_the_same(tmp_path, ids):
    score, scores = made(ids=ids)
    again = Attribution.load(scores.save(tmp_path / "a.zarr"))
    np.testing.assert_array_equal(again.dataset["score"], score)
    assert again.dataset["train"].to_numpy().tolist() == list(ids)
    assert again.dataset.attrs == scores.dataset.attrs
    pd.testing.assert_frame_equal(again.top(query=10, k=3), scores.top(query=10, k=3))
    scores.save(tmp_path / "a.zarr")
    values = Values.of(score[0], train=list(ids), method="v", variables={"stderr": score[1]})
    np.testing.assert_array_equal(Values.load(values.save(tmp_path / "v.zarr")).value, score[0])


def test_values_rank_and_ignore_nan():
    values = Values.of(np.array([1.0, np.nan, -1.0]), train=["a", "b", "c"], method="v")
    assert values.lowest(3)["id"].tolist() == ["c", "a"]
    assert values.sum(["u", "u", "w"]).to_dict() == {"u": 1.0, "w": -1.0}


def test_wrong_shapes_and_names_are_told():
    _, scores = made()
    with pytest.raises(InputError, match=r"scores of shape \(2, 2\)"):
        Attribution.of(np.zeros((2, 2)), query=[1], train=[1, 2], method="m")
    with pytest.raises(InputError, match="no query 99"):
        scores.proponents(query=99)
    with pytest.raises(InputError, match="nothing at"):
        Attribution.load("nowhere.zarr")
