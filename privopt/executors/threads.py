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
    a piece is raised then. An interrupt may end the call before: what pieces write to must be kept
    alive by `work`, and nobody may look at it.
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
    mode = _mode()

    def share() -> None:
        # `next` on a range's iterator is one bytecode of C: each piece goes to one thread.
        try:
            for start in starts:
                work(start, min(start + step, size))
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            errors.append(error)

    def helped() -> None:
        try:
            tickets.pop()
        except IndexError:
            return  # woken when all was done already, and nobody waits
        _set_mode(mode)
        share()
        done.release()

    with _lock:
        while len(_pool) < others:
            try:
                _pool.append(_started(len(_pool)))
            except RuntimeError:  # the system gives no more threads: fewer do the same
                break
        workers = _pool[:others]
    tickets = [None] * len(workers)
    for worker in workers:
        worker.put(helped)
    share()
    # On a busy machine a thread may wake long after: only those that have begun are waited for.
    begun = len(workers)
    while True:
        try:
            tickets.pop()  # one bytecode of C: each ticket goes to one thread
        except IndexError:
            break
        begun -= 1
    for _ in range(begun):
        done.acquire()
    if errors:
        raise errors[0]


_openmp: Any = None
_forked = False


def together(kernel: Kernel, job: Any, pieces: int, held: object) -> None:
    """Run machine code on one job by several threads, all treating subnormal numbers as the caller does.

    Args:
        kernel: A function that takes the job and returns when no piece of it is left to take.
        job: A ctypes array.
        pieces: How many there are to take.
        held: What the addresses in the job point to. It is kept until the last thread is done, which is
            later than this returns where an interrupt ends the call.
    """
    threads = min(num_threads(), pieces) if pieces > 1 else 1
    if threads <= 1:
        kernel.call(job)
        return
    parallel = _parallel()
    if parallel is None:
        kept = kernel, job, held
        in_parallel(lambda start, stop: kept[0].call(kept[1]), threads, 1)
        return
    mode = _mode()
    if mode is None:
        parallel(kernel.address, job, threads, 0)
        return
    mode.kernel, mode.job = kernel.address, ctypes.addressof(job)
    parallel(_in_mode().address, ctypes.byref(mode), threads, 0)


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


# ---- how a processor treats subnormal numbers --------------------------------------------------------------

# Each thread has a mode of its own (`torch.set_flush_denormal` sets the caller's). Threads that help take the
# caller's over, lest results depend on who computed what.


class _Mode(ctypes.Structure):
    """A thread's floating-point environment, with what machine code needs to take it over."""

    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("job", ctypes.c_void_p),
        ("get", ctypes.c_void_p),
        ("set", ctypes.c_void_p),
        ("environment", ctypes.c_char * 224),  # C's fenv_t: 32 bytes on x86, 8 on ARM
    )


_ENVIRONMENT: int = _Mode.environment.offset


def _mode() -> _Mode | None:
    """The calling thread's; None where C has no word for it."""
    functions = _environments()
    if functions is None:
        return None
    mode = _Mode(0, 0, *functions[2:])
    functions[0](ctypes.addressof(mode) + _ENVIRONMENT)
    return mode


def _set_mode(mode: _Mode | None) -> None:
    functions = _environments()
    if functions is not None and mode is not None:
        functions[1](ctypes.addressof(mode) + _ENVIRONMENT)


@functools.cache
def _environments() -> tuple[Any, Any, int, int] | None:
    """C's fegetenv and fesetenv, and their addresses."""
    try:
        library = ctypes.PyDLL(None)  # Python's own mathematics need the library: it is loaded
        get, set_ = library.fegetenv, library.fesetenv
    except (OSError, AttributeError, TypeError):
        return None
    get.argtypes = set_.argtypes = [ctypes.c_void_p]
    addresses = [int(ctypes.cast(function, ctypes.c_void_p).value or 0) for function in (get, set_)]
    return get, set_, addresses[0], addresses[1]


@functools.cache
def _in_mode() -> Kernel:
    """Runs a kernel in the mode that it is given, and leaves the thread in its own."""
    from .kernels import compiled

    (found,) = compiled(_IN_MODE, "in_mode")
    return found


_IN_MODE = """\
define void @in_mode(ptr %mode) {
entry:
  %own = alloca [224 x i8], align 16
  %kernel = load ptr, ptr %mode, align 8
  %job.at = getelementptr ptr, ptr %mode, i64 1
  %job = load ptr, ptr %job.at, align 8
  %get.at = getelementptr ptr, ptr %mode, i64 2
  %get = load ptr, ptr %get.at, align 8
  %set.at = getelementptr ptr, ptr %mode, i64 3
  %set = load ptr, ptr %set.at, align 8
  %environment = getelementptr ptr, ptr %mode, i64 4
  %got = call i32 %get(ptr %own)
  %taken = call i32 %set(ptr %environment)
  call void %kernel(ptr %job)
  %back = call i32 %set(ptr %own)
  ret void
}
"""


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
