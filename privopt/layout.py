"""Where each named tensor lies in a flat buffer: the first floor, which knows no framework.

A `Layout` is hashable and compares by value, so it can key caches and be checked
once at every boundary instead of tensor by tensor inside a step.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Block", "Layout", "TensorSpec"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor: its shape and the slice of a block that holds it."""

    name: str
    shape: tuple[int, ...]
    block: int
    offset: int

    @property
    def size(self) -> int:
        """Number of entries (1 for a 0-d tensor, 0 for an empty one)."""
        return math.prod(self.shape)

    @property
    def slice(self) -> slice:
        """The entries of the block's buffer that belong to this tensor."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, slots=True)
class Block:
    """One contiguous buffer: all tensors of one dtype on one device, in order of appearance."""

    dtype: str
    device: str
    size: int


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of the tensors of a model.

    Guarantees:
        - Equal names, shapes, dtypes, devices and order give equal, equally hashed layouts; those made by
          `of` and `with_blocks` are even one object, so that comparing them costs nothing.
        - Within a block, tensors follow one another without gaps in the order of `tensors`.

    Attributes:
        tensors: The tensors, in the order in which they were given.
        blocks: The buffers, one per (dtype, device).
    """

    tensors: tuple[TensorSpec, ...]
    blocks: tuple[Block, ...]
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        # Layouts are hashed in every step (they key caches) and never change.
        object.__setattr__(self, "_hash", hash((self.tensors, self.blocks)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # Hashes of strings differ between processes, so the hash is taken anew; a copy is the same object.
        return _rebuilt, (self.tensors, self.blocks)

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Sequence[int], str, str]]) -> Layout:
        """Lay out tensors given as (name, shape, dtype, device).

        Raises:
            TypeError: If a name is no string.
            ValueError: If a name occurs twice.
        """
        blocks: dict[tuple[str, str], int] = {}
        sizes: list[int] = []
        specs: list[TensorSpec] = []
        seen: set[str] = set()
        for name, shape, dtype, device in tensors:
            if not isinstance(name, str):
                raise TypeError(f"Expected tensor names to be strings, got {name!r} ({type(name).__name__}).")
            if name in seen:
                raise ValueError(f"Expected distinct tensor names, got {name!r} twice.")
            seen.add(name)
            block = blocks.setdefault((dtype, device), len(blocks))
            if block == len(sizes):
                sizes.append(0)
            spec = TensorSpec(name, tuple(int(n) for n in shape), block, sizes[block])
            sizes[block] += spec.size
            specs.append(spec)
        return _interned(
            cls(tuple(specs), tuple(Block(d, v, n) for (d, v), n in zip(blocks, sizes, strict=True)))
        )

    @property
    def size(self) -> int:
        """Number of entries of all tensors together."""
        return sum(block.size for block in self.blocks)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Tensor names, in order."""
        return tuple(spec.name for spec in self.tensors)

    @functools.cached_property
    def shape_list(self) -> list[tuple[int, ...]]:
        """Tensor shapes, in order."""
        return [spec.shape for spec in self.tensors]

    @functools.cached_property
    def name_set(self) -> frozenset[str]:
        """Tensor names, to look up."""
        return frozenset(self.names)

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def in_block(self, block: int) -> tuple[TensorSpec, ...]:
        """The tensors that lie in one block, in order."""
        return self._in_blocks[block]

    @functools.cached_property
    def _in_blocks(self) -> list[tuple[TensorSpec, ...]]:
        return [tuple(s for s in self.tensors if s.block == block) for block in range(len(self.blocks))]

    def with_blocks(self, dtypes: Sequence[str], devices: Sequence[str]) -> Layout:
        """The same places with other dtypes or devices (a comparison gives booleans, say)."""
        blocks = tuple(
            Block(dtype, device, block.size)
            for block, dtype, device in zip(self.blocks, dtypes, devices, strict=True)
        )
        return _interned(Layout(self.tensors, blocks))

    def difference(self, other: Layout) -> str | None:
        """What first differs in names or shapes, in words; None where both can be combined.

        Dtypes may differ (arithmetic promotes them), as long as the blocks line up.
        """
        if self.tensors == other.tensors:
            return None
        # Of unequal lists the first difference is looked for; that one is longer is said further down.
        for ours, theirs in zip(self.tensors, other.tensors, strict=False):
            if ours.name != theirs.name:
                return f"tensor {ours.name!r} stands where the other has {theirs.name!r}"
            if ours.shape != theirs.shape:
                return f"tensor {ours.name!r} has shape {ours.shape}, the other's has {theirs.shape}"
        longer, word = (self, "first") if len(self) > len(other) else (other, "second")
        if len(self) != len(other):
            extra = longer.tensors[min(len(self), len(other))].name
            return f"tensor {extra!r} exists in the {word} only"
        for ours, theirs in zip(self.tensors, other.tensors, strict=True):
            if ours != theirs:
                return (
                    f"tensor {ours.name!r} is {self.blocks[ours.block].dtype} on "
                    f"{self.blocks[ours.block].device}, the other's is {other.blocks[theirs.block].dtype} on "
                    f"{other.blocks[theirs.block].device}, and the two models mix dtypes differently"
                )
        return None  # pragma: no cover - unequal tuples differ somewhere

    def places(self, block: int) -> tuple[npt.NDArray[np.int64], list[int]]:
        """Which tensors lie in one block, and where each begins in its buffer."""
        return self._places[block]

    @functools.cached_property
    def _places(self) -> list[tuple[npt.NDArray[np.int64], list[int]]]:
        kept: list[list[int]] = [[] for _ in self.blocks]
        for index, spec in enumerate(self.tensors):
            kept[spec.block].append(index)
        return [(np.array(k, np.int64), [self.tensors[i].offset for i in k]) for k in kept]

    @functools.cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The dtype of each block."""
        return tuple(block.dtype for block in self.blocks)

    @functools.cached_property
    def recordings(self) -> dict[str, Any]:
        """By framework, what steps over Vectors of this layout recorded: filled by `privopt.recording`."""
        return {}

    @functools.cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of entries of each tensor, in order."""
        return np.array([spec.size for spec in self.tensors], np.int64)

    @functools.cached_property
    def is_row(self) -> npt.NDArray[np.bool_]:
        """Of a layout that `rows` gave: which entries are rows of a tensor."""
        return np.zeros(len(self.tensors), bool)

    @functools.cached_property
    def rows(self) -> Layout:
        """The same buffers cut finer: one entry per row (first index) of each tensor of two or more axes."""
        specs: list[TensorSpec] = []
        is_row: list[bool] = []
        for spec in self.tensors:
            cut = len(spec.shape) >= 2 and spec.size > 0
            size = spec.size // spec.shape[0] if cut else 0
            specs += (
                [
                    TensorSpec(f"{spec.name}[{i}]", spec.shape[1:], spec.block, spec.offset + i * size)
                    for i in range(spec.shape[0])
                ]
                if cut
                else [spec]
            )
            is_row += [True] * spec.shape[0] if cut else [False]
        found = Layout(tuple(specs), self.blocks)
        found.__dict__["is_row"] = np.array(is_row, bool)
        return found

    def to_json(self) -> list[list[Any]]:
        """``[[name, shape, dtype, device], ...]``; `from_json` reads it back."""
        return [
            [spec.name, list(spec.shape), self.blocks[spec.block].dtype, self.blocks[spec.block].device]
            for spec in self.tensors
        ]

    @classmethod
    def from_json(cls, items: Sequence[Sequence[Any]]) -> Layout:
        """Rebuild a layout from `to_json`."""
        return cls.of((name, shape, dtype, device) for name, shape, dtype, device in items)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape by name."""
        return {spec.name: spec.shape for spec in self.tensors}


_Key = tuple[tuple[TensorSpec, ...], tuple[Block, ...]]
_known: weakref.WeakValueDictionary[_Key, Layout] = weakref.WeakValueDictionary()


def _interned(layout: Layout) -> Layout:
    return _known.setdefault((layout.tensors, layout.blocks), layout)


def _rebuilt(tensors: tuple[TensorSpec, ...], blocks: tuple[Block, ...]) -> Layout:
    return _interned(Layout(tensors, blocks))
