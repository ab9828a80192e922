"""A few threads that run parts of one pass: compiled and numpy code releases the interpreter's lock.

Not `concurrent.futures`: a pass over a small model takes less time than a future does.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

__all__ = ["in_parallel", "num_threads", "set_num_threads"]

Work = Callable[[int, int], None]

MOST = 1024
_chosen: int | None = None
_pool: list[queue.SimpleQueue[Callable[[], None]]] = []
_lock = threading.Lock()


def num_threads() -> int:
    """Threads that a pass uses: `set_num_threads`, ``PRIVOPT_THREADS``, or the cores of this process."""
    if _chosen is not None:
        return _chosen
    named = os.environ.get("PRIVOPT_THREADS")
    if named:
        if not (named.isdecimal() and 0 < int(named) <= MOST):
            raise ValueError(f"Expected PRIVOPT_THREADS to be a number from 1 to {MOST}, got {named!r}.")
        return set_num_threads(int(named))
    return set_num_threads(min(16, len(os.sched_getaffinity(0))))


def set_num_threads(count: int) -> int:
    """Use this many threads from now on; results do not depend on it.

    Raises:
        ValueError: If it is no positive integer, or an absurd one.
    """
    global _chosen
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= MOST:
        raise ValueError(f"Expected a positive number of threads, at most {MOST}, got {count!r}.")
    _chosen = count
    return count


def in_parallel(work: Work, size: int, step: int) -> None:
    """Call ``work(start, stop)`` for pieces of ``range(size)``, each `step` long but the last.

    Pieces are handed out as threads become free. Returns when all are done; the first error of
    a piece is raised then.
    """
    pieces = -(-size // step)
    others = min(num_threads(), pieces) - 1
    if others <= 0:
        for start in range(0, size, step):
            work(start, min(start + step, size))
        return
    starts = iter(range(0, size, step))
    errors: list[BaseException] = []
    done = threading.Semaphore(0)

    def share() -> None:
        # `next` on a range's iterator is one bytecode of C: each piece goes to one thread.
        try:
            for start in starts:
                work(start, min(start + step, size))
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            errors.append(error)

    def helped() -> None:
        share()
        done.release()

    with _lock:
        while len(_pool) < others:
            _pool.append(_started(len(_pool)))
        workers = _pool[:others]
    for worker in workers:
        worker.put(helped)
    share()
    for _ in workers:
        done.acquire()
    if errors:
        raise errors[0]


def _started(number: int) -> queue.SimpleQueue[Callable[[], None]]:
    tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def serve() -> None:
        while True:
            tasks.get()()

    threading.Thread(target=serve, name=f"privopt-{number}", daemon=True).start()
    return tasks


def _forget_pool() -> None:
    global _lock
    _lock = threading.Lock()
    _pool.clear()


# A forked child has no threads but its own.
os.register_at_fork(after_in_child=_forget_pool)
