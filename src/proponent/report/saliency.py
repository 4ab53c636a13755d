"""A training image beside how a query's score changes with each of its pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

RAISES, LOWERS, NOTHING = np.array([[31, 122, 109], [179, 67, 27], [255, 255, 255]], dtype=float)
"""Colours of slopes above, below and at zero: those of helping and hurting on the page, and white."""


def by_pixel(slopes: Array) -> Array:
    """(height, width): slopes of each pixel, summed over its channels: what making it brighter does.

    Args:
        slopes: (height, width), (1 or 3, height, width) or (height, width, 1 or 3).

    Raises:
        InputError: another shape, or slopes that are not finite.
    """
    if not np.isfinite(slopes).all():
        raise InputError("slopes that are not finite", "numbers", "leave out this query or this training example")
    if slopes.ndim == 2:
        return slopes
    for axis in (0, 2):
        if slopes.ndim == 3 and slopes.shape[axis] in (1, 3):
            return np.asarray(slopes.sum(axis))
    raise InputError(f"slopes of shape {slopes.shape}", "those of one picture", "choose one query and one example")


def colours(slopes: Array) -> Array:
    """(height, width, 3) in 0–255: green where a brighter pixel raises the measurement, red where it lowers it.

    Colour grows evenly with the slope, white is zero, and the largest slope of either sign has the full colour.

    >>> colours(np.array([[-2.0, 0.0, 2.0]])).tolist()
    [[[179, 67, 27], [255, 255, 255], [31, 122, 109]]]

    Args:
        slopes: as for `by_pixel`.
    """
    flat = by_pixel(slopes)
    share = (np.abs(flat) / (np.abs(flat).max(initial=0.0) or 1.0))[:, :, None]
    full = np.where(flat[:, :, None] > 0, RAISES, LOWERS)
    return np.asarray((NOTHING + share * (full - NOTHING)).round(), dtype=np.uint8)


def beside(image: Array, slopes: Array) -> Array:
    """The training image, and at its right the colours of its slopes, as one picture.

    >>> beside(np.zeros((4, 3), np.uint8), np.ones((1, 4, 3))).shape
    (4, 7, 3)

    Args:
        image: (height, width) or (height, width, 3), in 0–255.
        slopes: of one query and this image, as `perturbation` gives them; shapes as for `by_pixel`.

    Returns:
        (height, 2 width + 1, 3) in 0–255; `proponent.report.png.png` makes a file of it.

    Raises:
        InputError: the slopes are of a picture of another size.
    """
    drawn = colours(slopes)
    if image.shape[:2] != drawn.shape[:2]:
        raise InputError(
            f"slopes of {drawn.shape[:2]} pixels for an image of {image.shape[:2]}",
            "one size",
            "pass them of one example",
        )
    grey = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    gap = np.full((len(image), 1, 3), 255, dtype=np.uint8)
    return np.concatenate([grey.astype(np.uint8), gap, drawn], axis=1)
