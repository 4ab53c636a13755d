"""A hash of a model's weights: what was made of others is not gone on with."""

from __future__ import annotations

import hashlib

import torch

from proponent.task import Task


def weights_mark(task: Task) -> str:
    """The same for the same weights on any machine."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in task.net.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
