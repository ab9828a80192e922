"""Layout: which words of a round's vector hold which lanes, and the proof that none can overflow.

    word 0      zero lane: every client sends 0, so a sum in which one mask did not cancel shows at once
    word 1      count lane: every client sends 1
    then        runs, one after another in schema order, each field's kinds of lanes in the order that its
                reduction names them: its values, then (reals) how many were clipped, then (adaptive reals)
                its peak. A run of s lanes of w bits packs p = ⌊64/w⌋ of them a word; lane k of word j holds
                value k·words + j, so every pass is over contiguous memory.

A lane holds a level in low..high plus an offset, so it is not negative and never borrows. Its width is that
of the largest sum that the clients can reach, so it never carries: overflow is excluded when the layout is
made, not detected when it happens. Guard bits widen a lane evenly on both sides, for noise that is added to
levels. Truth values are never packed: each is a whole word, random where true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .errors import SchemaError
from .reductions import Lanes, MaskedReduction
from .reductions.base import Carrier
from .schema import Schema

WORD_BITS: Final = 64
BLOCK: Final = 1 << 14
"""Words a block: temporaries of 128 KB each stay in a core's second-level cache."""
ZERO_WORD: Final = 0
COUNT_WORD: Final = 1
HEADER_WORDS: Final = 2


@dataclass(frozen=True, slots=True)
class Run:
    """Contiguous words that hold the lanes of one kind of one field.

    Attributes:
        field: Name of the field.
        kind: What the lanes hold (see `Lanes.kind`).
        size: Lanes of one client.
        top: Largest lane of one client; lanes are in 0..top.
        offset: What a lane adds to the level it carries.
        width: Bits of a lane: those of the largest sum.
        start: First word.
        carrier: How values become lanes (see `Lanes.carrier`).
        room: Levels on each side that guard bits leave to noise.
        largest_weight: By how much a client's weight may multiply its levels.
    """

    field: str
    kind: str
    size: int
    top: int
    offset: int
    width: int
    start: int
    carrier: Carrier = "integer"
    room: int = 0
    largest_weight: int = 1

    @property
    def low(self) -> int:
        """Smallest level of one client, before it is weighed and without noise."""
        return (self.room - self.offset) // self.largest_weight

    @property
    def high(self) -> int:
        """Largest level of one client, before it is weighed and without noise."""
        return (self.top - self.offset - self.room) // self.largest_weight

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
    for name, field in schema.masked.items():
        for lanes in field.lanes():
            run = _run(schema, name, lanes, num_clients, start)
            start += run.words
            yield run


def _run(schema: Schema, name: str, lanes: Lanes, num_clients: int, start: int) -> Run:
    if lanes.carrier == "truth":
        return Run(name, lanes.kind, lanes.size, 2**WORD_BITS - 1, 0, WORD_BITS, start, "truth")
    weight = largest_weight(schema, schema.masked[name]) if lanes.weighed else 1
    span = weight * (lanes.high - lanes.low)
    room = (span * (2**lanes.guard_bits - 1) + 1) // 2
    top, offset = span + 2 * room, room - weight * lanes.low
    width = max(1, (num_clients * top).bit_length())
    if width <= WORD_BITS and num_clients * max(offset, top - offset) >= 2 ** (WORD_BITS - 1):
        width = WORD_BITS + 1  # A sum that fits the word, but not the int64 that it is decoded in.
    if width > WORD_BITS:
        raise SchemaError(_overflow(schema, name, lanes, width, num_clients))
    return Run(name, lanes.kind, lanes.size, top, offset, width, start, lanes.carrier, room, weight)


def _overflow(schema: Schema, name: str, lanes: Lanes, width: int, num_clients: int) -> str:
    """Which field needs how many bits, and what to lower."""
    field, excess = schema.masked[name], width - WORD_BITS
    parts, remedies = [], []
    bits, at_most = getattr(field, "bits", None), getattr(field, "at_most", 1)
    if bits is not None:
        parts.append(f"bits={bits}")
        remedies.append(f"bits of {name!r} by {excess}")
    if at_most > 1:
        parts.append(f"at_most={at_most}")
        remedies.append(f"at_most of {name!r} by a factor {2**excess}")
    if lanes.guard_bits:
        parts.append(f"guard_bits={lanes.guard_bits}")
        remedies.append(f"its guard_bits by {excess}")
    parts.append(f"{num_clients} clients")
    if field.weighed_by is not None:
        parts.append(f"weights up to {largest_weight(schema, field)}")
        remedies.append(f"at_most of {field.weighed_by!r} by a factor {2**excess}")
    remedy = ", or ".join(remedies or ["num_clients"])
    return (
        f"Field {name!r} needs {width} bits a lane ({', '.join(parts)}); a word has {WORD_BITS}. "
        f"Lower {remedy}."
    )


def largest_weight(schema: Schema, field: MaskedReduction) -> int:
    """Largest weight of one client; 1 where clients weigh alike."""
    if field.weighed_by is None:
        return 1
    return int(schema[field.weighed_by].at_most)  # type: ignore[attr-defined]  # Schema verified it
