"""Curvature: what the product of two gradients is measured in."""
