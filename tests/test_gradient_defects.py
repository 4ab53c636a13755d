"""Defects seen in other libraries' gradients, each with the smallest test that fails on it (methods.md, section G)."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import zarr
from torch import nn

import proponent as pp
from proponent.methods.score import Sizes
from proponent.store.matrix import MatrixStore
from truth.gradients import gradients, products

torch.set_num_threads(1)
N, Q, VOCABULARY, PAD, IGNORE = 11, 5, 7, 0, -100


class TinyLM(nn.Module):
    """Two layers of causal attention; the output layer is the embedding, whose padding row has no gradient."""

    def __init__(self, tie=True, nested=False, causal=True):
        super().__init__()
        self.causal = causal
        self.table = nn.Embedding(VOCABULARY, 8, padding_idx=PAD)
        self.place = nn.Embedding(16, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        if tie:
            self.head.weight = self.table.weight

    def forward(self, input_ids, attention_mask):
        t = input_ids.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool).triu(1) if self.causal else None
        h = self.table(input_ids) + self.place(torch.arange(t))
        return self.head(self.encoder(h, mask=causal, src_key_padding_mask=attention_mask == 0))


def language_model(**options):
    torch.manual_seed(0)
    return TinyLM(**options).double()


def sentences(n, seed=1):
    """Token lists of two to six tokens, some of them repeated."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(1, VOCABULARY, (2 + int(torch.randint(5, (1,), generator=generator)),), generator=generator)
        for _ in range(n)
    ]


def padded(tokens, length):
    """A batch of sentences, padded to a length."""
    ids = torch.full((len(tokens), length), PAD)
    for row, own in zip(ids, tokens, strict=True):
        row[: len(own)] = own
    mask = (torch.arange(length) < torch.tensor([len(t) for t in tokens])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 0, IGNORE, ids)}


def sentence_gradients(model, tokens):
    """Each sentence by itself, without any padding."""

    def loss(own):
        logits = model(own[None], torch.ones_like(own)[None])[0]
        return nn.functional.cross_entropy(logits[:-1], own[1:], reduction="sum")

    return gradients(model, [lambda own=own: loss(own) for own in tokens])


def perceptron():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3, bias=False))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def rows(n, shape, seed):
    torch.manual_seed(seed)
    return torch.randn(n, *shape, dtype=torch.float64), torch.randint(3, (n,))


def case(name):
    """A task, training examples and queries."""
    torch.manual_seed(0)
    if name == "sentences":
        task = pp.Task(language_model(), loss="causal_lm")
        return task, padded(sentences(N), 6), padded(sentences(Q, seed=2), 6)
    model, shape = (perceptron(), (6,)) if name == "vectors" else (convolutions(), (2, 5, 5))
    return pp.Task(model.double()), rows(N, shape, 1), rows(Q, shape, 2)


def part(data, at):
    return {k: v[at] for k, v in data.items()} if isinstance(data, dict) else tuple(x[at] for x in data)


def scored(task, train, query, **options):
    return pp.GradDot(**options).fit(task, train).score(query).dataset.score.values


def close(got, want):
    return got.shape == want.shape and np.abs(got - want).max() <= 1e-10 * np.abs(want).max()


CASES = ("vectors", "images", "sentences")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", (pp.GradDot, pp.GradCos))
def test_the_batch_size_changes_nothing(name, method):
    task, train, query = case(name)
    made = [method(batch_size=b).fit(task, train) for b in (1, 3, 7, N)]
    scores = [f.score(query).dataset.score.values for f in made]
    selfs = [f.self_influence().value for f in made]
    for k in range(1, 4):
        assert close(scores[k], scores[0])
        assert close(selfs[k], selfs[0])


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_examples_only_permutes_the_scores(name):
    task, train, query = case(name)
    whole = scored(task, train, query)
    rng = np.random.default_rng(0)
    i, q = rng.permutation(N), rng.permutation(Q)
    assert close(scored(task, part(train, i), part(query, q), batch_size=4), whole[q][:, i])


