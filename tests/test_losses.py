"""Losses, their measurements and their output Hessians, against formulas written by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp
from proponent import draws, losses
from proponent.capture.gradients import Capture
from proponent.rows import Rows
from truth.gradients import gauss_newton, gradients, products

torch.set_num_threads(1)
IGNORE = -100


class Given(nn.Module):
    """A model whose output is its input, and a parameter for form's sake."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return x + self.shift


def measured(loss, output, target, what="loss"):
    return pp.Task(Given(), loss=loss, measurement=what).measurements((output, target)).detach()


def log_softmax(row):
    top = max(row)
    total = sum(math.exp(v - top) for v in row)
    return [v - top - math.log(total) for v in row]


def by_hand(what, rows, targets, smoothing=0.0):
    """One example's measurement, summed over positions that are not ignored; plain Python numbers."""
    total = 0.0
    for row, y in zip(rows, targets, strict=True):
        if y == IGNORE:
            continue
        logp = log_softmax(row)
        p = [math.exp(v) for v in logp]
        total += {
            "loss": (1 - smoothing) * logp[y] + smoothing * sum(logp) / len(row),
            "log_probability": logp[y],
            "margin": math.log(p[y] / (1 - p[y])),
            "logit": row[y],
            "entropy": -sum(a * b for a, b in zip(p, logp, strict=True)),
        }[what]
    return total


WHATS = ("loss", "log_probability", "margin", "logit", "entropy")


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("smoothing", (0.0, 0.2))
def test_cross_entropy_of_one_position(what, smoothing):
    torch.manual_seed(0)
    output, target = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, IGNORE, 1, 1])
    got = measured(pp_loss("cross_entropy", label_smoothing=smoothing), output, target, what)
    want = [by_hand(what, [row], [y], smoothing) for row, y in zip(output.tolist(), target.tolist(), strict=True)]
    assert np.allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", ("cross_entropy", "masked_lm", "causal_lm"))
@pytest.mark.parametrize("reduction", ("sum", "mean"))
def test_sequences_with_ignored_positions(what, name, reduction):
    torch.manual_seed(0)
    output = torch.randn(3, 4, 5, dtype=torch.float64)
    target = torch.tensor([[0, 1, IGNORE, 4], [IGNORE] * 4, [2, IGNORE, 3, IGNORE]])
    loss = name if name == "cross_entropy" else pp_loss(name, reduction=reduction)
    got = measured(loss, output, target, what)
    shift = name == "causal_lm"
    for i in range(3):
        rows, own = output[i].tolist(), target[i].tolist()
        rows, own = (rows[:-1], own[1:]) if shift else (rows, own)
        live = max(1, sum(y != IGNORE for y in own)) if reduction == "mean" and name != "cross_entropy" else 1
        assert math.isclose(got[i], by_hand(what, rows, own) / live, rel_tol=1e-12, abs_tol=1e-12)


def pp_loss(name, **options):
    return losses.LOSSES[name](**options)


def test_ignored_positions_have_no_gradient_in_any_measurement():
    output = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1, IGNORE, 2], [IGNORE, IGNORE, IGNORE]])
    for what in WHATS:
        (grad,) = torch.autograd.grad(pp.Task(Given(), measurement=what).measurements((output, target)).sum(), output)
        assert bool(grad.isfinite().all())
        assert bool((grad[target == IGNORE] == 0).all())
        assert bool((grad[target != IGNORE] != 0).any())


def test_entropy_of_a_certain_prediction_is_zero():
    output = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    assert measured("cross_entropy", output, torch.tensor([0]), "entropy").tolist() == [0.0]


@pytest.mark.parametrize("shape", ((4,), (4, 1), (4, 3)))
def test_binary_measurements(shape):
    torch.manual_seed(0)
    f, y = torch.randn(shape, dtype=torch.float64), torch.randint(2, shape).double()
    f2, y2 = f.reshape(4, -1).tolist(), y.reshape(4, -1).tolist()

    def summed(function):
        return [
            sum(function(1 / (1 + math.exp(-a)), b) for a, b in zip(*pair, strict=True))
            for pair in zip(f2, y2, strict=True)
        ]

    logp = summed(lambda p, b: math.log(p if b else 1 - p))
    assert np.allclose(measured("binary_cross_entropy", f, y), logp)
    assert np.allclose(measured("binary_cross_entropy", f, y, "log_probability"), logp)
    margin = summed(lambda p, b: math.log(p / (1 - p)) if b else math.log((1 - p) / p))
    assert np.allclose(measured("binary_cross_entropy", f, y, "margin"), margin)
    entropy = summed(lambda p, b: -p * math.log(p) - (1 - p) * math.log(1 - p))
    assert np.allclose(measured("binary_cross_entropy", f, y, "entropy"), entropy)
    soft = 0.3 * y + 0.1
    assert np.allclose(
        measured("binary_cross_entropy", f, soft).numpy(),
        [
            sum(
                b * math.log(1 / (1 + math.exp(-a))) + (1 - b) * math.log(1 - 1 / (1 + math.exp(-a)))
                for a, b in zip(*pair, strict=True)
            )
            for pair in zip(f2, soft.reshape(4, -1).tolist(), strict=True)
        ],
    )


