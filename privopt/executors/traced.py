"""Hands a whole program to a framework's own compiler: ``jax.jit``, ``tf.function``, ``torch.compile``.

Their compilers may contract and reorder: results agree with eager's to a few units in the last place
(float32: 1e-6 relative), not bit for bit. ``executor("exact")`` never comes here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import Array
from ..expression import Program
from .passes import Pass

__all__ = ["run"]


@dataclass(frozen=True)
class _Framework:
    """What a program is spelled with in one framework."""

    compile: Callable[[Callable[..., Any]], Callable[..., Any]]
    array: Callable[[Any, str, str], Array]
    """numpy values, dtype, device."""
    repeat: Callable[[Array, Any, int], Array]
    """Each value as often as its count says; the total length."""
    full: Callable[[int, Array], Array]
    cast: Callable[[Array, str], Array]
    where: Callable[[Array, Array, Array], Array]
    unary: Mapping[str, Callable[[Array], Array]]
    binary: Mapping[str, Callable[[Any, Any], Array]]
    on: Callable[[Sequence[Array]], AbstractContextManager[Any]] = lambda arrays: contextlib.nullcontext()
    """Makes the compiled function run where its arrays are."""


def run(job: Pass) -> list[Array]:
    """Compute the outputs; into their targets where arrays can be written."""
    framework = _framework(job.backend.name)
    program = job.program
    counts = None if job.bounds is None else np.diff(job.bounds)
    key = (job.backend.name, job.size, None if counts is None else counts.tobytes())
    function = program.kernels.get(key)
    if function is None:
        function = framework.compile(functools.partial(_evaluate, framework, program, counts, job.size))
        program.kernels[key] = function
    wide = np.asarray(job.scalars, np.float64)
    with np.errstate(over="ignore"):
        numbers = {d: framework.array(wide, d, job.device) for d in _number_dtypes(program)}
        points = {
            (k, d): framework.array(np.asarray(job.points[k]), d, job.device) for k, d in _spreads(program)
        }
    with framework.on(job.arrays):
        results = list(function(tuple(job.arrays), numbers, points))
    if job.backend.name == "torch":
        # A compiler may hand back an input, or one tensor twice: nothing is written while it is still read.
        taken = {id(array) for array in job.arrays}
        for k, result in enumerate(results):
            if id(result) in taken or result.untyped_storage().data_ptr() in _storages(job, results[:k]):
                results[k] = result.clone()
            taken.add(id(results[k]))
    pairs = zip(job.into, results, strict=True)
    return [r if t is None else job.backend.assign(t, r) for t, r in pairs]


def _storages(job: Pass, results: Sequence[Array]) -> set[int]:
    """Where torch tensors that a result must not share memory with begin."""
    return {array.untyped_storage().data_ptr() for array in [*job.arrays, *results]}


def _evaluate(
    framework: _Framework,
    program: Program,
    counts: Any,
    size: int,
    arrays: Sequence[Array],
    numbers: Mapping[str, Array],
    points: Mapping[tuple[int, str], Array],
) -> list[Array]:
    """The program, spelled with a framework's operations; what its compiler sees."""
    values: list[Any] = []

    def operand(k: int, dtype: str) -> Array:
        if k < 0:
            return numbers[dtype][-1 - k]
        return values[k] if program.dtypes[k] == dtype else framework.cast(values[k], dtype)

    for node, (op, *rest) in enumerate(program.code):
        dtype = program.dtypes[node]
        operands = [int(x) for x in rest]
        if op == "leaf":
            value = arrays[operands[0]]
        elif op == "spread":
            value = framework.repeat(points[operands[0], dtype], counts, size)
        elif op == "fill":
            value = framework.full(size, numbers[dtype][-1 - operands[0]])
        elif op == "cast":
            value = framework.cast(values[operands[0]], dtype)
        elif op == "where":
            condition = framework.cast(values[operands[0]], "bool")
            value = framework.where(condition, *(operand(k, dtype) for k in operands[1:]))
        elif op in framework.unary:
            value = framework.unary[str(op)](values[operands[0]])
        else:
            kind = _common(program, operands) if dtype == "bool" else dtype
            value = framework.binary[str(op)](*(operand(k, kind) for k in operands))
        values.append(value)
    return [values[node] for node in program.outputs]