def test_a_loader_that_shuffles_is_read_in_the_datasets_order():
    task, train, query = case("vectors")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*train), batch_size=3, shuffle=True)
    assert close(scored(task, loader, query), scored(task, train, query))


@pytest.mark.parametrize("name", CASES)
def test_more_queries_than_training_examples(name):
    task, train, query = case(name)
    assert close(scored(task, query, train), scored(task, train, query).T)


@pytest.mark.parametrize("name", CASES)
def test_scoring_twice_gives_the_same_bits_and_a_fit_is_not_used_up(name):
    task, train, query = case(name)
    fitted = pp.GradDot(batch_size=4).fit(task, train)
    first = fitted.score(query).dataset.score.values.tobytes()
    fitted.self_influence(), fitted.top(query, 2), fitted.score(part(query, slice(0, 1)))
    assert fitted.score(query).dataset.score.values.tobytes() == first
    assert pp.GradDot(batch_size=4).fit(task, train).score(query).dataset.score.values.tobytes() == first


@pytest.mark.parametrize("lengths", ((6, 6), (6, 9), (13, 6)))
@pytest.mark.parametrize("tie", (True, False))
def test_padding_changes_no_score_and_tied_weights_are_summed_once(lengths, tie):
    model, train, query = language_model(tie=tie), sentences(N), sentences(Q, seed=2)
    want = products(sentence_gradients(model, query), sentence_gradients(model, train))
    task = pp.Task(model, loss="causal_lm")
    assert not pp.check_capture(task, padded(train, 6)).table["by"].str.contains("whole model").any()
    assert close(scored(task, padded(train, lengths[0]), padded(query, lengths[1])), want)


def test_repeated_tokens_are_one_row_each_and_the_padding_row_has_no_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCABULARY, 4, padding_idx=PAD), nn.Flatten(), nn.Linear(20, 3)).double()
    tokens = torch.tensor([[1, 1, 1, 2, 2], [2, 1, PAD, PAD, 1], [PAD] * 5, [3, 3, 3, 3, 3]])
    target = torch.tensor([0, 2, 1, 1])
    loss = nn.functional.cross_entropy
    rows = gradients(model, [lambda i=i: loss(model(tokens[i : i + 1]), target[i : i + 1]) for i in range(4)])
    for chosen, part in (("0.weight", rows[:, : VOCABULARY * 4]), (None, rows)):
        task = pp.Task(model, parameters=chosen)
        assert "the whole model, one by one" not in set(pp.check_capture(task, (tokens, target)).table["by"])
        assert close(scored(task, (tokens, target), (tokens, target)), products(part, part))
        assert close(pp.GradDot().fit(task, (tokens, target)).self_influence().value, part.square().sum(1).numpy())
    assert not rows[2, : VOCABULARY * 4].any() and rows[1, : VOCABULARY * 4].any()


