"""A folder of images, one sub-folder per class, as rows of pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from proponent.errors import InputError, MissingExtra

Array = np.ndarray[Any, np.dtype[Any]]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
GREY = frozenset({"1", "L", "I;16", "I;16B"})


@dataclass(frozen=True)
class Folder:
    """Images of one size with their classes.

    Args:
        pixels: (n, height · width · channels) uint8, 0–255.
        labels: (n,) the sub-folder each image lies in.
        ids: (n,) the path of each image inside the folder.
        rows: (n,) its place among the folder's image files in sorted order; `total` of them were found.
        shape: (height, width) for grey images, (height, width, 3) for coloured ones.
        notes: what was set aside or resized, in words.
    """

    pixels: Array
    labels: Array
    ids: Array
    rows: Array
    total: int
    shape: tuple[int, ...]
    notes: tuple[str, ...]


def list_images(path: Path) -> list[Path]:
    """The image files of the sub-folders, sorted; a sub-folder is a class.

    Raises:
        InputError: no sub-folder holds an image.
    """
    files = sorted(f for f in path.glob("*/*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise InputError(
            f"the folder {path.name!r} without sub-folders of images",
            f"one sub-folder per class with files such as {', '.join(sorted(SUFFIXES)[:4])}",
            "put each class's images in a folder named after the class, or pass a CSV, Parquet or JSON-lines file",
        )
    return files


def read_images(
    path: Path, at: Array | None = None, shape: Sequence[int] | None = None, *, longest: int = 64
) -> Folder:
    """The images of a folder at one size.

    Args:
        path: the folder.
        at: which of `list_images(path)` to read; all by default.
        shape: (height, width[, 3]) to bring images to; by default the commonest size, shrunk to `longest` pixels
            a side, in colour where any image has colour.
        longest: see `shape`.

    Raises:
        InputError: no image can be read.
        MissingExtra: Pillow is not installed.
    """
    files = list_images(path)
    rows = np.arange(len(files)) if at is None else np.asarray(at)
    wanted = _shape([files[i] for i in rows], longest) if shape is None else tuple(shape)
    kept, arrays, damaged, resized = [], [], [], 0
    for row in rows:
        image = _load(files[row])
        if image is None:
            damaged.append(f"{files[row].parent.name}/{files[row].name}")
            continue
        resized += image.size != (wanted[1], wanted[0])
        kept.append(row)
        arrays.append(_pixels(image, wanted))
    if not arrays:
        raise InputError(f"no readable image in {path.name!r}", "image files", "check that the files open in a viewer")
    notes = []
    if damaged:
        notes.append(f"{len(damaged)} files could not be read as images and were set aside: {', '.join(damaged[:5])}.")
    if resized:
        notes.append(f"{resized} of {len(arrays)} images were resized to {wanted[0]} × {wanted[1]} pixels.")
    return Folder(
        pixels=np.stack(arrays),
        labels=np.array([files[i].parent.name for i in kept]),
        ids=np.array([f"{files[i].parent.name}/{files[i].name}" for i in kept]),
        rows=np.array(kept),
        total=len(files),
        shape=wanted,
        notes=tuple(notes),
    )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("no Pillow", "Pillow to read images", 'pip install "proponent[images]"') from None
    return Image


def _load(file: Path) -> Any:
    """The image in grey or in colour, or None where the file is damaged."""
    pillow = _pillow()
    try:
        with pillow.open(file) as image:
            if image.mode.startswith("I;16"):  # convert() would clip 16 bits to 255
                return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("L" if image.mode in GREY else "RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError):
        return None


def _shape(files: Sequence[Path], longest: int) -> tuple[int, ...]:
    pillow = _pillow()
    sizes: Counter[tuple[int, int]] = Counter()
    coloured = False
    for file in files:
        try:
            with pillow.open(file) as image:
                sizes[image.size] += 1
                coloured |= image.mode not in GREY
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError):
            continue
    width, height = max(sizes, key=lambda size: (sizes[size], size), default=(1, 1))
    scale = min(1.0, longest / max(width, height))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return (*size, 3) if coloured else size


def _pixels(image: Any, shape: tuple[int, ...]) -> Array:
    """Flattened pixels at this height, width and number of channels."""
    image = image.convert("RGB" if len(shape) == 3 else "L")
    if image.size != (shape[1], shape[0]):
        image = image.resize((shape[1], shape[0]), _pillow().Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(image, dtype=np.uint8).ravel()
