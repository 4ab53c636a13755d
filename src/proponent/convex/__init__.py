"""Models with a convex objective: exact curvature, leave-one-out by Newton steps, certificates."""