def test_squared_error_and_poisson():
    f, y = torch.tensor([[1.0, 2.0], [0.5, -1.0]]).double(), torch.tensor([[0.0, 4.0], [1.0, 2.0]]).double()
    assert np.allclose(measured("squared_error", f, y), [-5.0, -9.25])
    assert np.allclose(measured("squared_error", f, y, "log_probability"), [-5.0, -9.25])
    want = [-(math.e - 0 + math.exp(2) - 8), -(math.exp(0.5) - 0.5 + math.exp(-1) + 2)]
    assert np.allclose(measured("poisson", f, y), want)


def contrastive_batch(b=3, k=4, d=5):
    torch.manual_seed(0)
    return tuple(torch.randn(s, dtype=torch.float64) for s in ((b, d), (b, d), (b, k, d)))


@pytest.mark.parametrize("similarity", ("cosine", "dot"))
def test_contrastive_loss_by_hand(similarity):
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    anchor, positive, negatives = contrastive_batch()
    loss = losses.Contrastive(temperature=0.3, similarity=similarity)
    task = pp.Task(encoder, loss=loss)
    named = {"anchor": anchor, "positive": positive, "negatives": negatives}
    got = task.losses((anchor, positive, negatives)).detach()
    assert torch.equal(got, task.losses(named))
    for i in range(3):
        za, zp, *zn = (encoder(x).detach() for x in (anchor[i], positive[i], *negatives[i]))
        if similarity == "cosine":
            za, zp, *zn = (z / z.norm() for z in (za, zp, *zn))
        logits = [float(za @ z) / 0.3 for z in (zp, *zn)]
        assert math.isclose(got[i], -log_softmax(logits)[0], rel_tol=1e-10)
        margin = pp.Task(encoder, loss=loss, measurement="margin").measurements((anchor, positive, negatives))[i]
        assert math.isclose(margin.item(), by_hand("margin", [logits], [0]), rel_tol=1e-9)


def test_triplet_loss_is_that_of_pytorch():
    anchor, positive, negatives = contrastive_batch(k=1)
    got = measured_triplet(anchor, positive, negatives)
    want = nn.TripletMarginLoss(margin=1.0, reduction="none")(anchor, positive, negatives[:, 0])
    assert torch.allclose(got, want) and bool((got > 0).any())
    several = torch.stack([negatives[:, 0], anchor + 100, negatives[:, 0]], 1)  # one is far away: it costs nothing
    assert torch.allclose(measured_triplet(anchor, positive, several), 2 * want)


def measured_triplet(*batch):
    return pp.Task(Given(), loss="triplet").losses(batch).detach()


@pytest.mark.parametrize("loss", ("contrastive", "triplet"))
def test_contrastive_examples_do_not_depend_on_each_other(loss):
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batch = contrastive_batch()
    task = pp.Task(encoder, loss=loss)
    check = pp.check_capture(task, batch)
    assert check.worst < 1e-10, check
    assert set(check.table["by"]) == {"its layer rule"}
    truth = gradients(encoder, [lambda i=i: task.losses(tuple(x[i : i + 1] for x in batch)).sum() for i in range(3)])
    scores = pp.GradDot().fit(task, batch).score(batch).dataset.score.values
    assert np.allclose(scores, products(truth, truth), rtol=1e-9, atol=1e-12)


