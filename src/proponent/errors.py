"""Everything proponent raises or warns about.

    ProponentError
    ├── InputError            the data, a label, a column or an argument is not what was asked for   (a ValueError)
    ├── UnsupportedModel      no exact answer exists for this model or setting                       (a TypeError)
    ├── NotConverged          an optimiser or solver stopped short of its tolerance
    ├── FingerprintMismatch   a stored thing was made from other data, another model or settings
    └── MissingExtra          an optional dependency is not installed                                (an ImportError)

    ProponentWarning          the answer stands, but something about it should be known              (a UserWarning)

Every message has three parts: what was got, what was wanted, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ProponentError(Exception):
    """The root of all errors raised here; the message says what was got, what was wanted and what to do.

    >>> str(ProponentError("3 rows", "at least 10 rows", "add rows"))
    'Got 3 rows; wanted at least 10 rows. What to do: add rows.'
    """

    def __init__(self, got: str, wanted: str, do: str) -> None:
        self.got, self.wanted, self.do = got, wanted, do
        end = "" if do.endswith("?") else "."
        super().__init__(f"Got {got}; wanted {wanted}. What to do: {do.rstrip('.')}{end}")

    def __reduce__(self) -> tuple[type[ProponentError], tuple[str, str, str]]:
        return type(self), (self.got, self.wanted, self.do)


class InputError(ProponentError, ValueError):
    """The data, a label, a column or an argument is not what was asked for."""


class UnsupportedModel(ProponentError, TypeError):
    """No exact answer exists for this model or setting."""


class NotConverged(ProponentError, RuntimeError):
    """An optimiser or a solver stopped short of its tolerance."""


class FingerprintMismatch(ProponentError, RuntimeError):
    """A stored thing was made from other data, another model or other settings."""


class MissingExtra(ProponentError, ImportError):
    """An optional dependency is not installed."""


class ProponentWarning(UserWarning):
    """The answer stands, but something about it should be known."""


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """A hint naming the closest known names, or all of them where none is close.

    >>> did_you_mean("incme", ["age", "income"])
    "did you mean 'income'?"
    """
    names = [str(k) for k in known]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if not close:
        lowered = {k.lower(): k for k in names}
        close = [lowered[k] for k in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    shown = ", ".join(names[:30]) + (", …" if len(names) > 30 else "")
    return f"choose one of: {shown}"
