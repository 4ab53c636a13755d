"""A model of how given labels differ from true ones, fitted on predictions that are out of sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

OFFSET_PENALTY = 1e-4  # on the classes' offsets, so that they are determined where the data say nothing
RATE_PENALTY = 1e-3  # pulls the classes' flip rates together
START = -3.0  # logit of the flip rate that the fit starts from: 5 %
NO_NOISE, MOST_NOISE = -8.0, -0.2  # logits of the least and the greatest flip rate: 0.03 %, 45 %


@dataclass(frozen=True)
class LabelNoise:
    """How predictions give the true label, and how the true label gives the given one.

    P(true = t | x) ∝ exp(b_t + Σ_m a_m log p_m(t | x)),
    P(given = g | true = t) = 1 − ρ_t where g = t, ρ_t / (C − 1) elsewhere.

    Args:
        pooling: (members,) the weight a_m ≥ 0 of each member's log-probabilities: pool and temperature in one.
        offsets: (C,) b.
        rates: (C,) ρ, the probability that a label of this class is given as another one.
    """

    pooling: Array
    offsets: Array
    rates: Array

    def evident(self) -> bool:
        """Whether the labels gave evidence of any noise."""
        return bool(self.rates.max() > 2 * expit(NO_NOISE))

    def true(self, probabilities: Array) -> Array:
        """P(true = t | x), shape (n, C), from the members' probabilities, shape (members, n, C)."""
        return _pooled(self.pooling, self.offsets, _centred_logs(probabilities))

    def wrong(self, probabilities: Array, codes: Array) -> Array:
        """P(true ≠ given | x, given), shape (n,), high = bad."""
        right = _posterior(self.true(probabilities), self.rates, codes)[np.arange(len(codes)), codes]
        return np.clip(1 - right, 0, 1)


def fit_label_noise(
    probabilities: Array, codes: Array, weights: Array | None = None, *, evident: bool = False
) -> LabelNoise:
    """Pooling weights, class offsets and flip rates of greatest likelihood for the given labels.

    maximises Σ_i w_i log Σ_t P(given_i | t) P(t | x_i), so a row that contradicts confident predictions costs log ρ
    and no more: wrong labels do not bend the calibration. Where noise does not raise the log-likelihood by ½ log n (the
    Bayesian information criterion for one parameter) the labels may as well be hard to predict, and the rates are set to 0.03 %.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.beta(0.2, 0.2, 4000)
    >>> given = (rng.random(4000) < p) ^ (rng.random(4000) < 0.1)
    >>> noise = fit_label_noise(np.stack([1 - p, p], axis=1)[None], given.astype(int))
    >>> bool(np.all(abs(noise.rates - 0.1) < 0.03))
    True

    Args:
        probabilities: (members, n, C) out-of-sample probabilities, positive.
        codes: (n,) the given labels as 0 … C−1.
        weights: (n,) sample weights ≥ 0; ones where None.
        evident: whether there is noise is settled already, so that no evidence is asked for.

    Source: Patrini et al., Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach, CVPR 2017
    (the corrected likelihood); Bootkrajang and Kabán, Label-Noise Robust Logistic Regression, ECML 2012.
    """
    logs = _centred_logs(probabilities)
    members, n, classes = logs.shape
    weight = np.ones(n) if weights is None else np.asarray(weights, float)
    weight = weight / weight.sum()

    def fit(start: Array, highest: float) -> tuple[Array, float]:
        bounds = [(0.0, 8.0)] * members + [(-4.0, 4.0)] * classes + [(NO_NOISE, highest)] * classes
        found = minimize(_objective, start, args=(logs, codes, weight), jac=True, method="L-BFGS-B", bounds=bounds)
        return found.x, float(found.fun)

    plain = np.concatenate([np.full(members, 1 / members), np.zeros(classes), np.full(classes, NO_NOISE)])
    plain, without = fit(plain, NO_NOISE)
    noisy = np.concatenate([plain[: members + classes], np.full(classes, START)])
    noisy, with_noise = fit(noisy, MOST_NOISE)
    rows = np.count_nonzero(weight)
    evident = evident or rows * (without - with_noise) > np.log(rows) / 2
    a, b, u = np.split(noisy if evident else plain, [members, members + classes])
    return LabelNoise(a, b, expit(u))


