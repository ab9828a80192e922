"""One step of an optimizer: part of floor 5, from bound states to numbers written, all of it or nothing.

The plug-ins run on recorded (or borrowed) Vectors; what they leave in their declared states, and the new
weights, are then written in one pass. Until that pass nothing that anybody else can see has changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import operator
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from .declarations import verify_kind
from .plugin import Plugin
from .recording import Borrowed, Recorded, Tape
from .vector import PerTensor, Vector

__all__ = ["Owned", "Step", "uninterrupted"]

Owned = dict[tuple[int, str], Vector]
"""States in memory that the optimizer allocated, by plug-in (position) and name; others stay untouched."""


class Step:
    """Binds plug-ins' states to a step, and settles what the step left in them.

    Args:
        plugins: All plug-ins of the optimizer.
        gradients: The gradients; never written to.
        weights: The weights.
        owned: See `Owned`; kept by the optimizer from step to step.
        eager: Compute as it goes instead of recording.
    """

    def __init__(
        self, plugins: Sequence[Plugin], gradients: Vector, weights: Vector, owned: Owned, *, eager: bool
    ) -> None:
        self._plugins = plugins
        self._owned = owned
        self._tape = None if eager else Tape(weights)
        self._start: dict[tuple[int, str], Vector] = {}
        self._before: dict[tuple[int, str], Sequence[Vector]] = {}
        self._inputs = (gradients, weights)
        self.gradients = self._bound(gradients)
        self.weights = self._bound(weights)

    def _bound(self, vector: Vector) -> Vector:
        return Borrowed.of(vector) if self._tape is None else self._tape.bound(vector)

    def view(self, vector: Vector) -> Vector:
        """The same values for one plug-in: what it does to them in place, no other sees."""
        if self._tape is None:
            return Borrowed.of(vector)
        if isinstance(vector, Recorded) and vector._tape is self._tape:
            return vector.again()
        return self._tape.recorded(_node(self._tape, vector))

    def bind(self) -> None:
        """Give every plug-in its Vector states as Vectors of this step."""
        gradients, _ = self._inputs
        if self._tape is None:
            self._before = {
                (position, name): vectors
                for position, plugin in enumerate(self._plugins)
                for name, value in plugin.__dict__.items()
                if (vectors := _vectors_in(value))
            }
        for position, plugin in enumerate(self._plugins):
            made = plugin._prepare(gradients)
            attributes = plugin.__dict__
            for name, _, _ in plugin._states:
                value = attributes.get(name)
                if isinstance(value, Vector):
                    if name in made:
                        self._owned[position, name] = value
                    self._start[position, name] = value
                    attributes[name] = self._bound(value)

    def settle(self, updates: Vector, *, in_place: bool) -> tuple[Callable[[], None], list[Vector]]:
        """Check what the plug-ins left behind; returns the one call that changes memory, and its result.

        The list is filled by the call: with the updates, or with the stepped weights where `in_place`.
        """
        states = self._left_behind()
        if not isinstance(updates, Recorded | Borrowed | Vector):
            raise TypeError(f"Expected the updates as a Vector, got {type(updates).__name__}.")
        _, weights = self._inputs
        if in_place and weights.framework == "numpy":
            for buffer, block in zip(weights.buffers, weights.layout.blocks, strict=True):
                if not buffer.flags.writeable:
                    raise ValueError(
                        f"Expected weights that can be written, got a read-only array of {block.size} "
                        f"{block.dtype}. Copy the Vector, or add what compute_updates gives."
                    )
        if self._tape is None:
            return self._settle_eagerly(updates, states, weights if in_place else None)
        return self._settle_recorded(self._tape, updates, states, weights if in_place else None)

    def _left_behind(self) -> dict[tuple[int, str], Vector]:
        """The states that are Vectors now; refuses Vectors of this step anywhere else."""
        found = {}
        for position, plugin in enumerate(self._plugins):
            attributes = plugin.__dict__
            for name, is_vector, kinds in plugin._states:
                value = attributes.get(name)
                if isinstance(value, Vector):
                    if not is_vector:
                        verify_kind(plugin, name, value)
                    self._verify_state(plugin, name, value)
                    found[position, name] = value
                elif value.__class__ not in kinds and name in attributes:
                    if isinstance(value, PerTensor):
                        raise TypeError(
                            f"Expected a plain number in state {name!r} of {plugin.name!r}, got a "
                            "PerTensor: a hyper-parameter that it depends on cannot differ between groups."
                        )
                    verify_kind(plugin, name, value)
            for name in attributes.keys() - plugin._plain:
                before = self._before.get((position, name), ())
                if self._is_of_this_step(_vectors_in(attributes[name]), before):
                    raise TypeError(
                        f"Expected what {plugin.name!r} keeps for the next step to be declared, got "
                        f"a Vector of this step in {name!r}. Declare `{name}: Vector | None = state(None)`."
                    )
        return found

    def _verify_state(self, plugin: Plugin, name: str, value: Vector) -> None:
        weights = self._inputs[1]
        layout = weights.layout
        if value._backend is not weights._backend:
            raise TypeError(
                f"Expected state {name!r} of {plugin.name!r} as a Vector of {weights.framework}, got one of "
                f"{value.framework}. `gradients.unflatten(array)` makes one of numpy's numbers."
            )
        difference = None if value.layout is layout else value.layout.difference(layout)
        if difference is not None:
            raise ValueError(
                f"Expected state {name!r} of {plugin.name!r} to have the model's layout, got another: "
                f"{difference}."
            )

    def _is_of_this_step(self, vectors: Sequence[Vector], before: Sequence[Vector]) -> bool:
        if self._tape is not None:
            return any(vector.in_step for vector in vectors)
        # Computed as it goes, a result looks like any Vector: new ones are this step's.
        return any(all(vector is not old for old in before) for vector in vectors)

    def _settle_recorded(
        self, tape: Tape, updates: Vector, states: dict[tuple[int, str], Vector], weights: Vector | None
    ) -> tuple[Callable[[], None], list[Vector]]:
        if weights is not None:
            updates = self.weights + updates
        nodes = [_node(tape, updates)]
        targets: list[Vector | None] = [_fitting(tape, nodes[0], weights)]
        kept: list[tuple[int, str]] = []
        unchanged: dict[tuple[int, str], Vector] = {}
        for key, value in states.items():
            node, start = _node(tape, value), self._start.get(key)
            if start is not None:
                if node == tape.known(start):
                    unchanged[key] = start
                    continue
                # Memory that somebody else may hold (a state set from outside) is not written to, nor twice
                # (a state that is stepped on as weights).
                if self._owned.get(key) is not start or _shares(start, weights):
                    start = None
            nodes.append(node)
            kept.append(key)
            targets.append(_fitting(tape, node, start))
        result: list[Vector] = []

        def commit() -> None:
            written = tape.evaluate(tuple(nodes), targets)
            tape.close()
            if weights is not None and written[0] is not weights:
                weights.assign(written[0])
            result.append(written[0] if weights is None else weights)
            for key, vector in zip(kept, written[1:], strict=True):
                self._keep(key, vector)
            for key, vector in unchanged.items():
                self._plugins[key[0]].__dict__[key[1]] = vector

        return commit, result

    def _settle_eagerly(
        self, updates: Vector, states: dict[tuple[int, str], Vector], weights: Vector | None
    ) -> tuple[Callable[[], None], list[Vector]]:
        gradients, inputs = self._inputs
        taken = {id(b) for v in (gradients, inputs) for b in v.buffers}
        final: dict[tuple[int, str], tuple[Vector, bool]] = {}
        for key, value in states.items():
            start = self._start.get(key)
            if start is not None and all(a is b for a, b in zip(value.buffers, start.buffers, strict=True)):
                final[key] = start, False
                taken.update(id(b) for b in start.buffers)
        for key, value in states.items():
            if key not in final:
                # Two states, or a state and the caller's arrays, never share memory.
                buffers = [value._backend.copy(b) if id(b) in taken else b for b in value.buffers]
                final[key] = Vector(value.layout, buffers, value._backend), True
                taken.update(map(id, buffers))
        moved = updates if weights is None else weights + updates
        if weights is None and any(id(b) in taken for b in moved.buffers):
            moved = moved.copy()
        result: list[Vector] = []

        def commit() -> None:
            if weights is None:
                result.append(Vector(moved.layout, moved.buffers, moved._backend))
            else:
                weights._write(moved.buffers)
                result.append(weights)
            for key, (vector, new) in final.items():
                if new:
                    self._keep(key, vector)
                else:
                    self._plugins[key[0]].__dict__[key[1]] = vector

        return commit, result

    def _keep(self, key: tuple[int, str], vector: Vector) -> None:
        self._owned[key] = vector
        self._plugins[key[0]].__dict__[key[1]] = vector


def _node(tape: Tape, value: Vector) -> int:
    if not isinstance(value, Recorded):
        return tape.leaf(value)
    if value._tape is not tape:
        value._tape.verify_open()  # raises: that step is over
    return value.use()


def _fitting(tape: Tape, node: int, target: Vector | None) -> Vector | None:
    """The target, if a node's values can be written into it as they are."""
    if target is None or target.layout.dtypes != tape.dtypes[node]:
        return None
    return target


