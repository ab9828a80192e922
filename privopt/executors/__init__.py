"""How a recorded step is run: one file an executor, all giving the same numbers.

``llvm`` compiles the whole program into one loop (extra ``[fast]``), and ``lent`` brings that to arrays that
cannot be written; ``blocked`` runs it with the framework's own operations on pieces that stay in cache;
``torch`` hands chains that it recognises to torch's fused kernels; ``traced`` compiles with ``jax.jit``,
``tf.function`` or (on devices) ``torch.compile``; ``eager`` records nothing and is what the others are
compared with. To add one, write a file with ``run(job: Pass)``, and name it in `run`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Array, Backend, named_backend
from ..layout import Block
from . import blocked
from .passes import Pass as Pass
from .threads import num_threads as num_threads
from .threads import set_num_threads as set_num_threads

__all__ = [
    "EXECUTORS",
    "Pass",
    "executor",
    "executor_name",
    "num_threads",
    "run",
    "segment_products",
    "set_num_threads",
    "steps_eagerly",
    "sum_products",
]

EXECUTORS = ("auto", "exact", "eager", "blocked", "llvm", "torch", "traced")
SMALL = 1 << 14
"""Below this many entries a step that nothing compiles is not recorded by default: its calls, not memory, are
what it costs."""

LENT = {"jax": 1 << 17, "tensorflow": 0}
"""Below this many entries, making the framework's arrays costs more than its own compiler does."""

_current: contextvars.ContextVar[str] = contextvars.ContextVar("privopt_executor", default="")


@contextlib.contextmanager
def executor(name: str) -> Iterator[None]:
    """Run the steps of a ``with`` block by one executor; ``PRIVOPT_EXECUTOR`` sets it for a process.

    ``"auto"`` (the default) chooses by size, framework and what is installed. ``"exact"`` chooses among those
    that give eager's numbers bit for bit. Any other name forces one; what it cannot run falls to ``blocked``.

    Raises:
        ValueError: If there is none of that name.
        ImportError: If it needs a package that is not installed.

    Example:
        >>> with executor("eager"):
        ...     executor_name()
        'eager'
    """
    _verify(name)
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def _verify(name: str) -> None:
    if name not in EXECUTORS:
        raise ValueError(f"Expected one of the executors {list(EXECUTORS)}, got {name!r}.")
    if name == "llvm" and not _has_llvm():
        raise ImportError("The llvm executor needs llvmlite. Install it with: pip install 'privopt[fast]'.")


def executor_name() -> str:
    """The executor in force."""
    return _current.get() or _of_environment()


@functools.cache
def _of_environment() -> str:
    name = os.environ.get("PRIVOPT_EXECUTOR") or "auto"
    try:
        _verify(name)
    except (ImportError, ValueError) as error:
        raise type(error)(f"PRIVOPT_EXECUTOR: {error}") from None
    return name


@functools.cache
def _has_llvm() -> bool:
    return importlib.util.find_spec("llvmlite") is not None


def steps_eagerly(backend: Backend, size: int) -> bool:
    """Whether a step of this size is computed as it goes, without recording."""
    name = executor_name()
    if name in ("auto", "exact"):
        # jax and tensorflow pay for every call, so they are traced at every size. Compiled code is quicker
        # than numpy at every size.
        if backend.name in ("numpy", "torch"):
            return size < SMALL and not _has_llvm()
        return size < SMALL and name == "exact"
    return name == "eager"


def run(job: Pass) -> list[Array]:
    """Compute a program's outputs, into their targets where given; returns the arrays."""
    if job.size == 0:
        return blocked.run(job) if job.backend.name in ("numpy", "torch") else blocked.interpret(job, 0, 0)
    name = executor_name()
    if job.backend.name not in ("numpy", "torch"):
        if name in ("exact", "eager", "blocked"):
            return blocked.interpret(job, 0, job.size)
        return _run_lent(job, name) or _loaded("traced").run(job)
    on_cpu = job.device == "cpu"
    if on_cpu and job.program.compilable and name in ("auto", "exact", "llvm") and _has_llvm():
        compiled: list[Array] | None = _loaded("llvm").run(job)
        if compiled is not None:
            return compiled
    if _overlaps(job):
        return _through_copies(job)
    if job.backend.name == "numpy":
        return blocked.run(job)
    if name == "torch" or (name == "auto" and not (on_cpu and _has_llvm())):
        fused: list[Array] | None = _loaded("torch_fused").run(job)
        if fused is not None:
            return fused
    if name == "traced" or (not on_cpu and name not in ("exact", "eager", "blocked")):
        return _loaded("traced").run(job)  # type: ignore[no-any-return]
    if not on_cpu:
        return _through_copies(job)
    if not job.program.compilable:
        # torch's own operations: numpy would round these differently in the last bit.
        return blocked.run(job)
    import torch

    pairs = zip(job.into, blocked.run(_as_numpy(job)), strict=True)
    return [torch.from_numpy(array) if target is None else target for target, array in pairs]