@pytest.mark.parametrize("frozen", (True, False))
def test_attention_is_heard_though_its_fused_path_would_call_no_module(frozen):
    model, train = language_model(nested=True), sentences(N)
    truth = sentence_gradients(model, train)
    model.eval().requires_grad_(not frozen)
    names = [n for n, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    assert torch.backends.mha.get_fastpath_enabled()
    task = pp.Task(model, loss="causal_lm", parameters=nn.MultiheadAttention)
    assert {n.split(".")[-2] for n in task.selected()} == {"self_attn", "out_proj"}
    own = torch.cat([g for n, g in zip(names, truth.split(sizes, 1), strict=True) if n in task.selected()], 1)
    assert close(scored(task, padded(train, 8), padded(train, 8)), products(own, own))
    check = pp.check_capture(task, padded(train, 8))
    assert check.worst < 1e-10 and not check.table["by"].str.contains("whole model").any()


def test_the_fused_path_is_not_taken_where_no_attention_is_heard():
    model, train = language_model(tie=False, nested=True, causal=False), padded(sentences(N), 8)
    everything = scored(pp.Task(model, loss="masked_lm"), train, train)
    rest = [k for k, _ in model.named_parameters() if not k.startswith("head.")]
    others = scored(pp.Task(model, loss="masked_lm", parameters=rest), train, train)
    only = scored(pp.Task(model, loss="masked_lm", parameters="head.*"), train, train)  # a fused path warns: an error
    assert close(only + others, everything)


# Checkpoints


@pytest.fixture
def reads(monkeypatch):
    """Names of the checkpoint files that were read, in order."""
    seen = []
    for module, name in ((torch, "load"), (safetensors.torch, "load_file")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda f, *a, real=real, **k: seen.append(f.name) or real(f, *a, **k))
    return seen


@pytest.fixture
def run(tmp_path):
    """The files of three checkpoints of a run, and their state dicts."""
    task, _, _ = case("vectors")
    states = [{k: v + 0.1 * c for k, v in task.net.state_dict().items()} for c in range(3)]
    files = [tmp_path / f"{c}.{'pt' if c else 'safetensors'}" for c in range(3)]
    safetensors.torch.save_file(states[0], files[0])
    for state, file in zip(states[1:], files[1:], strict=True):
        torch.save(state, file)
    return files, states


def test_tracin_is_the_sum_over_its_checkpoints_and_leaves_the_model_alone(run):
    task, train, query = case("vectors")
    before = {k: v.clone() for k, v in task.net.state_dict().items()}
    files, states = run
    got = pp.TracIn(files, learning_rates=[0.1, 0.2, 0.3]).fit(task, train).score(query).dataset.score.values
    want = 0.0
    for rate, state in zip((0.1, 0.2, 0.3), states, strict=True):
        model = perceptron().double()
        model.load_state_dict(state)
        want = want + rate * scored(pp.Task(model), train, query)
    assert close(got, want)
    assert all(torch.equal(v, before[k]) for k, v in task.net.state_dict().items())


def test_each_checkpoint_is_read_once_per_scoring(run, reads):
    task, train, query = case("vectors")
    files, _ = run
    fitted = pp.TracIn(files, learning_rates=0.1, batch_size=2).fit(task, train)
    reads.clear()
    fitted.score(query)
    assert reads == [f.name for f in files]


def test_no_checkpoint_is_read_once_per_batch(run, reads):
    task, train, query = case("vectors")
    files, _ = run
    fitted = pp.TracIn(files, learning_rates=0.1, batch_size=1).fit(task, train)
    reads.clear()
    fitted.score(query)
    assert len(reads) <= len(files) + 1
    reads.clear()
    fitted.self_influence()
    assert reads == [f.name for f in files]


def test_several_checkpoints_go_to_disk_as_to_memory(run, tmp_path):
    task, train, query = case("vectors")
    fitted = pp.TracIn(run[0], learning_rates=0.1, batch_size=2).fit(task, train)
    stored = fitted.score(query, out=tmp_path / "scores.zarr")
    assert close(stored.dataset.score.values, fitted.score(query).dataset.score.values)


@pytest.mark.parametrize(
    "fisher",
    (
        "exact",
        "empirical",
        "sampled",
    ),
)
def test_no_fisher_depends_on_the_batch_size(fisher):
    task, train, query = case("vectors")
    curvature, damping = pp.EKFAC(fisher=fisher), pp.Damping(0.01, "absolute")
    scores = [
        pp.Influence(curvature=curvature, damping=damping, batch_size=b).fit(task, train).score(query).dataset.score
        for b in (3, N)
    ]
    assert close(scores[0].values, scores[1].values)


# A killed run


class Counted:
    """Cross-entropy that counts the batches it is asked for, by size."""

    def __init__(self):
        self.asked = 0

    def __call__(self, model, batch):
        self.asked += 1
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def __repr__(self):
        return "Counted()"


def files_of(path):
    """The bytes of the stored scores and of the marks of what is written."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.relative_to(path).parts[0] in ("score", "written")
    }


@pytest.mark.parametrize("when", ("before the block is written", "before it is marked as written", "after"))
@pytest.mark.parametrize("chunks", (1, 3))
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(when, chunks, tmp_path, monkeypatch):
    _, train, query = case("vectors")
    counted = Counted()
    task = pp.Task(case("vectors")[0].model, loss=counted)
    monkeypatch.setattr(Sizes, "queries", lambda self, *a: -(-Q // chunks))
    fitted = pp.GradDot(batch_size=2).fit(task, train)
    whole = fitted.score(query, out=tmp_path / "whole.zarr").dataset.score.values
    blocks, real, written = -(-N // 2), MatrixStore.write, []

    def write(self, index, values, turn=0, queries=slice(None)):
        if len(written) == 3:
            if when == "before it is marked as written":
                part = next(iter(values.values()))
                zarr.open_group(self.path, mode="a")["score"][queries, index * 2 : index * 2 + part.shape[1]] = part
            elif when == "after":
                real(self, index, values, turn, queries)
            raise KeyboardInterrupt
        written.append(index)
        real(self, index, values, turn, queries)

    out = tmp_path / "killed.zarr"
    monkeypatch.setattr(MatrixStore, "write", write)
    with pytest.raises(KeyboardInterrupt):
        fitted.score(query, out=out)
    done = 3 + (when == "after")
    monkeypatch.setattr(MatrixStore, "write", real)
    again = []
    monkeypatch.setattr(MatrixStore, "write", lambda *a, **k: again.append(a[1]) or real(*a, **k))
    counted.asked = 0
    resumed = fitted.score(query, out=out).dataset.score.values
    assert resumed.tobytes() == whole.tobytes()
    assert files_of(out) == files_of(tmp_path / "whole.zarr") and len(files_of(out)) > 2
    assert len(again) == chunks * blocks - done
    rounds_left = chunks - done // blocks
    query_batches = sum(-(-n // 2) for n in query_chunks(chunks)[-rounds_left:])
    assert counted.asked == chunks * blocks - done + query_batches
    counted.asked = 0
    fitted.score(query, out=out)  # a finished run is read, not computed
    assert counted.asked == 0


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_gradient_defects as tests

real, written = tests.MatrixStore.write, []
def write(*args, **options):
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(real(*args, **options))

tests.MatrixStore.write = write
task, train, query = tests.case("images")
tests.pp.GradDot(batch_size=3).fit(task, train).score(query, out=sys.argv[2])
"""


def test_a_process_killed_by_the_system_goes_on_in_another(tmp_path):
    out, here = tmp_path / "killed.zarr", str(Path(__file__).parent)
    ended = subprocess.run([sys.executable, "-c", KILLED, here, str(out)], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert MatrixStore(out, 3).missing() == [2, 3]
    task, train, query = case("images")
    fitted = pp.GradDot(batch_size=3).fit(task, train)
    fitted.score(query, out=out), fitted.score(query, out=tmp_path / "whole.zarr")
    assert files_of(out) == files_of(tmp_path / "whole.zarr")


def query_chunks(chunks):
    size = -(-Q // chunks)
    return [min(size, Q - at) for at in range(0, Q, size)]


def test_a_run_of_other_weights_is_not_gone_on_with(tmp_path):
    task, train, query = case("vectors")
    pp.GradDot(batch_size=4).fit(task, train).score(query, out=tmp_path / "s.zarr")
    with torch.no_grad():
        task.net[0].weight[0, 0] += 1e-9
    with pytest.raises(pp.FingerprintMismatch):
        pp.GradDot(batch_size=4).fit(task, train).score(query, out=tmp_path / "s.zarr")