def _shares(state: Vector, weights: Vector | None) -> bool:
    """Whether writing to the weights would write to a state."""
    if weights is None or state is weights:
        return weights is not None
    # Arrays that cannot be written may well be those of two Vectors.
    writable = weights.framework in ("numpy", "torch")
    return writable and any(map(operator.is_, state.buffers, weights.buffers))


def _vectors_in(value: Any, depth: int = 4) -> Sequence[Vector]:
    if isinstance(value, Vector):
        return (value,)
    if isinstance(value, Mapping):
        value = list(value.values())
    elif isinstance(value, str | bytes) or not isinstance(value, Collection) or not depth:
        return ()
    return [vector for item in value for vector in _vectors_in(item, depth - 1)]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back signals' Python handlers until the block is done: memory is written wholly or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    handlers = {number: handler for number in _HELD if callable(handler := _get_handler(number))}
    held: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        _set_handler(number, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            _set_handler(number, handler)
        for number, frame in held:
            handlers[number](number, frame)


# The functions beneath: those of `signal` turn every number into an enum, at twice the price of all the rest.
_HELD = [
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF")
]
"""Signals whose handlers people write in Python: a time-out is as good an interrupt as Ctrl-C."""
_beneath: Any = importlib.import_module("_signal") if importlib.util.find_spec("_signal") else signal
_get_handler: Callable[[int], Any] = _beneath.getsignal
_set_handler: Callable[[int, Any], Any] = _beneath.signal
