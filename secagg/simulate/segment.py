"""Segment: a stretch of the ring, simulated whole by one worker process.

A client's neighbours are the nearest ones on the ring, so a stretch of it, with half a neighbourhood more on
either side, is all that its clients' shares and masks depend on. A pair's X25519 exchange and its keystream
are computed once, for both ends: the process knows the keys of both. Where a client is lost, the server's
part derives its masks anew, from the key that the shares gave back.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .. import shamir
from ..encoding import Encoding, Words
from ..ephemeral import Binding, MaskKey, PublicKeys, self_mask_key
from ..fields import summed
from ..masks import Mask, add_masks
from ..reductions import Summed
from ..reductions.base import MAX_REAL_BITS
from ..schema import Schema
from ..shamir import reconstruct_each
from ..sharing import MASK_SEED, SELF_SEED, hash_seed
from .machines import STAGES
from .pairs import KEY_BYTES, Applier, PairKeys, Side

SHARES, VECTOR = STAGES.index("shares"), STAGES.index("vector")
FIELD: Final = "update"
_SHARED_AT_ONCE: Final = 256
_VECTORS_AT_ONCE: Final = 128
"""Vectors encoded in a row: one by one, between masks, each finds its code and data out of the cache."""


def field_schema(entries: int, bits: int) -> Schema:
    """One field whose quantum is 1, so that whole numbers are summed exactly."""
    if not 2 <= bits <= MAX_REAL_BITS:
        raise ValueError(f"Expected bits in 2..{MAX_REAL_BITS}, got {bits}.")
    return Schema({FIELD: summed(float(2 ** (bits - 1) - 1), bits=bits, shape=(entries,))})


def draw_values(schema: Schema, source: np.random.Generator, clients: int) -> NDArray[np.float64]:
    """A row of values for each client: whole numbers anywhere within the bounds."""
    reduction = schema[FIELD]
    assert isinstance(reduction, Summed)  # noqa: S101  # our invariant: as `field_schema` makes it
    top = reduction.levels
    return source.integers(-top, top, (clients, reduction.size), endpoint=True).astype(np.float64)


@dataclass(frozen=True, slots=True, repr=False)
class Segment:
    """What one worker is given: clients by their places on the ring.

    Attributes:
        names: Ids, the ``margin`` before the segment and after it included.
        seeds: Each one's self-mask seed and mask-key seed, shape ``(len(names), 2, 32)``.
        lost: Stage from which on a client is lost, as a place in `STAGES`; their number if it never is.
        gives: Whether a client gives its shares at the end.
        margin: Neighbours on one side.
        threshold: Shares that give a secret back.
        binding: The round.
        schema: Canonical bytes of the schema.
        capacity: Clients that lanes are wide enough for.
    """

    names: tuple[str, ...]
    seeds: NDArray[np.uint8]
    lost: NDArray[np.int8]
    gives: NDArray[np.bool_]
    margin: int
    threshold: int
    binding: Binding
    schema: bytes
    capacity: int


@dataclass(slots=True, repr=False)
class Part:
    """What a segment adds to the round.

    Attributes:
        total: Sum of the masked vectors that came.
        remaining: Masks that the server found to be in it.
        clear: Sum of the same vectors before they were masked.
        exact: Sum of the values that they encode.
        clients: Clients of the segment.
        vectors: How many vectors came.
        pairs: Pairs whose secret was agreed upon, by X25519.
        recovered: Masks that were derived anew from a lost client's key.
        unrecovered: Secrets that the shares did not give back, or gave back wrong.
        seconds: Processor seconds by part of the work.
        megabytes: Largest memory of the worker so far.
    """

    total: Words
    remaining: Words
    clear: Words
    exact: NDArray[np.float64]
    clients: int
    vectors: int = 0
    pairs: int = 0
    recovered: int = 0
    unrecovered: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    megabytes: float = 0.0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count processor time: the cores may be shared."""
        began = time.process_time()
        yield
        self.seconds[what] += time.process_time() - began


