"""Retraining: subsets, the ledger, and runs that survive being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

import proponent as pp
from proponent.errors import FingerprintMismatch, InputError, ProponentError
from proponent.retrain.game import Game
from proponent.retrain.ledger import Ledger
from proponent.retrain.recipe import FunctionRecipe
from proponent.retrain.run import Interrupted, retrain
from proponent.retrain.subsets import (
    Subsets,
    all_subsets,
    bernoulli,
    bootstraps,
    each_left_out,
    fractions,
    full,
    groups_left_out,
    halves,
    permutations,
    without,
)
from proponent.retrain.trained import Trained, open_ledger

X, Y = make_classification(60, 6, random_state=0)
TRAIN, QUERY = (X[:40], Y[:40]), (X[40:], Y[40:])
NAMES = np.array(["red", "rosé", "white"])[np.arange(60) % 3]
LINEAR = {
    "two classes": (LogisticRegression(), Y),
    "three classes after a scaler": (make_pipeline(StandardScaler(), LogisticRegression()), NAMES),
    "no penalty, after a scaler": (make_pipeline(StandardScaler(), LogisticRegression(C=np.inf, max_iter=10_000)), Y),
    "L1": (LogisticRegression(l1_ratio=1.0, solver="saga", max_iter=10_000), Y),
    "ridge": (Ridge(), X[:, 0] + Y),
    "least squares after a scaler": (make_pipeline(StandardScaler(with_std=False), LinearRegression()), X[:, 0] + Y),
}


class Counting:
    """A recipe that writes down every training; for killing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fit(self, examples, seed=None):
        with self.path.open("a") as f:
            f.write(f"{sorted(examples.ids.tolist())} {seed}\n")
        return float(np.sum(examples.inputs)) + seed

    def measure(self, model, query):
        return np.asarray(query.inputs)[:, 0] * model

    def fingerprint(self):
        return "counting"

    def trainings(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


class TestSubsets:
    @given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 5))
    def test_a_longer_plan_begins_with_a_shorter_one(self, n, count, seed):
        for plan in (halves, lambda c, seed: fractions(0.3, c, seed=seed, antithetic=True), bootstraps):
            assert np.array_equal(plan(count + 3, seed=seed)(n).included[:count], plan(count, seed=seed)(n).included)

    def test_sizes(self):
        assert fractions(0.7, 5)(10).included.sum(1).tolist() == [7] * 5
        assert bootstraps(5)(10).included.sum(1).tolist() == [10] * 5
        assert abs(bernoulli(0.25, 400)(50).included.mean() - 0.25) < 0.01
        assert all_subsets()(5).included.shape == (32, 5)
        assert len(np.unique(all_subsets()(5).included, axis=0)) == 32

    def test_antithetic_halves_are_complements(self):
        included = fractions(0.5, 6, antithetic=True)(10).included
        assert (included[0::2] + included[1::2] == 1).all()

    def test_repeats_have_seeds_of_their_own_and_removals_share_theirs(self):
        assert halves(3, repeats=2)(4).seeds.tolist() == [0, 1, 2, 3, 4, 5]
        assert each_left_out(repeats=2)(2).seeds.tolist() == [0, 1] * 3
        assert full(repeats=3)(2).included.tolist() == [[1, 1]] * 3

    def test_removals(self):
        assert without([[0, 2], [1]])(3).included.tolist() == [[1, 1, 1], [0, 1, 0], [1, 0, 1]]
        assert groups_left_out(["b", "a", "b"])(3).included.tolist() == [[1, 1, 1], [1, 0, 1], [0, 1, 0]]

    def test_permutations_add_one_example_at_a_time(self):
        included = permutations(2, antithetic=True)(5).included.reshape(2, 6, 5).astype(int)
        assert (np.diff(included, axis=1).sum(2) == 1).all() and (np.diff(included, axis=1) >= 0).all()
        assert np.array_equal(included[0], 1 - included[1][::-1])

    def test_keys_name_subset_and_seed(self):
        subsets = Subsets.of([[1, 0], [1, 0], [0, 1]], [0, 1, 0])
        assert len(set(subsets.keys())) == 3 and subsets.keys()[0] == Subsets.of([[1, 0]]).keys()[0]

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda: Subsets.of([[0.5]]), "counts or booleans"),
            (lambda: Subsets.of([[1, -1]]), "counts"),
            (lambda: Subsets.of([[300]]), "at most 255"),
            (lambda: Subsets.of([[1]], [1, 2]), "one seed per subset"),
            (lambda: fractions(1.0, 3), "strictly between"),
            (lambda: all_subsets()(20), "at most 16"),
            (lambda: retrain(Ridge(), TRAIN, QUERY, np.ones((2, 3), int)), "40, the training examples"),
            (lambda: retrain(print, TRAIN, QUERY, halves(1)), "as a recipe"),
        ],
    )
    def test_wrong_input_is_refused_in_words(self, call, words):
        with pytest.raises(InputError, match=words):
            call()


