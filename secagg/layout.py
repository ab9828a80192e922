"""Layout: which words of a round's vector hold which lanes, and the proof that none can overflow.

    word 0      zero lane: every client sends 0, so a sum in which one mask did not cancel shows at once
    word 1      count lane: every client sends 1
    then        runs, one after another in schema order: a field's values, then (reals) how many were
                clipped, then (adaptive reals) its peak. A run of s lanes of w bits packs p = ⌊64/w⌋ of them
                a word; lane k of word j holds value k·words + j, so every pass is over contiguous memory.

A value is a level in −L..L plus an offset L, so lanes are non-negative and never borrow. The width of a lane
is the width of the largest sum that the clients can reach, so lanes never carry: overflow is excluded when
the layout is made, not detected when it happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from .errors import SchemaError
from .reductions import Adaptive, Averaged, Counted, Summed
from .schema import Schema

WORD_BITS: Final = 64
BLOCK: Final = 1 << 14
"""Words a block: temporaries of 128 KB each stay in a core's second-level cache."""
ZERO_WORD: Final = 0
COUNT_WORD: Final = 1
HEADER_WORDS: Final = 2
PEAK_LEVELS: Final = 2**16 - 1


@dataclass(frozen=True, slots=True)
class Run:
    """Contiguous words that hold the lanes of one kind of one field.

    Attributes:
        field: Name of the field.
        kind: The values themselves, the number of values clipped, or the peak relative to the bound.
        size: Lanes of one client.
        top: Largest lane of one client; lanes are in 0..top.
        offset: What a lane adds to the level it carries.
        width: Bits of a lane: those of the largest sum.
        start: First word.
    """

    field: str
    kind: Literal["value", "clipped", "peak"]
    size: int
    top: int
    offset: int
    width: int
    start: int

    @property
    def lanes_per_word(self) -> int:
        """Lanes packed into a word."""
        return WORD_BITS // self.width

    @property
    def words(self) -> int:
        """Words of the run."""
        return -(-self.size // self.lanes_per_word)

    def blocks(self) -> Iterator[tuple[slice, list[tuple[slice, int]]]]:
        """Cache-sized slices of words, each with the slices of values that it holds and their shifts."""
        words, size = self.words, self.size
        for low in range(0, words, BLOCK):
            high = min(low + BLOCK, words)
            lanes = []
            for lane in range(self.lanes_per_word):
                first, last = lane * words + low, min(lane * words + high, size)
                if first < last:
                    lanes.append((slice(first, last), lane * self.width))
            yield slice(self.start + low, self.start + high), lanes


def lay_out(schema: Schema, num_clients: int) -> Iterator[Run]:
    """The runs of a schema, each wide enough for the sum of `num_clients` lanes."""
    start = HEADER_WORDS

    def run(name: str, kind: Any, size: int, top: int, offset: int = 0) -> Run:
        nonlocal start
        width = max(1, (num_clients * top).bit_length())
        if width > WORD_BITS:
            raise SchemaError(_overflow(schema, name, kind, width, num_clients))
        made = Run(name, kind, size, top, offset, width, start)
        start += made.words
        return made

    for name, field in schema.masked.items():
        if isinstance(field, Counted):
            yield run(name, "value", field.size, field.at_most)
        elif isinstance(field, (Summed, Averaged)):
            offset = _top_level(field) * largest_weight(schema, field)
            yield run(name, "value", field.size, 2 * offset, offset)
            if not field.integer:
                yield run(name, "clipped", 1, field.size)
            if isinstance(field.bound, Adaptive):
                yield run(name, "peak", 1, PEAK_LEVELS)


def _overflow(schema: Schema, name: str, kind: str, width: int, num_clients: int) -> str:
    """Which field needs how many bits, and what to lower."""
    field = schema[name]
    excess = width - WORD_BITS
    parts, remedy = f"{num_clients} clients", "Lower num_clients"
    if kind == "value" and isinstance(field, (Summed, Averaged)):
        parts = f"bits={field.bits}, {parts}"
        remedy = f"Lower bits of {name!r} by {excess}"
        if isinstance(field, Averaged) and field.weight is not None:
            parts += f", weights up to {largest_weight(schema, field)}"
            remedy += f", or at_most of {field.weight!r} by a factor {2**excess}"
    elif kind == "value" and isinstance(field, Counted):
        parts = f"at_most={field.at_most}, {parts}"
        remedy = f"Lower at_most of {name!r} by a factor {2**excess}"
    return f"Field {name!r} needs {width} bits a lane ({parts}); a word has {WORD_BITS}. {remedy}."


def _top_level(field: Summed | Averaged) -> int:
    """Levels on each side of zero that a client can reach."""
    return int(field.limit) if field.integer else field.levels


def largest_weight(schema: Schema, field: Summed | Averaged) -> int:
    """Largest weight of one client; 1 where clients weigh alike."""
    if isinstance(field, Averaged) and field.weight is not None:
        weight = schema[field.weight]
        assert isinstance(weight, Counted)  # noqa: S101  # our invariant: Schema verified it
        return weight.at_most
    return 1
