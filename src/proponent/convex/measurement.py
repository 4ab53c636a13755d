"""What is measured of a query, as a function of its logits: its value, its slope, and its range over an interval of logits.

Index letters: q queries, c outputs, b columns (one perturbed model each). Logits have shape (q, c, b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from proponent.convex.losses import Logistic, Loss, Softmax, Squared
from proponent.errors import InputError, UnsupportedModel

Array = np.ndarray[Any, np.dtype[Any]]
Name = Literal["loss", "margin", "probability", "prediction"]
NAMES: tuple[Name, ...] = ("loss", "margin", "probability", "prediction")


@dataclass(frozen=True)
class Measurement:
    """A measurement of fixed queries. All but a regression's loss grow with each v_c = (logit of the label) − (logit of c).

    Args:
        name: "loss" is minus the query's loss; "margin" its log-odds log p/(1 − p) (y f where there are no
            probabilities); "probability" that of its label; "prediction" the predicted value, or the margin of the class
            that the model predicts, so that no label is needed.
        loss: the model's loss.
        y: (q,) the queries' targets, as the loss wants them.
    """

    name: Name
    loss: Loss
    y: Array

    @property
    def against(self) -> Array | None:
        """The class that other classes are compared with, where there are several outputs."""
        return self.y.astype(int) if isinstance(self.loss, Softmax) else None

    def value(self, f: Array) -> Array:
        """(q, b)."""
        if isinstance(self.loss, Squared):
            return f[:, 0] if self.name == "prediction" else -((f[:, 0] - self.y[:, None]) ** 2)
        return self._of_leads(self._leads(f))

    def range(self, f: Array, width: Array) -> tuple[Array, Array]:
        """The least and the largest value while each logit (or lead over another class) moves by at most `width`."""
        if isinstance(self.loss, Squared):
            off, w = f[:, 0] - self.y[:, None], width[:, 0]
            if self.name == "prediction":
                return f[:, 0] - w, f[:, 0] + w
            return -((np.abs(off) + w) ** 2), -(np.maximum(np.abs(off) - w, 0.0) ** 2)
        v = self._leads(f)
        return self._of_leads(v - width), self._of_leads(v + width)

    def slope(self, f: Array) -> Array:
        """∂m/∂f, shape (q, c), at logits (q, c)."""
        if isinstance(self.loss, Squared):
            return np.ones_like(f) if self.name == "prediction" else -2.0 * (f - self.y[:, None])
        if isinstance(self.loss, Softmax):
            return self._softmax_slope(f)
        if self.name in ("margin", "prediction"):
            return self.y[:, None].copy()
        ell = self.loss.gradient(f, self.y)
        return -ell if self.name == "loss" else -ell * _expit(self.y * f[:, 0])[:, None]

    def _leads(self, f: Array) -> Array:
        if isinstance(self.loss, Softmax):
            own = f[np.arange(len(f)), self.y.astype(int)]
            return np.asarray(own[:, None] - f)
        return f * self.y[:, None, None]

    def _of_leads(self, v: Array) -> Array:
        if isinstance(self.loss, Softmax):
            others = np.arange(v.shape[1])[None, :] != self.y.astype(int)[:, None]
            margin = -_logsumexp(np.where(others[:, :, None], -v, -np.inf))
        else:
            margin = v[:, 0]
        if self.name in ("margin", "prediction"):
            return margin
        if isinstance(self.loss, Logistic | Softmax) and self.name == "probability":
            return _expit(margin)
        if isinstance(self.loss, Softmax) or (
            isinstance(self.loss, Logistic) and self.loss.offset == 0.0 and self.loss.temperature == 1.0
        ):
            # log σ(u) = min(u, 0) − log(1 + e^(−|u|))
            return np.asarray(np.minimum(margin, 0.0) - np.log1p(np.exp(-np.abs(margin))))
        flat = margin.reshape(-1, 1)
        return np.asarray(-self.loss.value(flat, np.ones(len(flat))).reshape(margin.shape))

    def _softmax_slope(self, f: Array) -> Array:
        e = np.exp(f - f.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        own = np.zeros_like(f)
        own[np.arange(len(f)), self.y.astype(int)] = 1.0
        correct = (p * own).sum(axis=1, keepdims=True)
        if self.name == "loss":
            return np.asarray(own - p)
        if self.name == "probability":
            return np.asarray(correct * (own - p))
        return np.asarray((own - p) / np.maximum(1.0 - correct, 1e-300))


def measure(name: str, loss: Loss, y: Array | None, f: Array) -> Measurement:
    """The measurement of queries with targets y (or none) and logits f (q, c).

    Raises:
        InputError: an unknown name, or labels missing where they are needed.
        UnsupportedModel: a probability of a model without probabilities, or a margin of a regression.
    """
    if name not in NAMES:
        raise InputError(f"measurement {name!r}", f"one of {', '.join(NAMES)}", "choose one of these")
    if name == "prediction" and not isinstance(loss, Squared):
        y = f.argmax(axis=1).astype(float) if isinstance(loss, Softmax) else np.where(f[:, 0] >= 0, 1.0, -1.0)
    if y is None and name == "prediction":
        y = np.zeros(len(f))
    if y is None:
        raise InputError(
            "queries without labels", f"labels, which {name!r} needs", "pass (inputs, labels), or measure 'prediction'"
        )
    if isinstance(loss, Squared) and name in ("margin", "probability"):
        raise UnsupportedModel(f"measurement {name!r} of a regression", "'loss' or 'prediction'", "choose one of these")
    has_probability = isinstance(loss, Softmax) or (isinstance(loss, Logistic) and loss.offset == 0.0)
    if name == "probability" and not has_probability:
        raise UnsupportedModel(
            "the probability of a model without probabilities", "'loss', 'margin' or 'prediction'", "choose one"
        )
    return Measurement(name, loss, y)


def _expit(u: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-u)))


def _logsumexp(v: Array) -> Array:
    top = v.max(axis=1)
    return np.asarray(top + np.log(np.exp(v - top[:, None]).sum(axis=1)))
