"""Maps over independent work, in order: workers through joblib, which is spoken to here only, or threads."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import joblib
import threadpoolctl

from proponent.progress import track

ROUND = 64
"""Calls in flight where a back end gives no results before all are there."""


class WorkersLost(RuntimeError):
    """Worker processes died, killed or out of memory; what they had not returned is lost."""


Item = TypeVar("Item")
Result = TypeVar("Result")


def pmap(
    function: Callable[[Item], Result], items: Sequence[Item], what: str, workers: int | None = None
) -> Iterator[Result]:
    """The results of `function` on `items`, in the items' order, as they become ready.

    Every call runs with its linear algebra on one thread, in this process as in a worker: threads change the order of
    sums, so that otherwise the number of workers would change the last bits of a result.

    >>> list(pmap(abs, [-1, 2, -3], "sizes"))
    [1, 2, 3]

    Args:
        function: called once per item; picklable where workers are processes.
        items: what to call it on.
        what: what is being done, for the progress bar.
        workers: how many at once; None takes what `joblib.parallel_config` says, or 1, which is in this process.

    Raises:
        WorkersLost: processes died before they returned their results.
    """
    calls = (joblib.delayed(_on_one_thread)(function, item) for item in items)
    results = _parallel(calls, workers)
    with threadpoolctl.threadpool_limits(
        limits=1
    ):  # of this process, once: workers that are threads would race to restore
        try:
            yield from track(results, what, total=len(items))
        except BrokenProcessPool as error:
            raise WorkersLost(str(error)) from error


def tmap(function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None) -> Iterator[Result]:
    """The results of `function` on `items`, in the items' order, from threads: for work inside numpy.

    At most two results per thread wait to be taken, so that memory does not grow with the number of items.

    >>> list(tmap(abs, iter([-1, 2, -3]), workers=2))
    [1, 2, 3]

    Args:
        function: called once per item.
        items: what to call it on; taken as threads become free.
        workers: threads; None takes the CPUs that this process may use.
    """
    count = workers or joblib.cpu_count()
    if count == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def one_thread() -> AbstractContextManager[object]:
    """Inside it, linear algebra runs on one thread: for work that is itself spread over threads by `tmap`."""
    limit: AbstractContextManager[object] = _thread_pools().limit(limits=1)
    return limit


def _parallel(calls: Iterable[Any], workers: int | None) -> Iterator[Any]:
    """Results as they become ready; a round at a time from a back end that only gives whole lists (Ray's)."""
    backend, _ = joblib.parallel.get_active_backend()
    if backend.supports_return_generator:
        yield from joblib.Parallel(n_jobs=workers, return_as="generator")(calls)
        return
    remaining = iter(calls)
    while some := list(itertools.islice(remaining, ROUND)):
        yield from joblib.Parallel(n_jobs=workers)(some)


def _on_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    with one_thread():
        return function(item)


@functools.cache
def _thread_pools() -> threadpoolctl.ThreadpoolController:
    """Found once per process: looking through the loaded libraries takes milliseconds."""
    return threadpoolctl.ThreadpoolController()
