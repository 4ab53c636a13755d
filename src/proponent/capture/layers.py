"""Layer rules: from a call's input and its output's gradient to the gradient blocks of its parameters.

A rule is a pure function of a `Call`, with the batch first in every tensor. `rule_for` finds a module's rule; a module
without one takes the generic path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proponent.capture.blocks import Block, Dense, Factors, Lookup
from proponent.capture.call import Call
from proponent.capture.convolution import convolution, transposed_convolution

Rule = Callable[[Call], list[Block]]


def linear(call: Call) -> list[Block]:
    """y = W a + b at every position."""
    return _affine(call, transposed=False)


def conv1d_of_transformers(call: Call) -> list[Block]:
    """y = Wᵀ a + b, the weight stored as (I, O)."""
    return _affine(call, transposed=True)


def _affine(call: Call, transposed: bool) -> list[Block]:
    a, g = (x.reshape(len(x), -1, x.shape[-1]) for x in (call.args[0], call.grad))
    weight, bias = "weight" in call.wanted, "bias" in call.wanted
    names = ("weight",) * weight + ("bias",) * bias
    return [Factors(names, a, g, weight=weight, bias=bias, transposed=transposed)]


def bilinear(call: Call) -> list[Block]:
    """y_o = xᵀ W_o z + b_o."""
    x, z, g = (t.reshape(len(t), -1, t.shape[-1]) for t in (*call.args[:2], call.grad))
    return _dense(call, {"weight": lambda: torch.einsum("bto,bti,btj->boij", g, x, z), "bias": lambda: g.sum(1)})


def embedding(call: Call) -> list[Block]:
    """y_t = E[token_t]; the padding row has no gradient."""
    module: Any = call.module
    tokens = call.args[0].reshape(len(call.args[0]), -1)
    if module.padding_idx is not None:
        tokens = torch.where(tokens == module.padding_idx, -1, tokens)
    g = call.grad.reshape(len(call.grad), -1, module.embedding_dim)
    return [Lookup(("weight",), tokens, g, module.num_embeddings)]


def layer_norm(call: Call) -> list[Block]:
    """y = w ∘ (x − mean)/√(var + ε) + b over the last dimensions."""
    module: Any = call.module
    shape = module.normalized_shape
    normal = F.layer_norm(call.args[0], shape, eps=module.eps)
    return _scale_and_shift(call, normal, lambda t: t.reshape(len(t), -1, *shape).sum(1))


def rms_norm(call: Call) -> list[Block]:
    """y = w ∘ x/√(mean x² + ε) over the last dimensions."""
    module: Any = call.module
    shape = module.normalized_shape
    normal = F.rms_norm(call.args[0], shape, eps=module.eps)
    return _scale_and_shift(call, normal, lambda t: t.reshape(len(t), -1, *shape).sum(1))


def group_norm(call: Call) -> list[Block]:
    """y = w ∘ (x − mean)/√(var + ε) + b over groups of channels."""
    module: Any = call.module
    normal = F.group_norm(call.args[0], module.num_groups, eps=module.eps)
    return _scale_and_shift(call, normal, _per_channel)


def batch_norm(call: Call) -> list[Block]:
    """y = w ∘ (x − running mean)/√(running var + ε) + b, per channel."""
    module: Any = call.module
    (b, c), x, g = call.grad.shape[:2], call.args[0], call.grad
    wanted = [False, "weight" in call.wanted, "bias" in call.wanted]
    # Examples laid side by side as channels of one: sums over positions are then all that is summed.
    mean, variance = (s.to(x).repeat(b) for s in (module.running_mean, module.running_var))
    x, g = (t.reshape(1, b * c, -1) for t in (x, g))
    unsaved = x.new_empty(0)  # statistics of the batch itself, which is not looked at
    _, weight, bias = torch.ops.aten.native_batch_norm_backward(
        g, x, None, mean, variance, unsaved, unsaved, False, module.eps, wanted
    )
    return _dense(call, {"weight": lambda: weight.view(b, c), "bias": lambda: bias.view(b, c)})


def instance_norm(call: Call) -> list[Block]:
    """y = w ∘ (x − mean)/√(var + ε) + b per example and channel, or with running statistics."""
    module: Any = call.module
    if module.track_running_stats:
        return batch_norm(call)
    return _scale_and_shift(call, F.instance_norm(call.args[0], eps=module.eps), _per_channel)


def prelu(call: Call) -> list[Block]:
    """y = max(0, x) + w min(0, x), one w for all or one per channel."""
    module: Any = call.module
    rows = call.grad * call.args[0].clamp(max=0)
    alone = module.num_parameters == 1
    return _dense(call, {"weight": lambda: rows.flatten(1).sum(1, keepdim=True) if alone else _per_channel(rows)})


def _per_channel(t: Tensor) -> Tensor:
    """(b, C, …) summed over positions."""
    return t.flatten(2).sum(2) if t.ndim > 2 else t


def _scale_and_shift(call: Call, normal: Tensor, summed: Callable[[Tensor], Tensor]) -> list[Block]:
    return _dense(call, {"weight": lambda: summed(call.grad * normal), "bias": lambda: summed(call.grad)})


def _dense(call: Call, made: dict[str, Callable[[], Tensor]]) -> list[Block]:
    names = tuple(name for name in made if name in call.wanted)
    return [Dense(names, tuple(made[name]().flatten(1) for name in names))]


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Bilinear: bilinear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose1d: transposed_convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.ConvTranspose3d: transposed_convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.SyncBatchNorm: batch_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.InstanceNorm3d: instance_norm,
    nn.PReLU: prelu,
}


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a module, or of the known class whose `forward` it inherits."""
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return conv1d_of_transformers
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
        return None  # one changes the weight, the other its gradient, by what else is in the batch
    known = next((c for c in type(module).__mro__ if c in RULES), None)
    if known is None or type(module).forward is not known.forward:
        return None
    return RULES[known]
