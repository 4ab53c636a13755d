import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from proponent.errors import InputError
from proponent.examples import Examples


def test_arrays_frames_lists_and_sparse():
    frame = pd.DataFrame({"age": [1, 2], "city": ["a", None], "y": [0, 1]}, index=["r1", "r2"])
    from_frame = Examples.of(frame, label="y")
    assert from_frame.ids.tolist() == ["r1", "r2"] and from_frame.labels.tolist() == [0, 1]
    assert from_frame.describe("r1").fields == {"age": "1", "city": "a", "label": "0"}
    texts = Examples.of((["hello", "<b>"], [0, 1]))
    assert texts.describe(1).kind == "text" and texts.describe(1).text == "<b>"
    matrix = Examples.of(sparse.csr_matrix([[0, 2.0], [1.0, 0]]))
    assert matrix.describe(0).fields == {"x1": "2"}
    assert Examples.of(matrix) is matrix
    image = Examples(np.arange(8.0).reshape(2, 4), np.arange(2), image_shape=(2, 2))
    assert image.describe(1).image.tolist() == [[4, 5], [6, 7]]


class MapStyle:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return np.full(2, float(i)), np.int64(i % 2)


class HubStyle:
    column_names = ("text", "label")

    def to_pandas(self):
        return pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})


def test_datasets_of_other_libraries_without_importing_them():
    examples = Examples.of(MapStyle())
    assert examples.inputs.shape == (3, 2) and examples.labels.tolist() == [0, 1, 0]
    assert Examples.of(HubStyle(), label="label").labels.tolist() == [0, 1]


def test_take_and_positions():
    examples = Examples.of((np.arange(10.0).reshape(5, 2), list("abcde")), ids=[5, 4, 3, 2, 1], groups=list("xxyyz"))
    part = examples.take(examples.positions([3, 5]))
    assert part.ids.tolist() == [3, 5] and part.labels.tolist() == ["c", "a"] and part.groups.tolist() == ["y", "x"]
    with pytest.raises(InputError, match=r"unknown ids \[99\]"):
        examples.positions([99])


def test_fingerprint_sees_every_part():
    x = np.arange(6.0).reshape(3, 2)
    base = Examples.of((x, [0, 1, 0]))
    assert base.fingerprint() == Examples.of((x.copy(), [0, 1, 0])).fingerprint()
    changed = [
        Examples.of((x + 1e-9, [0, 1, 0])),
        Examples.of((x, [0, 1, 1])),
        Examples.of((x, [0, 1, 0]), ids=[2, 1, 0]),
        Examples.of((x, [0, 1, 0]), weights=[1, 1, 2]),
        Examples.of((sparse.csr_matrix(x), [0, 1, 0])),
    ]
    assert len({base.fingerprint(), *(e.fingerprint() for e in changed)}) == len(changed) + 1


def test_bad_examples_are_told():
    with pytest.raises(InputError, match="2 labels for 3 examples"):
        Examples.of((np.zeros((3, 1)), [0, 1]))
    with pytest.raises(InputError, match="repeated ids, such as 7"):
        Examples.of(np.zeros((3, 1)), ids=[7, 7, 8])
    with pytest.raises(InputError, match="negative or non-finite sample weights"):
        Examples.of(np.zeros((2, 1)), weights=[1, np.nan])