def megabytes() -> float:
    """Memory of this process at its largest."""
    # The system's count of resources goes on through exec: a worker's would start with its parent's.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1024 if sys.platform != "darwin" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def simulate_segment(segment: Segment) -> Part:
    """All stages of a segment's clients, and the server's work on their vectors and shares."""
    return _Segment(segment).run()


class _Segment:
    """A segment at work. Places are those of the ring, from the first of the margin on."""

    def __init__(self, segment: Segment) -> None:
        self.given, self.margin = segment, segment.margin
        self.own = range(segment.margin, len(segment.names) - segment.margin)
        # Lists: they are asked about one place at a time, millions of times.
        self.shared: list[bool] = (segment.lost > SHARES).tolist()
        self.survives: list[bool] = (segment.lost > VECTOR).tolist()
        self.encoding = Encoding(Schema.from_bytes(segment.schema), segment.capacity)
        words, field = self.encoding.words, self.encoding.schema.masked[FIELD]
        self.applier = Applier(words)
        self.source = np.random.default_rng()  # invented clients' values, and rounding: nothing to protect
        self.part = Part(
            np.zeros(words, np.uint64),
            np.zeros(words, np.uint64),
            np.zeros(words, np.uint64),
            np.zeros(field.size),
            len(self.own),
        )

    def run(self) -> Part:
        """The stages in order."""
        given, part = self.given, self.part
        with part.timed("keys"):
            self.keys = [MaskKey(seed.tobytes(), False) for seed in given.seeds[:, MASK_SEED]]
            self.sides = [
                Side.of(*each) for each in zip(given.names, (k.public for k in self.keys), strict=True)
            ]
            self.pair_keys = PairKeys(given.binding)
        secrets = self._shares_and_secrets()
        self._vectors()
        with part.timed("removing masks"):
            add_masks(part.remaining, self._remaining(secrets))
        part.megabytes = megabytes()
        return part

    # --- shares -------------------------------------------------------------------------------------------

    def _shares_and_secrets(self) -> list[tuple[int, bytes]]:
        """Deal both secrets of every client; put that one together which its survival asks for."""
        owners = [place for place in self.own if self.shared[place]]
        found = []
        for low in range(0, len(owners), _SHARED_AT_ONCE):
            some = owners[low : low + _SHARED_AT_ONCE]
            with self.part.timed("sharing"):
                dealt, hashes = self._deal(some)
            with self.part.timed("reconstruction"):
                secrets = self._reconstruct(np.array(some), dealt)
                right = [self._is_secret(*each) for each in zip(some, secrets, hashes, strict=True)]
            self.part.unrecovered += right.count(False)
            found += [
                (place, secret)
                for place, secret, ok in zip(some, secrets, right, strict=True)
                if ok and secret is not None
            ]
        return found

    def _deal(self, owners: list[int]) -> tuple[NDArray[np.uint32], list[bytes]]:
        """Shares of both secrets, shape ``(holders, owners, 2, 9)``, and the hashes of self-mask seeds."""
        given = self.given
        seeds = [given.seeds[place, which].tobytes() for place in owners for which in (SELF_SEED, MASK_SEED)]
        dealt = shamir.split(seeds, 2 * self.margin + 1, given.threshold)
        hashes = [
            hash_seed(given.binding, given.names[p], given.seeds[p, SELF_SEED].tobytes()) for p in owners
        ]
        return dealt.reshape(-1, len(owners), 2, shamir.LIMBS), hashes

    def _reconstruct(self, owners: NDArray[np.int64], dealt: NDArray[np.uint32]) -> list[bytes | None]:
        """From the shares of those holders that give any, the first `threshold` of them."""
        holders = owners[:, None] + np.arange(-self.margin, self.margin + 1)
        # A holder's point is its place among the holders' ids, from 1.
        by_id = np.argsort(np.array(self.given.names)[holders], axis=1)
        gives = np.take_along_axis(self.given.gives[holders], by_id, axis=1)
        first = np.argsort(~gives, axis=1, kind="stable")[:, : self.given.threshold]
        enough = gives.sum(axis=1) >= self.given.threshold
        asked = np.where(np.array(self.survives)[owners], SELF_SEED, MASK_SEED)
        shares = dealt[first, np.arange(len(owners))[:, None], asked[:, None]]
        secrets = reconstruct_each(first + 1, shares, holders.shape[1])
        return [secret if ok else None for secret, ok in zip(secrets, enough, strict=True)]

    def _is_secret(self, place: int, secret: bytes | None, hashed: bytes) -> bool:
        """What the server checks: a self-mask seed against its hash, a mask key against its public key."""
        if secret is None:
            return False
        if self.survives[place]:
            return hash_seed(self.given.binding, self.given.names[place], secret) == hashed
        return MaskKey(secret, False).public == self.sides[place].public

    # --- vectors ------------------------------------------------------------------------------------------

    def _vectors(self) -> None:
        """Every client's masked vector, in the ring's order; only those still without all masks are held."""
        part, margin = self.part, self.margin
        masks = np.zeros((margin + 1, self.encoding.words), np.uint64)
        ready: list[tuple[int, Words]] = []
        for place in range(self.own.stop):
            if self.shared[place]:
                with part.timed("pair masks"):
                    self._mask_pairs(place, masks)
            row = masks[place % (margin + 1)]
            if place in self.own and self.survives[place]:
                ready.append((place, row.copy()))
            row[:] = 0
            if len(ready) == _VECTORS_AT_ONCE:
                self._submit(ready)
                ready = []
        self._submit(ready)

    def _mask_pairs(self, place: int, masks: NDArray[np.uint64]) -> None:
        """The masks of a client with the next ones on the ring."""
        margin, first = self.margin, self.own.start
        key, me, mine = self.keys[place], self.sides[place], masks[place % (margin + 1)]
        near = range(place + 1, place + margin + 1)
        for other in near if place >= first else range(first, near.stop):
            # Between two clients of the margin the segment before it does this.
            if not self.shared[other] or not (self.survives[place] or self.survives[other]):
                continue
            peer, row = self.sides[other], masks[other % (margin + 1)]
            # The lesser id adds, the greater subtracts.
            plus, minus = (mine, row) if me.name < peer.name else (row, mine)
            self.applier.apply(self.pair_keys.key(key, me, peer), plus, minus)
            self.part.pairs += place >= first

    def _submit(self, ready: list[tuple[int, Words]]) -> None:
        """Encode vectors, add to each the masks that it has with others and its own; add them up."""
        part = self.part
        with part.timed("encoding"):
            values = draw_values(self.encoding.schema, self.source, len(ready))
            words = [self.encoding.encode({FIELD: value}, self.source) for value in values]
            for each in words:
                part.clear += each
            part.exact += values.sum(axis=0)
        with part.timed("self masks"):
            for (place, masks), each in zip(ready, words, strict=True):
                each += masks
                seed = self.given.seeds[place, SELF_SEED].tobytes()
                self.applier.apply(self._self_key(place, seed), each)
        with part.timed("adding vectors"):
            for each in words:
                part.total += each
            part.vectors += len(words)

    # --- the server's end ---------------------------------------------------------------------------------

    def _remaining(self, secrets: list[tuple[int, bytes]]) -> Iterator[Mask]:
        """The masks that did not cancel, from what shares gave back."""
        margin = self.margin
        for place, secret in secrets:
            if self.survives[place]:
                yield Mask(self._self_key(place, secret), 1)
                continue
            lost = MaskKey(secret, False)
            me = self.sides[place]
            for other in range(place - margin, place + margin + 1):
                if other != place and self.survives[other]:
                    self.part.recovered += 1
                    peer = self.sides[other]
                    yield Mask(self.pair_keys.key(lost, me, peer), 1 if peer.name < me.name else -1)

    def _self_key(self, place: int, seed: bytes) -> bytes:
        keys = PublicKeys(self.sides[place].public, b"")
        return self_mask_key(seed, self.given.names[place], keys, self.given.binding, KEY_BYTES)