def test_causal_lm_makes_its_own_target_without_padding():
    tokens = torch.tensor([[1, 2, 3, 0], [3, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(4, 4)

        def forward(self, input_ids, attention_mask):
            return self.table(input_ids)

    task = pp.Task(Model(), loss="causal_lm")
    alone = task.losses({"input_ids": tokens, "attention_mask": mask})
    given = {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, IGNORE)}
    assert torch.equal(alone, task.losses(given))
    assert not torch.equal(alone, task.losses({**given, "labels": tokens}))


# The output Hessian, three ways: dense, by its terms, by drawing


def sequence_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


HESSIANS = {
    "cross_entropy": ("cross_entropy", (4, 3), (4,), 3),
    "label smoothing": (losses.CrossEntropy(label_smoothing=0.3), (4, 3), (4,), 3),
    "cross_entropy, positions": ("cross_entropy", (2, 4, 3), (2, 4), 3),
    "masked_lm, mean": (losses.MaskedLM(reduction="mean"), (2, 4, 3), (2, 4), 3),
    "causal_lm": ("causal_lm", (2, 4, 3), (2, 4), 3),
    "causal_lm, mean": (losses.CausalLM(reduction="mean"), (2, 4, 3), (2, 4), 3),
    "binary": ("binary_cross_entropy", (4, 3), (4, 3), 2),
    "squared_error": ("squared_error", (4, 3), (4, 3), 9),
    "poisson": ("poisson", (4, 3), (4, 3), 4),
}


def hessian_case(name):
    loss, inputs, targets, values = HESSIANS[name]
    torch.manual_seed(3)
    x, y = torch.randn(inputs, dtype=torch.float64), torch.randint(values, targets)
    if y.ndim == 2 and isinstance(pp.Task(Given(), loss=loss)._loss, losses._Softmax):
        y[0, 2] = IGNORE
    model = sequence_model()
    task = pp.Task(model, loss=loss)
    batch = (x, y if y.shape != x.shape else y.double())
    return task, batch


def dense(task, x, y):
    """The Gauss-Newton matrix of a batch of one."""
    return gauss_newton(task.net, lambda: task.net(x), lambda z: task._loss.per_example(z, (None, y)).sum())


@pytest.mark.parametrize("name", HESSIANS)
def test_expected_losses_give_the_gauss_newton_matrix_exactly(name):
    task, batch = hessian_case(name)
    for i in range(len(batch[0])):
        own = tuple(x[i : i + 1] for x in batch)
        want = dense(task, *own)
        total = torch.zeros_like(want)
        pairs = list(task.expected_losses(own))
        assert not any(w.requires_grad for w, _ in pairs)
        for k, (weight, _) in enumerate(pairs):
            (g,) = gradients(task.net, [lambda own=own, k=k: list(task.expected_losses(own))[k][1].sum()])
            total += float(weight) * torch.outer(g, g)
        assert torch.allclose(total, want, rtol=1e-10, atol=1e-12) and float(want.norm()) > 0.01


@pytest.mark.parametrize("name", HESSIANS)
@pytest.mark.parametrize("generator", (torch.Generator().manual_seed(0), draws.Draws(0)), ids=("torch", "draws"))
def test_random_signs_give_the_gauss_newton_matrix_on_average(name, generator):
    task, batch = hessian_case(name)
    draws = 2000
    copies = tuple(x[:1].expand(draws, *x.shape[1:]) for x in batch)
    want = dense(task, batch[0][:1], batch[1][:1])
    with task.watching():
        capture = Capture.of(task, Rows.of(batch))
        _, blocks = capture.gradients(copies, lambda b: task.signed_outputs(b, generator))
    rows = {name: part for block in blocks.values() for name, part in zip(block.names, block.rows(), strict=True)}
    g = torch.cat([rows[k] for k in task.selected()], 1)
    per_draw = torch.einsum("np,nq->npq", g, g)
    error = per_draw.std(0) / draws**0.5
    assert bool(((per_draw.mean(0) - want).abs() <= 5 * error + 1e-12).all())
    assert float((g.T @ g / draws - want).norm() / want.norm()) < 0.15


def test_contrastive_candidates_are_summed_and_signed():
    torch.manual_seed(1)
    encoder = nn.Linear(5, 2).double()
    batch = contrastive_batch(b=1)
    task = pp.Task(encoder, loss=losses.Contrastive(temperature=0.5))
    pairs = list(task.expected_losses(batch))
    assert math.isclose(sum(float(w) for w, _ in pairs), 1.0)
    each = [
        gradients(encoder, [lambda k=k: list(task.expected_losses(batch))[k][1].sum()])[0] for k in range(len(pairs))
    ]
    want = sum(float(w) * torch.outer(g, g) for (w, _), g in zip(pairs, each, strict=True))
    signed = gradients(encoder, [lambda s=s: task.signed_outputs(batch, draws.Draws(s)).sum() for s in range(1000)])
    got = torch.stack([torch.outer(g, g) for g in signed])
    assert bool(((got.mean(0) - want).abs() <= 5 * got.std(0) / len(got) ** 0.5 + 1e-12).all())


@pytest.mark.parametrize("name", ("binary_cross_entropy", "squared_error", "poisson"))
def test_with_one_output_any_sign_gives_the_gauss_newton_matrix(name):
    torch.manual_seed(2)
    net = nn.Linear(3, 1).double()
    task, batch = pp.Task(net, loss=name), (torch.randn(1, 3).double(), torch.ones(1, 1).double())
    (got,) = gradients(net, [lambda: task.signed_outputs(batch, draws.Draws(0)).sum()])
    assert torch.allclose(torch.outer(got, got), dense(task, *batch), rtol=1e-12)


def test_the_root_of_a_softmax_is_one_whatever_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1.0, 30.0, 300.0):
        p = (torch.randn(6, generator=generator, dtype=torch.float64) * scale).softmax(0)
        root = torch.stack([losses.root_of_softmax(p, one) for one in torch.eye(6, dtype=p.dtype)], 1)
        assert torch.allclose(root @ root.T, p.diag() - p[:, None] * p, rtol=1e-12, atol=1e-15)
    for p in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [1e-45, 1.0, 1e-42], [1.0, 1e-30, 1e-38]):
        assert losses.root_of_softmax(torch.tensor(p), torch.ones(3)).isfinite().all()


