"""Training losses, one number per example, as named objects.

A batch is what the model was trained on: a tuple whose last entry is the target, or a mapping with the target under
"labels". A loss splits it, calls the model, and gives one loss per example, never averaged over the batch.

A loss that is a negative log-likelihood also knows the Hessian H of its loss in the model's output, which is what
curvature needs of it, in two forms. J is the output's derivative in the parameters:

    signed   E over random signs s of ∇signed ∇signedᵀ = Jᵀ H J   (one backward pass)
    terms    Σ weight · ∇term ∇termᵀ                   = Jᵀ H J   (exact, one backward pass a term)

`signed` is f · L s for outputs f and a root L Lᵀ = H. Targets drawn from the model would do too, but vary far more: where the model
is sure, another class is drawn seldom and then counts fully, while L s is small every time. Outputs with a loss each, such as one
number or one probability, have a diagonal H: there (L s)² = H whatever the signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proponent.batches import call, split, target_of
from proponent.draws import Generator, signs
from proponent.errors import InputError, UnsupportedModel, did_you_mean

MOST_TERMS = 128
"""Terms of one example's output Hessian, each a backward pass, up to which they are summed exactly."""

MANY = 256
"""Classes beyond which the root of their Hessian is the quicker one."""

Reduction = Literal["sum", "mean"]
Terms = Iterator[tuple[Tensor, Tensor]]


@runtime_checkable
class Loss(Protocol):
    """Losses that know their model's output: `output` calls the model, `per_example` turns its output into (b,).

    What more a loss can do, it says by having the method:

        signed(output, batch, generator)   (b,) random sums of the outputs whose gradients' second moment is Jᵀ H J
        terms(output, batch)               pairs (weight (b,), term (b,)) with Σ weight · ∇term ∇termᵀ = Jᵀ H J
        measure(what, output, batch)       (b,) log_probability, probability, margin, logit or entropy
    """

    def output(self, model: Any, batch: Any) -> Tensor: ...

    def per_example(self, output: Tensor, batch: Any) -> Tensor: ...


class _Called:
    """Losses of the model's output on the batch's inputs."""

    def output(self, model: Any, batch: Any) -> Tensor:
        return call(model, batch)


class _Softmax(_Called):
    """−log p(target) under a softmax over classes, at one or more positions of an example.

    Subclasses say where the classes and the targets are. H = diag(p) − ppᵀ whatever the target, hence also under label
    smoothing; a mean over t positions divides it by t, so the root by √t.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0

    def positions(self, output: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """(b, T, C) logits in at least float32, and (b, T) classes or `ignore_index`."""
        return classes(output, target_of(batch), self.ignore_index)

    def share(self, target: Tensor) -> Tensor:
        """(b,) what an example's sum over positions is divided by."""
        return torch.ones(len(target), device=target.device)

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        logits, target = self.positions(output, batch)
        flat = F.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return flat.view(target.shape).sum(1) / self.share(target).to(logits.dtype)

    def signed(self, output: Tensor, batch: Any, generator: Generator) -> Tensor:
        logits, target = self.positions(output, batch)
        p = logits.detach().softmax(-1)
        root = root_of_softmax(p, signs(p, generator)) * (target != self.ignore_index)[:, :, None]
        possible = logits.masked_fill(root == 0, 0.0)  # a class that is ruled out has the logit −∞
        return (root * possible).sum((1, 2)) / self.share(target).to(logits.dtype).sqrt()

    def terms(self, output: Tensor, batch: Any) -> Terms:
        """p_c and −log p_c of every class, at every position."""
        logits, target = self.positions(output, batch)
        few_terms(logits.shape[1] * logits.shape[2])
        log_p = logits.log_softmax(-1)
        weight = log_p.detach().exp() * (target != self.ignore_index)[:, :, None]
        weight /= self.share(target).to(weight.dtype)[:, None, None]
        return ((weight[:, t, c], -log_p[:, t, c]) for t in range(logits.shape[1]) for c in range(logits.shape[2]))

    def measure(self, what: str, output: Tensor, batch: Any) -> Tensor:
        logits, target = self.positions(output, batch)
        live = target != self.ignore_index
        made = _measured(what, logits, torch.where(live, target, 0)[:, :, None])
        # A sum of probabilities is nothing: they are averaged, whatever the losses are.
        share = live.sum(1).clamp(min=1) if what == "probability" else self.share(target)
        return torch.where(live, made, 0.0).sum(1) / share.to(made.dtype)


def _measured(what: str, logits: Tensor, own: Tensor) -> Tensor:
    """(b, T) measurements of the classes `own`, (b, T, 1)."""
    if what == "logit":
        return logits.gather(-1, own).squeeze(-1)
    if what == "margin":
        others = logits.scatter(-1, own, -torch.inf).logsumexp(-1)
        return logits.gather(-1, own).squeeze(-1) - others
    log_p = logits.log_softmax(-1)
    if what in ("log_probability", "probability"):
        made = log_p.gather(-1, own).squeeze(-1)
        return made.exp() if what == "probability" else made
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)  # 0 log 0 = 0