class TestResults:
    @pytest.mark.parametrize(
        "estimator",
        [
            DecisionTreeClassifier(),
            RandomForestClassifier(5),
            make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=10_000)),
        ],
    )
    def test_each_row_is_the_estimator_fitted_to_its_subset(self, estimator):
        recipe = pp.SklearnRecipe(estimator, measurement="probability")
        ledger = retrain(recipe, TRAIN, QUERY, fractions(0.6, 5))
        train = pp.Examples.of(TRAIN)
        for s in range(5):
            alone = recipe.fit(train.take(np.flatnonzero(ledger.included[s])), int(ledger.seeds[s]))
            assert np.allclose(ledger.measured[s], recipe.measure(alone, pp.Examples.of(QUERY)), atol=1e-6)

    def test_a_bootstrap_holds_rows_several_times(self):
        recipe = FunctionRecipe(lambda examples, seed: len(examples), lambda model, query: np.full(len(query), model))
        ledger = retrain(recipe, TRAIN, QUERY, bootstraps(2))
        assert (ledger.measured == 40).all()

    def test_the_same_subset_and_seed_is_trained_once(self, tmp_path):
        recipe = Counting(tmp_path / "trainings")
        ledger = retrain(recipe, TRAIN, QUERY, np.repeat(halves(2)(40).included, 3, axis=0))
        assert len(recipe.trainings()) == 2 and len(ledger) == 6 and len(ledger.by_subset()[0]) == 2
        assert np.array_equal(ledger.measured[0], ledger.measured[2])

    def test_a_failed_fit_is_recorded_as_failed(self):
        def train(examples, seed):
            if 0 in examples.ids:
                raise RuntimeError("row 0 is cursed")
            return 1.0

        recipe = FunctionRecipe(train, lambda model, query: np.full(len(query), model))
        ledger = retrain(recipe, TRAIN, QUERY, each_left_out())
        assert ledger.failed.tolist() == [True, False] + [True] * 39
        assert np.isnan(ledger.measured[0]).all() and (ledger.measured[1] == 1).all()
        assert "RuntimeError: row 0 is cursed" in ledger.errors[0]

    def test_measurements_that_are_not_finite_are_a_failure(self):
        recipe = FunctionRecipe(
            lambda examples, seed: 0, lambda model, query: np.where(query.inputs[:, 0] > 0, np.inf, 1)
        )
        ledger = retrain(recipe, TRAIN, QUERY, full())
        assert ledger.failed.all() and np.isnan(ledger.measured).all() and "not finite" in ledger.errors[0]

    def test_nothing_to_learn_from_gives_smoothed_class_frequencies(self):
        included = np.zeros((2, 40), int)
        included[1, np.flatnonzero(Y[:40] == 1)[:3]] = 1
        recipe = pp.SklearnRecipe(LogisticRegression(), measurement="probability")
        ledger = retrain(recipe, TRAIN, QUERY, included)
        assert np.allclose(ledger.measured[0], 0.5)
        assert np.allclose(ledger.measured[1], np.where(Y[40:] == 1, 4 / 5, 1 / 5))
        empty = retrain(Ridge(), (X[:40], X[:40, 0]), (X[40:], X[40:, 0]), included[:1])
        assert np.allclose(empty.measured[0], -((X[:40, 0].mean() - X[40:, 0]) ** 2))

    @pytest.mark.parametrize("measurement", ["correct", "probability", "loss", "margin", "prediction"])
    def test_measurements(self, measurement):
        recipe = pp.SklearnRecipe(GaussianNB(), measurement=measurement)
        model, query = recipe.fit(pp.Examples.of(TRAIN)), pp.Examples.of(QUERY)
        p = model.predict_proba(QUERY[0])
        own, best = p[np.arange(20), QUERY[1]], p.max(1)
        wanted = {
            "correct": p.argmax(1) == QUERY[1],
            "probability": own,
            "loss": np.log(own),
            "margin": np.log(own / (1 - own)),
            "prediction": np.log(best / (1 - best)),
        }[measurement]
        assert np.allclose(recipe.measure(model, query), wanted)

    def test_a_function_measures(self):
        recipe = pp.SklearnRecipe(
            GaussianNB(), measurement=lambda model, query: model.predict_proba(query.inputs)[:, 1]
        )
        assert np.array_equal(
            retrain(recipe, TRAIN, QUERY, full()).measured[0], GaussianNB().fit(*TRAIN).predict_proba(QUERY[0])[:, 1]
        )

    def test_boosting_through_its_scikit_learn_interface(self):
        lightgbm = pytest.importorskip("lightgbm")
        estimator = lightgbm.LGBMClassifier(n_estimators=3, min_child_samples=2, verbose=-1, n_jobs=1)
        ledger = retrain(pp.SklearnRecipe(estimator), TRAIN, QUERY, halves(2))
        assert not ledger.failed.any() and np.isfinite(ledger.measured).all()