def test_the_root_of_many_classes_is_one_too():
    p = torch.randn(losses.MANY + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(0)
    root = losses.root_of_softmax(p.expand(len(p), -1), torch.eye(len(p), dtype=p.dtype)).T
    assert torch.allclose(root @ root.T, p.diag() - p[:, None] * p, rtol=1e-12, atol=1e-15)


def test_random_signs_vary_less_than_drawn_targets():
    p = torch.tensor([0.05, 0.9, 0.03, 0.02], dtype=torch.float64)
    want = p.diag() - p[:, None] * p
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=p.dtype)] * 4)
    roots = losses.root_of_softmax(p, every)
    signed = ((roots[:, :, None] * roots[:, None] - want) ** 2).sum((1, 2)).mean()
    drawn = torch.eye(4, dtype=p.dtype) - p
    at_drawn = (p * ((drawn[:, :, None] * drawn[:, None] - want) ** 2).sum((1, 2))).sum()
    assert torch.allclose((roots[:, :, None] * roots[:, None]).mean(0), want)
    assert float(signed) < 0.1 * float(at_drawn)


@pytest.mark.parametrize("name", HESSIANS)
@pytest.mark.parametrize("size", (1, 2, 3))
def test_an_examples_draws_do_not_depend_on_its_batch(name, size):
    task, batch = hessian_case(name)
    whole = task.signed_outputs(batch, draws.Draws(4)).detach()
    parts = [
        task.signed_outputs(tuple(x[at : at + size] for x in batch), draws.Draws(4, at)).detach()
        for at in range(0, len(whole), size)
    ]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-12)
    assert not torch.allclose(task.signed_outputs(batch, draws.Draws(5)), whole)


def test_draws_do_not_depend_on_padding():
    task = pp.Task(Given(), loss="masked_lm")
    output, target = torch.randn(4, 3, 5, dtype=torch.float64), torch.randint(5, (4, 3))
    longer = nn.functional.pad(output, (0, 0, 0, 2)), nn.functional.pad(target, (0, 2), value=IGNORE)
    short = task.signed_outputs((output, target), draws.Draws(0))
    assert torch.allclose(task.signed_outputs(longer, draws.Draws(0)), short, rtol=1e-12)


def test_signs_are_fair_and_those_of_neighbours_unrelated():
    s = draws.Draws(0).signs(torch.empty(20_000, 130)).numpy()  # more than two words
    assert set(np.unique(s)) == {-1.0, 1.0}
    assert abs(s.mean(0)).max() < 5 / 20_000**0.5
    neighbours = [(s[:, j], s[:, j + 1]) for j in range(129)] + [(s[:-1, 0], s[1:, 0]), (s[:, 0], s[:, 64])]
    neighbours.append((s[:, 0], draws.Draws(1).signs(torch.empty(20_000)).numpy()))
    assert all(abs(np.corrcoef(*pair)[0, 1]) < 5 / 20_000**0.5 for pair in neighbours)


