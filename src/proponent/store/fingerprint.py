"""A fingerprint says what made a stored thing; a mismatch is refused in words that name the difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from proponent.errors import FingerprintMismatch


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A hash of JSON-able parts, the same on any machine.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def require_same(stored: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with something that was made from other parts.

    >>> require_same({"data": "a"}, {"data": "b"}, "runs/x")
    Traceback (most recent call last):
    proponent.errors.FingerprintMismatch: Got another data at runs/x ('a' there, 'b' now); wanted the same data, ...
    """
    for key in sorted({*stored, *now}):
        if stored.get(key) != now.get(key):
            raise FingerprintMismatch(
                f"another {key} at {where} ({_short(stored.get(key))} there, {_short(now.get(key))} now)",
                f"the same {key}, because what is stored there was computed from it",
                "choose another directory, or delete this one to start afresh",
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
