import warnings

import numpy as np
import pytest

from proponent.errors import FingerprintMismatch, ProponentWarning
from proponent.store.stages import Stages


def test_a_stage_is_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(3), "names": np.array(["x", "yy"])}

    first = Stages.open(tmp_path, {"data": "d"}).get("one", compute)
    again = Stages.open(tmp_path, {"data": "d"}).get("one", compute)
    assert len(calls) == 1
    np.testing.assert_array_equal(first["a"], again["a"])
    assert again["names"].tolist() == ["x", "yy"]


def test_a_damaged_stage_is_computed_again(tmp_path):
    stages = Stages.open(tmp_path, {"data": "d"})
    stages.get("one", lambda: {"a": np.arange(3)})
    content = (tmp_path / "one.npz").read_bytes()
    (tmp_path / "one.npz").write_bytes(content[:-40])
    assert stages.get("one", lambda: {"a": np.arange(4)})["a"].tolist() == [0, 1, 2, 3]


def test_other_data_is_refused(tmp_path):
    Stages.open(tmp_path, {"data": "d", "seed": 9})  # nothing was made from this
    Stages.open(tmp_path, {"data": "d", "seed": 0}).get("one", lambda: {"a": np.arange(3)})
    with pytest.raises(FingerprintMismatch, match="another seed"):
        Stages.open(tmp_path, {"data": "d", "seed": 1})


def test_the_warnings_of_a_stage_are_given_again(tmp_path):
    def compute():
        warnings.warn("mind this", ProponentWarning, stacklevel=2)
        return {"a": np.arange(3)}

    for _ in range(2):
        with pytest.warns(ProponentWarning, match="mind this"):
            found = Stages.open(tmp_path, {"data": "d"}).get("one", compute)
        assert list(found) == ["a"]