def test_signs_are_repeatable_and_never_touch_the_global_state():
    task, batch = hessian_case("cross_entropy")
    state = torch.get_rng_state()
    one, two = (task.signed_outputs(batch, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("loss", ("cross_entropy", "binary_cross_entropy", "poisson", "squared_error"))
def test_an_example_without_finite_outputs_harms_no_other(loss):
    output = torch.randn(3, 2, dtype=torch.float64)
    output[1] = torch.nan
    target = torch.tensor([0, 1, 0]) if loss == "cross_entropy" else torch.ones(3, 2).double()
    made = pp.Task(Given(), loss=loss).signed_outputs((output, target), torch.Generator().manual_seed(0))
    assert made.isfinite().tolist() == [True, False, True]


def test_half_precision_outputs_lose_no_digits_in_the_loss():
    output, target = torch.randn(50, 10).half(), torch.randint(10, (50,))
    got = losses.CrossEntropy().per_example(output, (None, target))
    want = losses.CrossEntropy().per_example(output.double(), (None, target))
    assert got.dtype == torch.float32 and float((got.double() - want).abs().max()) < 1e-6


REFUSED = {
    "float labels": ("cross_entropy", (3, 4), torch.zeros(3), r"convert them with \.long"),
    "labels out of range": ("cross_entropy", (3, 4), torch.tensor([0, 4, 1]), "labels out of range, such as 4"),
    "negative labels": ("cross_entropy", (3, 4), torch.tensor([0, -1, 1]), "labels out of range, such as -1"),
    "one output": ("cross_entropy", (3, 1), torch.zeros(3).long(), "binary_cross_entropy"),
    "classes second": ("cross_entropy", (2, 4, 3), torch.zeros(2, 3).long(), "classes are the outputs' last dimension"),
    "binary labels": ("binary_cross_entropy", (3,), torch.tensor([0, 1, 2]), r"targets in \[0, 1\]"),
    "shapes": ("squared_error", (3, 2), torch.zeros(3), "as many numbers as outputs"),
    "negative counts": ("poisson", (3,), torch.tensor([0, 1, -2]), "counts, 0 or more"),
    "no tensor": ("squared_error", (3,), [1, 2, 3], "a target of type list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_targets_are_refused_in_words(name):
    loss, shape, target, words = REFUSED[name]
    with pytest.raises(pp.InputError, match=words):
        pp.Task(Given(), loss=loss).losses((torch.zeros(shape, dtype=torch.float64), target))


def test_other_refusals():
    zeros = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(pp.InputError, match="a batch without labels"):
        pp.Task(Given(), loss="squared_error").losses({"x": zeros})
    with pytest.raises(pp.InputError, match="measurement 'entropy' of SquaredError, which predicts no classes"):
        measured("squared_error", zeros, zeros, "entropy")
    with pytest.raises(pp.InputError, match="has no logit of class 0"):
        measured("binary_cross_entropy", zeros, zeros, "logit")
    with pytest.raises(pp.InputError, match="targets between 0 and 1"):
        measured("binary_cross_entropy", zeros, zeros + 0.5, "margin")
    with pytest.raises(pp.InputError, match="reduction 'none'"):
        losses.MaskedLM(reduction="none")
    with pytest.raises(pp.InputError, match=r"shapes \(b, …\), \(b, …\), \(b, k, …\)"):
        pp.Task(Given(), loss="contrastive").losses((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(pp.InputError, match="a vector for each input"):
        pp.Task(Given(), loss="triplet").losses((torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.zeros(2, 1, 3, 1)))
    with pytest.raises(pp.InputError, match=r"did you mean 'masked_lm'\?"):
        pp.Task(Given(), loss="masked-lm")
    with pytest.raises(pp.InputError, match="CrossEntropyLoss"):
        pp.Task(Given(), loss=nn.CrossEntropyLoss())
    with pytest.raises(pp.InputError, match="loss 3"):
        pp.Task(Given(), loss=3)
    batch = zeros[:, None].expand(3, 200), zeros.long()
    with pytest.raises(pp.UnsupportedModel, match="200 terms"):
        pp.Task(Given()).expected_losses(batch)
    by_function = pp.Task(Given(), loss=lambda model, batch: model(batch[0]))
    for ask in (lambda: by_function.expected_losses(batch), lambda: by_function.signed_outputs(batch, None)):
        with pytest.raises(pp.UnsupportedModel, match="a named loss"):
            ask()
