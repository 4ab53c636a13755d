"""From typed columns to a matrix: each kind's features, their names, determinism, and that a linear model learns from them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression

from proponent.audit.encode import encode, encoder, read_features
from proponent.audit.read import Table, read_like, read_table
from proponent.audit.transforms import SignedLog
from proponent.errors import InputError

WORDS = np.array(["free", "win", "call", "later", "home", "lunch", "ok", "see", "you", "now"])


def table_of(folder: Path, **columns: object) -> Table:
    frame = pd.DataFrame(columns)
    if "y" not in frame:
        frame["y"] = np.where(np.arange(len(frame)) % 2 == 0, "a", "b")
    frame.to_csv(folder / "t.csv", index=False)
    return read_table(folder / "t.csv", label="y")


def mixed(folder: Path, n: int = 300) -> Table:
    rng = np.random.default_rng(0)
    text = [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(n)]
    height = rng.normal(1.7, 0.1, n)
    height[::17] = np.nan
    job = rng.choice(["cook", "nurse", None], n, p=[0.5, 0.4, 0.1])
    job[:2] = "rare"
    when = pd.Series(pd.date_range("2019-01-01", periods=n, freq="31h").strftime("%Y-%m-%d"))
    when[5] = None
    return table_of(
        folder,
        row=np.arange(n),
        height=height,
        gain=np.where(rng.random(n) < 0.9, 0, rng.lognormal(8, 1, n)).round(),
        job=job,
        when=when,
        text=text,
    )


def column(encoded: object, name: str) -> np.ndarray:
    matrix, names = encoded.matrix, encoded.names  # type: ignore[attr-defined]
    dense = matrix.toarray() if sparse.issparse(matrix) else matrix
    return np.asarray(dense[:, names.index(name)])


def test_a_mixed_table(tmp_path: Path) -> None:
    table = mixed(tmp_path)
    encoded = encode(table)
    assert encoded.matrix.shape == (300, len(encoded.names)) and len(set(encoded.names)) == len(encoded.names)
    data = encoded.matrix.data if sparse.issparse(encoded.matrix) else encoded.matrix
    assert data.dtype == np.float64 and np.isfinite(data).all()
    height = table.frame["height"]
    filled = height.fillna(height.median())
    np.testing.assert_allclose(column(encoded, "height"), (filled - filled.mean()) / filled.std(ddof=0))
    np.testing.assert_array_equal(column(encoded, "height is missing"), height.isna())
    np.testing.assert_array_equal(column(encoded, "when is missing"), table.frame["when"].isna())
    np.testing.assert_array_equal(column(encoded, "job = cook"), table.frame["job"] == "cook")
    np.testing.assert_array_equal(column(encoded, "job = (missing)"), table.frame["job"].isna())
    np.testing.assert_array_equal(column(encoded, "job = (rare)"), table.frame["job"] == "rare")
    assert not any("row" in name for name in encoded.names)
    assert encoded.used_as["row"] == "not used: identifier"
    assert "logarithmic" in encoded.used_as["gain"] and "logarithmic" not in encoded.used_as["height"]
    assert "indicator" in encoded.used_as["height"] and "1 of them rare" in encoded.used_as["job"]
    assert encoded.used_as["when"].startswith("time, year") and "4 counts" in encoded.used_as["text"]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    def bytes_of(folder: Path) -> tuple[bytes, ...]:
        matrix = sparse.csr_matrix(encode(mixed(folder)).matrix)
        return matrix.data.tobytes(), matrix.indices.tobytes(), matrix.indptr.tobytes()

    assert bytes_of(tmp_path) == bytes_of(tmp_path)


def test_the_encoder_is_a_plain_scikit_learn_object(tmp_path: Path) -> None:
    table = mixed(tmp_path)
    unfitted = encoder(table)
    fitted = clone(unfitted).fit(table.inputs)
    again = pickle.loads(pickle.dumps(fitted))
    once = sparse.csr_matrix(encode(table, fitted).matrix).toarray()
    np.testing.assert_array_equal(once, sparse.csr_matrix(encode(table, again).matrix).toarray())
    np.testing.assert_allclose(once, sparse.csr_matrix(encode(table).matrix).toarray(), rtol=1e-12)


def test_held_out_rows_take_the_training_rows_scale(tmp_path: Path) -> None:
    train = mixed(tmp_path)
    encoded = encode(train)
    new = pd.read_csv(tmp_path / "t.csv").head(4)
    new["height"], new["job"], new["text"] = [np.nan, 1.7, 1e6, 1.7], "pilot", "words never seen before today"
    new["when"] = ["2031-05-01", None, "2019-01-01", "2019-01-01"]
    new.to_csv(tmp_path / "new.csv", index=False)
    held = encode(read_like(tmp_path / "new.csv", train), encoded.encoder)
    assert held.names == encoded.names and held.matrix.shape[0] == 4
    dense = held.matrix.toarray() if sparse.issparse(held.matrix) else held.matrix
    assert np.isfinite(dense).all()
    mean, deviation = (
        train.frame["height"].fillna(train.frame["height"].median()).agg(["mean", lambda v: v.std(ddof=0)])
    )
    assert column(held, "height")[2] == pytest.approx((1e6 - mean) / deviation)
    assert column(held, "job = (rare)").tolist() == [1, 1, 1, 1]


def test_dates(tmp_path: Path) -> None:
    when = pd.date_range("2019-01-01", periods=60, freq="D")
    encoded = encode(table_of(tmp_path, when=when.strftime("%Y-%m-%d")))
    sine, cosine = column(encoded, "when: weekday sin"), column(encoded, "when: weekday cos")
    np.testing.assert_allclose(sine[:7], sine[7:14])
    assert np.linalg.matrix_rank(np.column_stack([sine, cosine])) == 2
    circle = np.column_stack([sine, cosine])[:7] * encoded.encoder.named_transformers_["date"][-1].scale_[-2:]
    np.testing.assert_allclose(np.linalg.norm(circle - circle.mean(axis=0), axis=1), 1)
    assert (np.diff(column(encoded, "when: time")) > 0).all()
    assert np.unique(column(encoded, "when: month sin").round(9)).size == 3
    assert (column(encoded, "when: year") == 0).all()


def test_signed_log_does_not_depend_on_the_unit() -> None:
    x = np.random.default_rng(0).lognormal(0, 3, (200, 2)) * [1, -1]
    x[::3] = 0
    one = SignedLog().fit_transform(x)
    np.testing.assert_allclose(one, SignedLog().fit_transform(x * 1e-5))
    np.testing.assert_allclose(one, np.sign(x) * np.log1p(np.abs(x) / np.median(np.abs(x[x[:, 0] != 0]), axis=0)))
    assert np.isfinite(SignedLog().fit(np.full((3, 1), 1e-300)).transform(np.full((1, 1), 1e300))).all()
    assert SignedLog().fit_transform(np.zeros((3, 1))).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_heavy_tails_are_found_in_any_unit(tmp_path: Path, scale: float) -> None:
    rng = np.random.default_rng(0)
    table = table_of(
        tmp_path, heavy=rng.lognormal(0, 2, 300) * scale, light=rng.normal(5, 1, 300) * scale, binary=np.arange(300) < 3
    )
    used = encode(table).used_as
    assert "logarithmic" in used["heavy"] and "logarithmic" not in used["light"] + used["binary"]


def test_many_levels_are_capped(tmp_path: Path) -> None:
    levels = [f"w{int(v)}" for v in np.random.default_rng(0).zipf(1.3, 2000) % 700]
    table = table_of(tmp_path, word=levels)
    assert len(encode(table).names) <= 50
    assert len(encode(table, max_categories=7).names) == 7
    assert column(encode(table, max_categories=7), "word = w1").sum() == levels.count("w1")


def test_terms_are_capped_and_rows_have_unit_length(tmp_path: Path) -> None:
    table = mixed(tmp_path)
    encoded = encode(table, max_terms=20)
    at = [j for j, name in enumerate(encoded.names) if name.startswith("text: '")]
    assert len(at) == 20
    dense = encoded.matrix.toarray() if sparse.issparse(encoded.matrix) else encoded.matrix
    np.testing.assert_allclose(np.linalg.norm(dense[:, at], axis=1), 1)


def test_dense_where_small_and_sparse_where_wide(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(600)])
    wide = encode(table_of(tmp_path, text=[" ".join(rng.choice(vocabulary, 9)) for _ in range(400)]))
    assert sparse.issparse(wide.matrix) and wide.matrix.format == "csr" and wide.matrix.shape[1] > 300
    small = encode(table_of(tmp_path, job=rng.choice(["a", "b", "c"], 400)))
    assert isinstance(small.matrix, np.ndarray) and small.matrix.flags["C_CONTIGUOUS"]


def test_columns_that_lose_all_values_in_a_part_keep_their_place(tmp_path: Path) -> None:
    table = mixed(tmp_path)
    part = replace(
        table, frame=table.frame.head(40).assign(height=np.nan), labels=table.labels[:40], ids=table.ids[:40]
    )
    encoded = encode(part)
    assert (column(encoded, "height") == 0).all() and (column(encoded, "height is missing") == 1).all()


def test_identifiers_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="identifiers only"):
        encode(table_of(tmp_path, row=np.arange(50)))


def test_embeddings_replace_the_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(40) % 7, "y": ["a", "b", "a", "b"] * 10})
    frame.loc[3, "y"] = None
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = read_table(tmp_path / "t.csv", label="y")
    embeddings = np.random.default_rng(0).normal(3, 2, (40, 5)).astype(np.float32)
    np.save(tmp_path / "e.npy", embeddings)
    features = read_features(tmp_path / "e.npy", table)
    np.testing.assert_array_equal(features, np.delete(embeddings, 3, axis=0))
    encoded = encode(table, features=features)
    np.testing.assert_allclose(encoded.matrix.mean(axis=0), 0, atol=1e-9)
    assert encoded.names[:2] == ("feature 0", "feature 1") and "embeddings" in encoded.used_as["x"]
    np.testing.assert_array_equal(encode(table, encoded.encoder, features=features).matrix, encoded.matrix)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((7, 3)), r"shape \(7, 3\).*\(30, d\)"),
        (np.ones(30), r"shape \(30,\)"),
        (np.full((30, 2), np.nan), "30 rows .* with NaN or infinity: 0, 1, 2"),
        (np.array([["a"]] * 30), "without numbers"),
        (np.array([[None]] * 30), "no plain array"),
    ],
)
def test_bad_embeddings_are_refused_in_words(tmp_path: Path, array: np.ndarray, says: str) -> None:
    table = table_of(tmp_path, x=np.arange(30) % 7)
    np.save(tmp_path / "e.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=says):
        read_features(tmp_path / "e.npy", table)
    with pytest.raises(InputError, match="no file"):
        read_features(tmp_path / "absent.npy", table)


def test_a_linear_model_learns_from_numbers_and_from_images(tmp_path: Path) -> None:
    cancer = load_breast_cancer(as_frame=True)
    cancer.data.assign(y=cancer.target)[::2].to_csv(tmp_path / "train.csv", index=False)
    cancer.data.assign(y=cancer.target)[1::2].to_csv(tmp_path / "held.csv", index=False)
    train = read_table(tmp_path / "train.csv", label="y")
    held = read_like(tmp_path / "held.csv", train)
    encoded = encode(train)
    model = LogisticRegression(max_iter=1000).fit(encoded.matrix, train.labels)
    assert model.score(encode(held, encoded.encoder).matrix, held.labels) > 0.95


def test_images_become_components(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    digits = load_digits()
    for i in range(400):
        folder = tmp_path / ("train" if i < 300 else "held") / str(digits.target[i])
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(folder / f"{i}.png")
    train = read_table(tmp_path / "train", label="digit")
    held = read_like(tmp_path / "held", train)
    encoded = encode(train)
    assert encoded.matrix.shape == (300, 64) and encoded.names[0] == "component 1"
    assert encoded.used_as == {"image": "64 principal components of the pixels"}
    model = LogisticRegression(max_iter=1000).fit(encoded.matrix, train.labels)
    assert model.score(encode(held, encoded.encoder).matrix, held.labels) > 0.9