class TestLedger:
    def test_saves_and_loads(self, tmp_path):
        ledger = retrain(GaussianNB(), TRAIN, QUERY, halves(3, repeats=2))
        again = Ledger.load(ledger.save(tmp_path / "ledger.zarr"))
        assert np.array_equal(again.included, ledger.included) and np.array_equal(again.measured, ledger.measured)
        assert again.errors.tolist() == ledger.errors.tolist() and again.seeds.tolist() == ledger.seeds.tolist()
        assert "6 models, 3 subsets" in repr(again)

    def test_what_is_kept_is_not_trained_again(self, tmp_path):
        recipe, path = Counting(tmp_path / "trainings"), tmp_path / "ledger"
        first = retrain(recipe, TRAIN, QUERY, halves(4), ledger=path)
        second = retrain(recipe, TRAIN, QUERY, halves(7), ledger=path)
        assert len(recipe.trainings()) == 7 and np.array_equal(second.measured[:4], first.measured)
        assert len(open_ledger(path, TRAIN, QUERY)) == 7

    def test_failures_are_kept_too(self, tmp_path):
        recipe = FunctionRecipe(lambda examples, seed: 1 / 0, lambda model, query: np.zeros(len(query)), name="fails")
        for _ in range(2):
            ledger = retrain(recipe, TRAIN, QUERY, full(), ledger=tmp_path / "ledger")
            assert ledger.failed.all() and "ZeroDivisionError" in ledger.errors[0]

    def test_another_recipe_or_other_examples_are_refused(self, tmp_path):
        retrain(GaussianNB(), TRAIN, QUERY, full(), ledger=tmp_path)
        with pytest.raises(FingerprintMismatch, match="another recipe"):
            retrain(GaussianNB(var_smoothing=0.1), TRAIN, QUERY, full(), ledger=tmp_path)
        with pytest.raises(FingerprintMismatch, match="another training examples"):
            retrain(GaussianNB(), (X[:40] + 1, Y[:40]), QUERY, full(), ledger=tmp_path)

    def test_models_are_given_in_memory(self):
        ledger = retrain(GaussianNB(), TRAIN, QUERY, halves(2), keep_models=True)
        assert np.allclose(
            pp.SklearnRecipe(GaussianNB()).measure(ledger.models[1], pp.Examples.of(QUERY)), ledger.measured[1]
        )
        assert ledger.select([1]).models == ledger.models[1:]

    def test_models_kept_on_disk_serve_new_queries_without_training(self, tmp_path):
        class Packing(Counting):
            def pack(self, model):
                return {"total": np.array(model)}

            def unpack(self, arrays):
                return float(arrays["total"])

        recipe = Packing(tmp_path / "trainings")
        retrain(recipe, TRAIN, QUERY, halves(3), ledger=tmp_path / "ledger", keep_models=True)
        other = (X[40:44], Y[40:44])
        again = retrain(recipe, TRAIN, other, halves(3), ledger=tmp_path / "ledger")
        assert len(recipe.trainings()) == 3 and again.measured.shape == (3, 4)
        assert np.array_equal(again.measured, retrain(recipe, TRAIN, other, halves(3)).measured)

    @pytest.mark.parametrize("name", LINEAR)
    def test_linear_models_kept_on_disk_serve_new_queries_without_training(self, tmp_path, monkeypatch, name):
        estimator, labels = LINEAR[name]
        train, other = (X[:40], labels[:40]), (X[40:], labels[40:])
        included = np.concatenate([halves(4)(40).included, np.zeros((3, 40), np.uint8)])
        included[4, np.flatnonzero(labels[:40] == labels[0])] = 1  # one class or value
        included[5, :3] = included[5, 10:13] = 1  # without a penalty, few enough for scikit-learn to fit
        recipe = pp.SklearnRecipe(estimator, "probability")
        retrain(recipe, train, (X[:5], labels[:5]), included, ledger=tmp_path, keep_models=True)
        true = retrain(recipe, train, other, included)
        monkeypatch.setattr(pp.SklearnRecipe, "fit_many", None)
        again = retrain(recipe, train, other, included, ledger=tmp_path)
        np.testing.assert_allclose(again.measured, true.measured, rtol=1e-9, atol=1e-12)
        assert not again.failed.any()

    def test_liblinear_keeps_its_models_of_two_classes_only(self):
        recipe = pp.SklearnRecipe(LogisticRegression(solver="liblinear"))
        assert recipe.packs(pp.Examples.of((X, Y))) and not recipe.packs(pp.Examples.of((X, np.arange(60) % 3)))

    def test_models_that_only_a_pickle_holds_are_not_put_on_disk(self, tmp_path):
        with pytest.raises(InputError, match="not plain arrays"):
            retrain(GaussianNB(), TRAIN, QUERY, full(), ledger=tmp_path, keep_models=True)

    def test_a_torn_record_is_passed_over(self, tmp_path):
        recipe = Counting(tmp_path / "trainings")
        whole = retrain(recipe, TRAIN, QUERY, halves(3), ledger=tmp_path / "ledger")
        (path,) = (tmp_path / "ledger" / "log").glob("*.records")
        content = path.read_bytes()
        for cut in (len(content) - 1, len(content) - 200, 5):
            path.write_bytes(content[:cut])
            again = retrain(recipe, TRAIN, QUERY, halves(3), ledger=tmp_path / "ledger")
            assert np.array_equal(again.measured, whole.measured)
            for extra in (tmp_path / "ledger" / "log").glob("*.records"):
                if extra != path:
                    extra.unlink()

    def test_a_flipped_bit_is_noticed(self, tmp_path):
        recipe = Counting(tmp_path / "trainings")
        retrain(recipe, TRAIN, QUERY, full(), ledger=tmp_path / "ledger")
        (path,) = (tmp_path / "ledger" / "log").glob("*.records")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
        assert not Trained.open(tmp_path / "ledger", recipe, pp.Examples.of(TRAIN)).places

    def test_two_runs_at_once_are_refused(self, tmp_path):
        recipe = Counting(tmp_path / "trainings")
        trained = Trained.open(tmp_path / "ledger", recipe, pp.Examples.of(TRAIN))
        with trained.log.driving(), pytest.raises(InputError, match="another run is writing"):
            retrain(recipe, TRAIN, QUERY, full(), ledger=tmp_path / "ledger")

    def test_ctrl_c_gives_what_was_trained(self):
        def train(examples, seed):
            if seed == 20:
                raise KeyboardInterrupt
            return seed

        recipe = FunctionRecipe(train, lambda model, query: np.full(len(query), float(model)))
        with pytest.raises(Interrupted, match="16 models trained") as stopped:
            retrain(recipe, TRAIN, QUERY, halves(40))
        assert stopped.value.ledger.measured[:, 0].tolist() == list(range(16))