def _run_lent(job: Pass, name: str) -> list[Array] | None:
    """The results of compiled code in memory that is lent to the framework, where that pays."""
    pays = name == "llvm" or (name == "auto" and job.size >= LENT[job.backend.name])
    if not pays or job.device != "cpu" or not job.program.compilable or not _has_llvm():
        return None
    done: list[Array] | None = _loaded("lent").run(job, _loaded("llvm").run)
    return done


def _as_numpy(job: Pass) -> Pass:
    # One view per tensor, so that an array that is read and written is still seen as one.
    views: dict[int, Array] = {}

    def view(tensor: Array) -> Array:
        found = views.get(id(tensor))
        if found is None:
            found = views[id(tensor)] = (tensor.detach() if tensor.requires_grad else tensor).numpy()
        return found

    return Pass(
        named_backend("numpy"),
        job.program,
        [view(a) for a in job.arrays],
        job.scalars,
        job.points,
        job.bounds,
        [None if t is None else view(t) for t in job.into],
        job.size,
        job.device,
    )


def _overlaps(job: Pass) -> bool:
    """Whether a target shares memory with another array without being that array."""
    arrays = {id(a): a for a in [*job.arrays, *(t for t in job.into if t is not None)]}
    if job.backend.name != "numpy":
        spans = [(a.data_ptr(), a.data_ptr() + a.numel() * a.element_size()) for a in arrays.values()]
        spans.sort()
        return any(first[1] > second[0] for first, second in itertools.pairwise(spans))
    distinct = list(arrays.values())
    return any(
        np.may_share_memory(target, other)
        for target in job.into
        if target is not None
        for other in distinct
        if other is not target
    )


def _through_copies(job: Pass) -> list[Array]:
    """Compute everything before anything is written."""
    results = blocked.interpret(job, 0, job.size)
    pairs = zip(job.into, results, strict=True)
    return [result if target is None else job.backend.assign(target, result) for target, result in pairs]


def sum_products(backend: Backend, left: Array, right: Array | None, where: Block) -> float:
    """Inner product of two arrays (of the block's dtype and device), or the sum of one."""
    compiled = _compiled_sums(where)
    if compiled is not None:
        total: float | None = compiled.sum_products(*_plain(backend, left, right), where)
        if total is not None:
            return total
    if _summed_by_torch(backend, where):
        return _loaded("torch_fused").sum_products(left, right)  # type: ignore[no-any-return]
    if backend.name in ("numpy", "torch") and where.device == "cpu" and where.dtype in ("float32", "float64"):
        ours = backend.to_numpy(left)
        return blocked.sum_products(
            ours, None if right is None else ours if right is left else backend.to_numpy(right)
        )
    return backend.sum(left) if right is None else backend.dot(left, right)


def segment_products(
    backend: Backend, left: Array, right: Array | None, starts: Sequence[int], where: Block
) -> npt.NDArray[np.float64]:
    """The same for each segment."""
    compiled = _compiled_sums(where)
    if compiled is not None:
        sums: npt.NDArray[np.float64] | None = compiled.segment_products(
            *_plain(backend, left, right), starts, where
        )
        if sums is not None:
            return sums
    if _summed_by_torch(backend, where):
        return _loaded("torch_fused").segment_products(left, right, starts)  # type: ignore[no-any-return]
    return backend.segment_dots(left, right, starts)


def _plain(backend: Backend, left: Array, right: Array | None) -> tuple[Backend, Array, Array | None]:
    """The arrays as compiled code can read them: those of jax and tensorflow through numpy, uncopied."""
    if backend.name in ("numpy", "torch"):
        return backend, left, right
    a = backend.to_numpy(left)
    b = None if right is None else a if right is left else backend.to_numpy(right)
    return named_backend("numpy"), a, b


def _compiled_sums(where: Block) -> Any:
    """The compiled sums, where they apply: they add in the same order as `privopt.summation`."""
    if executor_name() in ("eager", "blocked", "torch") or not _has_llvm():
        return None
    if where.dtype not in ("float32", "float64") or where.device != "cpu":
        return None
    return _loaded("llvm")


def _summed_by_torch(backend: Backend, where: Block) -> bool:
    """Whether torch's threads add up, in an order of their own: not where eager's bits are asked for."""
    name = executor_name()
    if name != "torch" and (name != "auto" or _has_llvm()):
        return False
    return backend.name == "torch" and where.device == "cpu" and where.dtype in ("float32", "float64")


@functools.cache
def _loaded(name: str) -> Any:
    """An executor's module, imported when it is first used: each may need a package of its own."""
    import importlib

    return importlib.import_module(f"{__name__}.{name}")
