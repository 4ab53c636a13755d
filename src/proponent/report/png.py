"""Pixels as PNG bytes, so that a picture can stand in the report without an imaging library."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def png(pixels: Array) -> bytes:
    """The PNG file of these pixels.

    >>> png(np.zeros((2, 3), dtype=np.uint8))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'

    Args:
        pixels: uint8 in 0–255, shape (height, width) for grey or (height, width, 3) for colour.

    Source: W3C, Portable Network Graphics (PNG) Specification, 8 bits per channel, filter 0 on every line.
    """
    height, width = pixels.shape[:2]
    lines = np.ascontiguousarray(pixels, dtype=np.uint8).reshape(height, -1)
    raw = np.hstack([np.zeros((height, 1), dtype=np.uint8), lines]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b"")


def shrink(pixels: Array, side: int) -> Array:
    """The picture averaged over k×k blocks, k the smallest that brings its longer side to `side` pixels or fewer."""
    k = -(-max(pixels.shape[:2]) // side)
    if k <= 1:
        return pixels
    height, width = (max(s // k, 1) for s in pixels.shape[:2])
    tall, wide = min(k, pixels.shape[0]), min(k, pixels.shape[1])
    blocks = pixels[: height * tall, : width * wide].reshape(height, tall, width, wide, *pixels.shape[2:])
    return np.asarray(blocks.mean(axis=(1, 3)).round(), dtype=np.uint8)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