FOREST = pp.SklearnRecipe(RandomForestClassifier(4), measurement="probability")


@pytest.fixture(scope="module")
def alone():
    return retrain(FOREST, TRAIN, QUERY, halves(40)).measured


class TestBackEnds:
    @pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
    def test_same_bits(self, alone, backend, tmp_path):
        with joblib.parallel_config(backend, n_jobs=2):
            ledger = retrain(FOREST, TRAIN, QUERY, halves(40), ledger=tmp_path)
        assert np.array_equal(ledger.measured, alone)

    def test_same_bits_with_dask(self, alone):
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config("dask", n_jobs=2),
        ):
            assert np.array_equal(retrain(FOREST, TRAIN, QUERY, halves(40)).measured, alone)

    def test_same_bits_with_ray(self, alone, tmp_path):
        pytest.importorskip("ray")
        script = """
            import sys, numpy as np, joblib, ray
            from ray.util.joblib import register_ray
            sys.path.insert(0, sys.argv[1])
            from test_retrain import FOREST, TRAIN, QUERY
            from proponent.retrain.run import retrain
            from proponent.retrain.subsets import halves
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            register_ray()
            with joblib.parallel_config("ray", n_jobs=2):
                np.save(sys.argv[2], retrain(FOREST, TRAIN, QUERY, halves(40)).measured)
        """
        out = tmp_path / "measured.npy"
        here = str(Path(__file__).parent)
        subprocess.run([sys.executable, "-c", textwrap.dedent(script), here, str(out)], check=True, capture_output=True)
        assert np.array_equal(np.load(out), alone)


