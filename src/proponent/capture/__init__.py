"""Gradients of single examples, from one forward and one backward pass over a batch, without touching the disk."""
