"""Slow, independent truth for gradients: plain autograd, one example at a time, over a plain function of a model."""

import torch


def gradients(model, values):
    """(b, P): the gradient of each function in `values` (of nothing, → a scalar), all parameters flattened together.

    Each parameter once, in the order of model.parameters(); the model in eval mode, its flags put back.
    """
    parameters = list(model.parameters())
    modes = [(m, m.training) for m in model.modules()]
    flags = [p.requires_grad for p in parameters]
    rows = []
    try:
        model.eval()
        for p in parameters:
            p.requires_grad_(True)
        for value in values:
            made = torch.autograd.grad(value(), parameters, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(made, parameters, strict=True)]
            rows.append(torch.cat([g.flatten() for g in parts]))
    finally:
        for m, training in modes:
            m.training = training
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
    return torch.stack(rows)


def jacobian(model, outputs):
    """(O, P): the derivative of one example's outputs, `outputs` of nothing → any shape."""
    size = outputs().numel()
    return gradients(model, [lambda k=k: outputs().flatten()[k] for k in range(size)])


def gauss_newton(model, outputs, loss):
    """(P, P): Jᵀ H J of one example, H the dense Hessian of `loss`, a function of the outputs → a scalar."""
    J = jacobian(model, outputs)
    z = outputs().detach()
    H = torch.autograd.functional.hessian(loss, z).reshape(z.numel(), z.numel())
    return J.T @ H @ J


def products(queries, train):
    """(q, n): inner products of gradients."""
    return (queries @ train.T).numpy()