@dataclass(frozen=True)
class CrossEntropy(_Softmax):
    """−log p(target) of a softmax over classes, summed over the positions of an example.

    The classes are the last dimension of the model's output. Label smoothing moves the loss's minimum, not its Hessian.

    >>> output, target = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([1, -100])
    >>> CrossEntropy().per_example(output, (None, target))
    tensor([0.6931, 0.0000])

    Args:
        ignore_index: targets that carry no loss.
        label_smoothing: share of the target spread evenly over the classes.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class MaskedLM(_Softmax):
    """−Σ_t log p(token t | the rest) over the masked tokens of one sequence; all others have the target ignore_index.

    Args:
        ignore_index: targets of the tokens that are not masked.
        reduction: "sum" over the sequence's own masked tokens, or their "mean".
    """

    ignore_index: int = -100
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        require_reduction(self.reduction)

    def share(self, target: Tensor) -> Tensor:
        return _share(self.reduction, target, self.ignore_index)


@dataclass(frozen=True)
class CausalLM(_Softmax):
    """−Σ_t log p(token t+1 | tokens ≤ t) of one sequence; targets equal to ignore_index carry no loss.

    The target is "labels", or the last entry of a tuple, shifted here by one position. A mapping without labels is its own
    target: "input_ids", without those where "attention_mask" is 0.

    Args:
        ignore_index: targets that carry no loss.
        reduction: "sum" over the sequence's own tokens, or their "mean".
    """

    ignore_index: int = -100
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        require_reduction(self.reduction)

    def share(self, target: Tensor) -> Tensor:
        return _share(self.reduction, target, self.ignore_index)

    def positions(self, output: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return classes(output[:, :-1], self._tokens(batch)[:, 1:], self.ignore_index)

    def _tokens(self, batch: Any) -> Tensor:
        target = split(batch)[2]
        if target is not None or not isinstance(batch, Mapping) or "input_ids" not in batch:
            return target_of(batch)
        tokens, mask = batch["input_ids"], batch.get("attention_mask")
        return tokens if mask is None else torch.where(mask == 0, self.ignore_index, tokens)


@dataclass(frozen=True)
class Contrastive(_Softmax):
    """−log softmax_j(sim(anchor, candidate_j)/τ) at the positive: InfoNCE with each example's own negatives.

    A batch is (anchor, positive, negatives) or a mapping with these names, of shapes (b, …), (b, …), (b, k, …); the model
    is called once, as the encoder of all of them. In-batch negatives give no example a loss of its own.

    >>> encoder = torch.nn.Identity()
    >>> batch = torch.eye(2), torch.eye(2), torch.eye(2).flip(0)[:, None]  # positives are alike, negatives are not
    >>> Contrastive(temperature=1.0).per_example(Contrastive(temperature=1.0).output(encoder, batch), batch)
    tensor([0.3133, 0.3133])

    Args:
        temperature: τ.
        similarity: "cosine" or "dot".

    Source: van den Oord et al., Representation learning with contrastive predictive coding, 2018.
    """

    temperature: float = 0.1
    similarity: Literal["cosine", "dot"] = "cosine"

    def output(self, model: Any, batch: Any) -> Tensor:
        """(b, 1 + k) similarities over τ, the positive's first."""
        z = encoded(model, batch)
        z = F.normalize(z, dim=-1) if self.similarity == "cosine" else z
        return torch.einsum("bd,bkd->bk", z[:, 0], z[:, 1:]) / self.temperature

    def positions(self, output: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        first = torch.zeros(len(output), dtype=torch.long, device=output.device)
        return classes(output, first, self.ignore_index)


@dataclass(frozen=True)
class Triplet:
    """Σ_j max(0, ‖a − p‖ − ‖a − n_j‖ + margin) over an example's own negatives.

    A batch as for `Contrastive`. The loss is piecewise linear in the distances, so it has no curvature of its own.

    Args:
        margin: by how much a negative should be further away.

    Source: Schroff et al., FaceNet: a unified embedding for face recognition and clustering, CVPR 2015.
    """

    margin: float = 1.0

    def output(self, model: Any, batch: Any) -> Tensor:
        """(b, 1 + k) distances to the anchor, the positive's first."""
        z = wide(encoded(model, batch))
        return F.pairwise_distance(z[:, :1], z[:, 1:])

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        return (output[:, :1] - output[:, 1:] + self.margin).relu().sum(1)


class _Separate(_Called):
    """Sums over an example's outputs of a loss of each: H is diagonal.

    Subclasses give its diagonal (b, O) at the outputs.
    """

    def second(self, f: Tensor) -> Tensor:
        raise NotImplementedError

    def signed(self, output: Tensor, batch: Any, generator: Generator) -> Tensor:
        f = rows(output)
        return (signs(f, generator) * self.second(f.detach()).sqrt() * f).sum(1)

    def terms(self, output: Tensor, batch: Any) -> Terms:
        f = rows(output)
        few_terms(f.shape[1])
        second = self.second(f.detach())
        return ((second[:, k], f[:, k]) for k in range(f.shape[1]))


@dataclass(frozen=True)
class BinaryCrossEntropy(_Separate):
    """−log p(target) of independent sigmoids with targets in [0, 1], summed over an example's outputs."""

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        output, target = self._pair(output, batch)
        return F.binary_cross_entropy_with_logits(output, target, reduction="none").sum(1)

    def second(self, f: Tensor) -> Tensor:
        p = f.sigmoid()
        return p * (1 - p)

    def measure(self, what: str, output: Tensor, batch: Any) -> Tensor:
        if what == "log_probability":
            return -self.per_example(output, batch)
        f, target = self._pair(output, batch)
        if what == "entropy":
            return (F.softplus(f) - f * f.sigmoid()).sum(1)
        if what == "logit":
            raise InputError(
                "measurement 'logit' of a binary loss, which has no logit of class 0",
                "measurement 'margin', log p/(1 − p) of the target",
                "pass measurement='margin', or a function",
            )
        if bool(((target != 0) & (target != 1)).any()):
            raise InputError(
                f"measurement {what!r} of targets between 0 and 1", "targets 0 or 1", "pass 'loss' or a function"
            )
        margins = (2 * target - 1) * f
        return margins.sigmoid().mean(1) if what == "probability" else margins.sum(1)

    def _pair(self, output: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        f, target = same_rows(output, batch)
        if bool(((target < 0) | (target > 1)).any()):
            raise InputError(
                f"binary targets from {target.min():g} to {target.max():g}", "targets in [0, 1]", "recode them"
            )
        return f, target


@dataclass(frozen=True)
class SquaredError(_Separate):
    """‖output − target‖², the sum over an example's outputs."""

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        f, target = same_rows(output, batch)
        return (f - target).square().sum(1)

    def second(self, f: Tensor) -> Tensor:
        return torch.full_like(f, 2.0)


@dataclass(frozen=True)
class Poisson(_Separate):
    """exp(f) − y f of counts y with log-rate f, summed over an example's outputs."""

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        f, target = same_rows(output, batch)
        if bool((target < 0).any()):
            raise InputError(
                f"a count of {target.min():g}", "counts, 0 or more", "check the targets, or use squared_error"
            )
        return F.poisson_nll_loss(f, target, log_input=True, reduction="none").sum(1)

    def second(self, f: Tensor) -> Tensor:
        return f.exp()


LOSSES: dict[str, Callable[[], Any]] = {
    "cross_entropy": CrossEntropy,
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "contrastive": Contrastive,
    "triplet": Triplet,
    "binary_cross_entropy": BinaryCrossEntropy,
    "squared_error": SquaredError,
    "poisson": Poisson,
}


def named_loss(loss: Any) -> Any:
    """A loss object or function, by name or as it is."""
    if isinstance(loss, nn.modules.loss._Loss):
        raise InputError(
            f"loss {type(loss).__name__}(), a function of outputs and targets",
            f"one of {', '.join(LOSSES)}, or a function (model, batch) → (b,)",
            "pass the name, or lambda model, batch: …(reduction='none')(model(batch[0]), batch[1])",
        )
    if not isinstance(loss, str):
        if not callable(loss) and not isinstance(loss, Loss):
            raise InputError(
                f"loss {loss!r}", f"one of {', '.join(LOSSES)}, or a function (model, batch) → (b,)", "pass one"
            )
        return loss
    if loss not in LOSSES:
        raise InputError(f"loss {loss!r}", f"one of {', '.join(LOSSES)}, or a function", did_you_mean(loss, LOSSES))
    return LOSSES[loss]()


def classes(output: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Logits (b, T, C) in at least float32 with targets (b, T), or a refusal before the loss indexes with them."""
    require_classes(target, output.shape[-1], ignore_index)
    if target.numel() != output.shape[:-1].numel():
        raise InputError(
            f"targets of shape {tuple(target.shape)} for outputs of shape {tuple(output.shape)}",
            f"targets of shape {tuple(output.shape[:-1])}: the classes are the outputs' last dimension",
            "pass loss=fn(model, batch) where they are another one, such as (batch, classes, height, width)",
        )
    shape = len(output), output.shape[1:-1].numel()
    return wide(output).reshape(*shape, output.shape[-1]), target.reshape(shape).long()


def require_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse targets that are not classes of the model, before the loss indexes with them."""
    if target.is_floating_point():
        raise InputError(f"targets of dtype {target.dtype}", "integer classes", "convert them with .long()")
    if classes < 2:
        raise InputError(
            "one output for a softmax over classes, whose loss is always 0",
            "an output for each class",
            "use loss='binary_cross_entropy' for one output, 'squared_error' for a number",
        )
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bool(bad.any()):
        raise InputError(
            f"labels out of range, such as {int(target[bad][0])}",
            f"classes 0 … {classes - 1}, the model's outputs",
            "recode the labels, or give the model as many outputs as classes",
        )


def require_reduction(reduction: str) -> None:
    """Refuse what is neither a sum nor a mean over an example's own tokens."""
    if reduction not in ("sum", "mean"):
        raise InputError(
            f"reduction {reduction!r}", "'sum' or 'mean', over an example's own tokens", "choose the one of training"
        )


def _share(reduction: Reduction, target: Tensor, ignore_index: int) -> Tensor:
    if reduction == "sum":
        return torch.ones(len(target), device=target.device)
    return (target != ignore_index).sum(1).clamp(min=1)


def same_rows(output: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """Outputs and targets as (b, O), in at least float32."""
    target = target_of(batch)
    if target.numel() != output.numel():
        raise InputError(
            f"targets of shape {tuple(target.shape)} for outputs of shape {tuple(output.shape)}",
            "as many numbers as outputs",
            "reshape the targets",
        )
    f = rows(output)
    return f, target.reshape(f.shape).to(f.dtype)


def rows(output: Tensor) -> Tensor:
    """Outputs as (b, O), in at least float32."""
    return wide(output).reshape(len(output), -1)


def wide(x: Tensor) -> Tensor:
    """In at least float32: losses of half-precision outputs lose no digits of their own."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def root_of_softmax(p: Tensor, s: Tensor) -> Tensor:
    """L s of signs s, with L Lᵀ = diag(p) − ppᵀ over the last dimension.

    With q_j = Σ_{i ≥ j} p_i, the Cholesky factor is L_jj = √(p_j q_{j+1} / q_j) and L_ij = −p_i √(p_j / (q_j q_{j+1})) below
    it: each class against all later ones. Under random signs it varies little more than the root of the eigenvectors, which
    varies least. Among many classes, such as tokens, the columns √p_k (e_k − p) are hardly worse and take a third of its time.

    >>> root_of_softmax(torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0]))
    tensor([ 0.5000, -0.5000])
    """
    if p.shape[-1] > MANY:
        own = p.sqrt().mul_(s)
        return own.addcmul_(p, own.sum(-1, keepdim=True), value=-1)
    down = p.flip(-1).cumsum(-1).flip(-1)
    after = F.pad(down[..., 1:], (0, 1))
    some = after >= torch.finfo(p.dtype).tiny
    own = torch.where(some, s * (p / down).sqrt(), 0.0)
    over = torch.where(some, own / after.sqrt(), 0.0)
    return own * after.sqrt() - p * (over.cumsum(-1) - over)


def few_terms(count: int) -> None:
    """Refuse to sum so many terms that a random sum is as good."""
    if count > MOST_TERMS:
        raise UnsupportedModel(
            f"an output Hessian of {count:,} terms for each example, each of which is a backward pass",
            f"at most {MOST_TERMS}",
            "take fisher='sampled' instead",
        )


def encoded(model: Any, batch: Any) -> Tensor:
    """(b, 2 + k, d): the anchor, the positive and k negatives of each example, from one call of the encoder."""
    parts = tuple(batch[k] for k in ("anchor", "positive", "negatives")) if isinstance(batch, Mapping) else batch[:3]
    shapes = [tuple(p.shape) for p in parts]
    anchor = shapes[0]
    if len(parts) != 3 or shapes[1] != anchor or len(shapes[2]) != len(anchor) + 1 or shapes[2][2:] != anchor[1:]:
        raise InputError(
            f"contrastive parts of shapes {', '.join(map(str, shapes))}",
            "(anchor, positive, negatives) of shapes (b, …), (b, …), (b, k, …)",
            "give every example its own negatives, or pass loss=fn(model, batch)",
        )
    every = torch.cat([parts[0][:, None], parts[1][:, None], parts[2]], dim=1)
    made = model(every.flatten(0, 1))
    if not isinstance(made, Tensor) or made.ndim != 2:
        raise InputError(
            f"an encoder's output of {f'shape {tuple(made.shape)}' if isinstance(made, Tensor) else type(made).__name__}",
            "a vector for each input, (b, d)",
            "pass the part of the model that makes the vectors, or loss=fn(model, batch)",
        )
    return made.unflatten(0, every.shape[:2])