KILLED = """
    import json, os, sys, time
    import numpy as np
    from pathlib import Path
    from proponent.retrain.run import retrain
    from proponent.retrain.subsets import halves

    class Slow:
        def fit(self, examples, seed=None):
            time.sleep(0.01)
            with open(sys.argv[2], "a") as f:
                f.write(f"{seed} {os.getpid()}\\n")
            return float(np.sum(examples.inputs)) + seed

        def measure(self, model, query):
            return query.inputs[:, 0] * model

        def fingerprint(self):
            return "slow"

    x = np.arange(60.0).reshape(30, 2)
    ledger = retrain(Slow(), x, x[:3], halves(150), ledger=None if sys.argv[1] == "none" else sys.argv[1], workers=2)
    np.save(sys.argv[3], ledger.measured)
"""


class TestKills:
    """Kill -9 at random moments: what was recorded is never trained again, and the end is the same bits."""

    def start(self, tmp_path: Path, ledger: str | Path) -> subprocess.Popen[bytes]:
        args = [
            sys.executable,
            "-c",
            textwrap.dedent(KILLED),
            str(ledger),
            str(tmp_path / "fits"),
            str(tmp_path / "out.npy"),
        ]
        return subprocess.Popen(args, stderr=subprocess.DEVNULL, start_new_session=True)

    def recorded(self, tmp_path: Path) -> int:
        return (
            sum(1 for _ in Trained(_log(tmp_path / "ledger")).log.after({}))
            if (tmp_path / "ledger" / "log").exists()
            else 0
        )

    def wait_for_records(self, tmp_path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 60
        while self.recorded(tmp_path) < count and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)

    @pytest.mark.parametrize("victim", ["driver", "worker"])
    def test_killed_again_and_again(self, tmp_path, victim):
        rng = np.random.default_rng(0 if victim == "driver" else 1)
        kills = 0
        process = self.start(tmp_path, tmp_path / "ledger")
        for count in sorted(rng.integers(1, 140, size=3)):
            self.wait_for_records(tmp_path, int(count), process)
            if process.poll() is not None:
                break
            kills += self.kill(process, victim, tmp_path)
            if victim == "driver":
                process.wait()
                process = self.start(tmp_path, tmp_path / "ledger")
        assert process.wait(timeout=120) == 0 and kills >= 1
        fits = [line.split()[0] for line in (tmp_path / "fits").read_text().splitlines()]
        twice = len(fits) - len(set(fits))
        assert set(fits) == {str(s) for s in range(150)} and self.recorded(tmp_path) == 150
        assert twice <= 2 * kills  # only what was under way in the two workers, not recorded yet
        x = np.arange(60.0).reshape(30, 2)
        included = halves(150)(30).included
        wanted = [[x[s > 0].sum() + seed for _ in range(1)] for seed, s in enumerate(included)]
        assert np.array_equal(np.load(tmp_path / "out.npy"), np.array(wanted) * x[:3, 0])

    def kill(self, process: subprocess.Popen[bytes], victim: str, tmp_path: Path) -> int:
        pid = process.pid if victim == "driver" else int((tmp_path / "fits").read_text().splitlines()[-1].split()[1])
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return 0
        return 1

    def test_workers_that_keep_dying_end_the_run_in_words(self):
        def train(examples, seed):
            os.kill(os.getpid(), signal.SIGKILL)

        recipe = FunctionRecipe(train, lambda model, query: np.zeros(len(query)))
        with pytest.raises(ProponentError, match="workers that died 3 times in a row"):
            retrain(recipe, TRAIN, QUERY, halves(4), workers=2)


def _log(directory: Path):
    from proponent.store.log import RecordLog

    return RecordLog.open(directory, json.loads((directory / "made_from.json").read_text()))


def test_a_game_is_its_utility():
    weights = np.arange(5.0)
    ledger = retrain(Game(lambda included: included @ weights), np.zeros((5, 1)), np.zeros((1, 1)), all_subsets())
    assert np.array_equal(ledger.measured[:, 0], ledger.included @ weights)
