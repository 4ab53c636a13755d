"""Truth for training: one model, torch's own optimisers and schedulers, a batch at a time."""

from __future__ import annotations

import torch


def train(model, losses, batches, make_optimizer, factor):
    """The model after one step per batch of (inputs, targets, weights); losses(model, inputs, targets) -> (b,)."""
    model.train()
    optimizer = make_optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for inputs, targets, weights in batches:
        optimizer.zero_grad()
        total = sum(w * loss for w, loss in zip(weights, losses(model, inputs, targets), strict=True))
        (total / len(weights)).backward()
        optimizer.step()
        scheduler.step()
    return model.eval()