def _common(program: Program, operands: Sequence[int]) -> str:
    """The dtype in which two sides are compared."""
    kinds = sorted({program.dtypes[k] for k in operands if k >= 0})
    if len(kinds) == 1:
        return kinds[0]
    return "float32" if "bfloat16" in kinds else np.result_type(*kinds).name


def _number_dtypes(program: Program) -> list[str]:
    """The dtypes in which a program reads numbers."""
    found = set()
    for node, (op, *rest) in enumerate(program.code):
        if op in ("leaf", "spread"):
            continue
        if any(int(x) < 0 for x in rest):
            operands = [int(x) for x in rest]
            boolean = program.dtypes[node] == "bool" and op != "fill"
            found.add(_common(program, operands) if boolean else program.dtypes[node])
    return sorted(found)


def _spreads(program: Program) -> list[tuple[int, str]]:
    return [(int(rest[0]), program.dtypes[n]) for n, (op, *rest) in enumerate(program.code) if op == "spread"]


@functools.cache
def _framework(name: str) -> _Framework:
    return {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[name]()


def _jax() -> _Framework:
    import jax
    import jax.numpy as jnp

    from ..backends import jax as backend

    return _Framework(
        compile=jax.jit,
        array=lambda values, dtype, device: values.astype(jnp.dtype(dtype)),
        repeat=lambda values, counts, size: jnp.repeat(values, counts, total_repeat_length=size),
        full=lambda size, number: jnp.full((size,), number),
        cast=lambda array, dtype: array.astype(dtype),
        where=jnp.where,
        unary=backend.UNARY,
        binary=backend.BINARY,
    )


def _tensorflow() -> _Framework:
    import tensorflow as tf  # type: ignore[import-untyped,import-not-found,unused-ignore]  # no types

    from ..backends import tensorflow as backend

    return _Framework(
        # XLA: without it every operation of the graph writes its result to memory.
        compile=lambda function: tf.function(function, jit_compile=True, autograph=False),
        array=lambda values, dtype, device: tf.constant(values, dtype),
        repeat=lambda values, counts, size: tf.gather(values, np.repeat(np.arange(len(counts)), counts)),
        full=lambda size, number: tf.fill([size], number),
        cast=tf.cast,
        where=tf.where,
        unary=backend.UNARY,
        binary=backend.BINARY,
        on=lambda arrays: tf.device(arrays[0].device) if arrays else contextlib.nullcontext(),
    )


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same under a new code object: torch counts recompilations by it, and gives up after eight."""

    def program(arrays: Any, numbers: Any, points: Any) -> Any:
        return function(arrays, numbers, points)

    program.__code__ = program.__code__.replace(co_name=f"program_{next(_counter)}")
    return program


_counter = itertools.count()


def _torch() -> _Framework:
    import torch

    from ..backends import torch as backend

    def bound(bounded: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
        return lambda a, b: bounded(torch.as_tensor(a), torch.as_tensor(b))

    return _Framework(
        compile=lambda function: torch.compile(_with_code_of_its_own(function), dynamic=False),
        array=lambda values, dtype, device: torch.as_tensor(values).to(device, getattr(torch, dtype)),
        repeat=lambda values, counts, size: torch.repeat_interleave(
            values, torch.as_tensor(counts, device=values.device), output_size=size
        ),
        full=lambda size, number: number.expand(size).clone(),
        cast=lambda array, dtype: array.to(getattr(torch, dtype)),
        where=torch.where,
        unary={**backend.UNARY, "sqrt": torch.sqrt},
        binary={**backend.BINARY, "minimum": bound(torch.minimum), "maximum": bound(torch.maximum)},
    )
