"""An experiment file: Python that the user names, and therefore run; what it defines, checked before the long work."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from proponent.errors import InputError, ProponentError, ProponentWarning, did_you_mean

REQUIRED = {
    "task": "def task(): return pp.Task(model, loss='cross_entropy')",
    "train": "def train(): return inputs, labels",
    "query": "def query(): return inputs, labels",
}
OPTIONAL = ("recipe", "describe", "checkpoints", "learning_rates", "damping", "image_shape", "bad", "methods")


@dataclass(frozen=True)
class Experiment:
    """What an experiment file defines.

    Args:
        path: the file.
        module: the file, run.
        subject: the Task, or the recipe.
        train, query: the training examples and the queries, in any form that the subject takes.
    """

    path: Path
    module: ModuleType
    subject: Any
    train: Any
    query: Any

    @property
    def is_task(self) -> bool:
        """Whether gradients are to be taken; without asking for the class, which would load torch."""
        return hasattr(self.subject, "watching")

    def defines(self, name: str) -> bool:
        """Whether the file has this function."""
        return callable(getattr(self.module, name, None))

    def call(self, name: str, *args: Any) -> Any:
        """What one of the file's functions returns, or None where there is no such function."""
        return _call(self.module, self.path, name, *args) if self.defines(name) else None


def load(path: str | Path) -> Experiment:
    """Run an experiment file and call its functions.

    Args:
        path: a Python file with task() or recipe(), train() and query().

    Raises:
        InputError: no such file, a function is missing or misspelt, or the file's own code raises; says where.
    """
    path = Path(path)
    _require_file(path)
    module = _run(path)
    subject = "recipe" if hasattr(module, "recipe") and not hasattr(module, "task") else "task"
    for name in (subject, "train", "query"):
        _require_function(module, path, name)
    _tell_misspelt(module, path)
    made = {name: _call(module, path, name) for name in (subject, "train", "query")}
    for name, value in made.items():
        if value is None:
            raise InputError(
                f"None from {name}() in {path.name}", "what it is named after", "add a return to the function"
            )
    chosen = made[subject] if subject == "recipe" else _task(made["task"], path)
    return Experiment(path, module, chosen, made["train"], made["query"])


@contextmanager
def blaming(path: Path, doing: str) -> Iterator[None]:
    """Errors of the experiment's own code, told with file and line; other errors pass.

    Args:
        path: the experiment file; an error that passed through no line of it or of files beside it is not its fault.
        doing: what was done, such as "task()".
    """
    try:
        yield
    except ProponentError:
        raise
    except (Exception, SystemExit) as e:
        where = place(e, path)
        if where is None:
            raise
        said = " ".join(str(e).split()) or "without a message"
        raise InputError(
            f"{type(e).__name__} ({said}) from {doing} at {where}", "no error", "correct the file, then run it again"
        ) from e


def place(e: BaseException, path: Path) -> str | None:
    """The innermost line of the user's own code that led to the error."""
    if isinstance(e, SyntaxError) and e.filename is not None and e.lineno is not None:
        return f"{Path(e.filename).name}, line {e.lineno}"
    home = path.resolve().parent
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if Path(f.filename).resolve().parent == home]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else None


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Modules that lie beside the file can be imported, as when Python runs it."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _call(module: ModuleType, path: Path, name: str, *args: Any) -> Any:
    function = getattr(module, name)
    with _beside(path), blaming(path, f"{name}()"):
        try:
            return function(*args)
        except TypeError as e:
            if e.__traceback__ is not None and e.__traceback__.tb_next is None:  # raised by the call itself
                raise InputError(
                    f"{name}() in {path.name} that cannot be called with {len(args)} arguments",
                    "describe(split, id)" if name == "describe" else f"{name}() without arguments",
                    "change its parameters",
                ) from e
            raise


def _run(path: Path) -> ModuleType:
    name = f"proponent_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file's own classes look for it there
    with _beside(path), blaming(path, "running it"):
        spec.loader.exec_module(module)
    return module


def _require_file(path: Path) -> None:
    if path.suffix != ".py":
        raise InputError(f"experiment {str(path)!r}", "a Python file that defines task(), train(), query()", "name one")
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(
            f"no file {str(path)!r}", "an experiment file", did_you_mean(str(path), near) if near else "check the path"
        )


def _functions(module: ModuleType) -> list[str]:
    """The functions that the file itself defines."""
    return [
        k
        for k, v in vars(module).items()
        if callable(v) and getattr(v, "__module__", "") == module.__name__ and k[0] != "_"
    ]


def _require_function(module: ModuleType, path: Path, name: str) -> None:
    if callable(getattr(module, name, None)):
        return
    close = difflib.get_close_matches(name, set(_functions(module)) - set(REQUIRED) - set(OPTIONAL), n=1, cutoff=0.6)
    do = f"rename {close[0]}() to {name}()" if close else f"add: {REQUIRED.get(name, f'def {name}(): …')}"
    got = f"{name} = {getattr(module, name)!r}" if hasattr(module, name) else f"no {name}()"
    raise InputError(f"{got} in {path.name}", "functions task() (or recipe()), train() and query()", do)


def _tell_misspelt(module: ModuleType, path: Path) -> None:
    """A function that is almost an optional one would be passed over in silence."""
    for name in OPTIONAL:
        close = difflib.get_close_matches(name, _functions(module), n=1, cutoff=0.8)
        if close and not hasattr(module, name) and close[0] not in REQUIRED:
            warnings.warn(
                f"{close[0]}() in {path.name} is not used; did you mean {name}()?", ProponentWarning, stacklevel=3
            )


def _task(made: Any, path: Path) -> Any:
    """The Task, also from (model, loss[, measurement]) or a model alone."""
    if hasattr(made, "watching"):
        return made
    parts = made if isinstance(made, tuple) else (made,)
    if not hasattr(parts[0], "named_parameters") or len(parts) > 3:
        raise InputError(
            f"{type(made).__name__} from task() in {path.name}",
            "a pp.Task, or (model, loss)",
            "return pp.Task(model, loss='cross_entropy'); a scikit-learn model is returned by recipe()",
        )
    from proponent.task import Task

    return Task(*parts)
