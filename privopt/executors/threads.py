"""A few threads that run parts of one pass: compiled and numpy code releases the interpreter's lock.

Machine code runs in the threads of OpenMP where torch has brought them: they stay awake for a while after
each of torch's operations, so other threads would have to share the processor with them. Otherwise, and for
numpy's operations, a few threads of our own do it. Not `concurrent.futures`: a pass over a small model takes
less time than a future does.
"""

from __future__ import annotations

import ctypes
import functools
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .kernels import Kernel

__all__ = ["in_parallel", "num_threads", "set_num_threads", "together"]

Work = Callable[[int, int], None]

MOST = 1024
_chosen: int | None = None
_pool: list[queue.SimpleQueue[Callable[[], None]]] = []
_lock = threading.Lock()


def num_threads() -> int:
    """Threads that a pass uses: `set_num_threads`, ``PRIVOPT_THREADS``, torch's, or the process's cores."""
    if _chosen is not None:
        return _chosen
    named = _named()
    if named is not None:
        return set_num_threads(named)
    # Whoever tells torch to use fewer threads (in a worker process, say) means us too.
    threads = getattr(sys.modules.get("torch"), "get_num_threads", _cores)()
    return int(threads)


@functools.cache
def _named() -> int | None:
    """What the environment asks for, read once."""
    named = os.environ.get("PRIVOPT_THREADS")
    if not named:
        return None
    if not (named.isdecimal() and 0 < int(named) <= MOST):
        raise ValueError(f"Expected PRIVOPT_THREADS to be a number from 1 to {MOST}, got {named!r}.")
    return int(named)


@functools.cache
def _cores() -> int:
    return min(16, len(os.sched_getaffinity(0)))


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


_openmp: Any = None
_forked = False


def together(kernel: Kernel, job: Any, pieces: int) -> None:
    """Run machine code on one job by several threads.

    Args:
        kernel: A function that takes the job and returns when no piece of it is left to take.
        job: A ctypes array.
        pieces: How many there are to take.
    """
    threads = min(num_threads(), pieces) if pieces > 1 else 1
    if threads <= 1:
        kernel.call(job)
        return
    parallel = _parallel()
    if parallel is not None:
        parallel(kernel.address, job, threads, 0)
    else:
        in_parallel(lambda start, stop: kernel.call(job), threads, 1)


def _parallel() -> Any:
    """OpenMP's way to run a function in its threads, or None where there is no OpenMP yet."""
    global _openmp
    if _openmp is None and not _forked and "torch" in sys.modules:
        try:
            # The one that is loaded already; none is loaded for this.
            found = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
            found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            found.restype = None
            _openmp = found
        except (OSError, AttributeError):
            _openmp = False
    return _openmp or None


def _started(number: int) -> queue.SimpleQueue[Callable[[], None]]:
    tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def serve() -> None:
        while True:
            tasks.get()()

    threading.Thread(target=serve, name=f"privopt-{number}", daemon=True).start()
    return tasks


def _forget_pool() -> None:
    global _lock, _openmp, _forked
    _lock = threading.Lock()
    _pool.clear()
    _openmp, _forked = None, True  # OpenMP would wait for threads that the child does not have


# A forked child has no threads but its own.
os.register_at_fork(after_in_child=_forget_pool)