def label_error_scores(probabilities: Array, labels: Array) -> Array:
    """The probability that each given label is wrong, from out-of-sample class probabilities.

    >>> p = expit(np.linspace(-8, 8, 400))
    >>> labels = (p > 0.5).astype(int)
    >>> labels[[0, 10, 20, 390]] = [1, 1, 1, 0]
    >>> np.flatnonzero(label_error_scores(np.stack([1 - p, p], axis=1), labels) > 0.5).tolist()
    [0, 10, 20, 390]

    Args:
        probabilities: (n, C) or (members, n, C).
        labels: (n,) codes 0 … C−1, the columns of `probabilities`.

    Raises:
        InputError: shapes that do not fit together.
    """
    stacked = np.asarray(probabilities, float)
    stacked = stacked[None] if stacked.ndim == 2 else stacked
    codes = np.asarray(labels)
    if stacked.ndim != 3 or stacked.shape[1] != len(codes) or not np.isin(codes, np.arange(stacked.shape[2])).all():
        raise InputError(
            f"probabilities of shape {np.shape(probabilities)} for {len(codes)} labels",
            "one row of probabilities per label, one column per class, labels 0 … C−1",
            "pass the labels as column numbers of the probabilities",
        )
    return fit_label_noise(stacked, codes).wrong(stacked, codes)


def _centred_logs(probabilities: Array) -> Array:
    logs = np.log(np.maximum(probabilities, 1e-12))
    return np.asarray(logs - logs.mean(axis=2, keepdims=True))


def _pooled(a: Array, b: Array, logs: Array) -> Array:
    return np.asarray(softmax(np.tensordot(a, logs, axes=1) + b, axis=1))


def _transition(rates: Array, codes: Array) -> Array:
    """P(given_i | true = t), shape (n, C)."""
    classes = len(rates)
    elsewhere = np.tile(rates / max(classes - 1, 1), (len(codes), 1))
    elsewhere[np.arange(len(codes)), codes] = 1 - rates[codes]
    return elsewhere


def _posterior(true: Array, rates: Array, codes: Array) -> Array:
    """P(true = t | x, given), shape (n, C)."""
    joint = _transition(rates, codes) * true
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def _objective(v: Array, logs: Array, codes: Array, weight: Array) -> tuple[float, Array]:
    """Minus the mean log-likelihood with its penalties, and its gradient.

    With the joint j_t = T[t, g] p_t and the posterior π = j / Σ j:  ∂log q/∂logit_t = π_t − p_t,
    ∂log q/∂u_t = −π_t ρ_t where t = g, π_t (1 − ρ_t) elsewhere, for ρ = sigmoid(u).
    """
    members, _, classes = logs.shape
    a, b, u = np.split(v, [members, members + classes])
    rates, rows = expit(u), np.arange(len(codes))
    true = _pooled(a, b, logs)
    joint = _transition(rates, codes) * true
    likelihood = joint.sum(axis=1)
    posterior = joint / likelihood[:, None]
    shift = (posterior - true) * weight[:, None]
    kept = np.bincount(codes, weight * posterior[rows, codes], classes)
    left = (weight[:, None] * posterior).sum(axis=0) - kept
    spread = u - u.mean()
    value = -weight @ np.log(likelihood) + OFFSET_PENALTY * b @ b + RATE_PENALTY * spread @ spread
    gradient = -np.concatenate(
        [np.tensordot(logs, shift, axes=([1, 2], [0, 1])), shift.sum(axis=0), left * (1 - rates) - kept * rates]
    )
    gradient[members:] += np.concatenate([2 * OFFSET_PENALTY * b, 2 * RATE_PENALTY * spread])
    return float(value), gradient
