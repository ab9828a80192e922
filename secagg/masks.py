"""Masks: AES-CTR keystreams added to and subtracted from a vector of words, block by block.

The sum of all clients' vectors is unmasked because each pair's keystream enters it once with either sign.
Keystream is made in blocks that stay in cache and is added at once: a mask is never held in memory whole.
A client uses a key for one vector of one round, and what holds it (`Masks`) forgets it on use. A server that
takes out the masks of clients that dropped calls `add_masks`, which a generator can feed: however many masks
there are, the keys of a few are alive at once.

References:
    NIST SP 800-38A (2001), section 6.5: the counter mode. Bonawitz et al. (2017): pairwise masks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from .errors import RoundReused
from .keys import Secret

Words: TypeAlias = NDArray[np.uint64]
Sign: TypeAlias = Literal[1, -1]
CipherName: TypeAlias = Literal["AES-128", "AES-256"]
CIPHER_KEY_BYTES: Final[dict[str, int]] = {"AES-128": 16, "AES-256": 32}
BLOCK_BYTES: Final = 1 << 19
"""Keystream made at once. Measured: the two calls a block cost nothing any more, and it lies in cache."""
BATCH: Final = 128
"""Masks whose keystreams are open at once: threads then meet every few milliseconds at the most."""
WORTH_THREADS: Final = 1 << 24
"""Keystream bytes below which a second thread takes longer to wake than it saves. Measured."""
_AES_BLOCK: Final = 16
_CACHE_LINE: Final = 64
_DRAWS: Final = 1 << 14
_STEP: Final = np.float32(2**-24)
_ZEROS: Final = bytes(BLOCK_BYTES)
_FROM_ZERO: Final = modes.CTR(bytes(_AES_BLOCK))


@dataclass(frozen=True, slots=True, repr=False)
class Mask(Secret):
    """One keystream and the sign with which it enters the vector.

    Attributes:
        key: AES key, 16 or 32 bytes, secret, used for this vector alone.
        sign: 1 to add, -1 to subtract.
    """

    key: bytes
    sign: Sign


class Masks(Secret):
    """The masks of one vector: applied once, whole or chunk by chunk, then forgotten.

    Guarantees:
        - `apply` or `stream` works once, whichever thread asks first; a second call raises RoundReused and
          changes nothing (R15).
        - A key is forgotten when its vector is masked: until then the open cipher holds it, nothing else.
        - Memory beyond the vector is at most two blocks a thread, whatever the number of masks.
    """

    __slots__ = ("_masks", "_unused")

    def __init__(self, masks: Iterable[Mask]) -> None:
        self._masks: tuple[Mask, ...] | None = tuple(masks)
        self._unused = [True]

    def apply(self, words: Words, *, threads: int = 1) -> None:
        """Add every mask to `words`, in place, modulo 2^64.

        Args:
            words: Encoded vector, contiguous, shape ``(n,)``.
            threads: Threads that share the work, where it is enough for them. The result is the same.

        Raises:
            RoundReused: If these masks were used before.
            ValueError: If `words` or `threads` cannot be used; the masks were not used then.
        """
        _verify(words, threads)
        add_masks(words, _drained(self._take()), threads=threads)

    def stream(self) -> MaskStream:
        """Open the masks for a vector that is made and masked chunk by chunk, from its first word on.

        Raises:
            RoundReused: If these masks were used before.
        """
        return MaskStream(_drained(self._take()))

    def _take(self) -> list[Mask]:
        try:
            self._unused.pop()  # One step for the interpreter: of two threads, one gets it.
        except IndexError:
            raise RoundReused(
                "These masks were already used for one vector; a second would reveal both."
            ) from None
        masks, self._masks = list(self._masks or ()), None
        return masks


class MaskStream(Secret):
    """Masks on their way through one vector: each chunk continues where the one before it ended.

    Guarantees:
        - Chunks one after another get the words that `Masks.apply` gives to the whole vector.
        - Closed, or after a chunk that failed, it masks nothing more: `add` raises RoundReused.

    Example:
        >>> words = np.zeros(5, np.uint64)
        >>> with Masks([Mask(bytes(16), 1), Mask(bytes(16), -1)]).stream() as masks:
        ...     masks.add(words[:2])
        ...     masks.add(words[2:])
        >>> words.tolist()
        [0, 0, 0, 0, 0]
    """

    __slots__ = ("_streams",)

    def __init__(self, masks: Iterable[Mask]) -> None:
        self._streams: list[tuple[CipherContext, Sign]] | None = [
            (keystream(mask.key), mask.sign) for mask in masks
        ]

    def add(self, chunk: Words) -> None:
        """Add the masks' next words to the vector's next words, in place, modulo 2^64.

        Args:
            chunk: Words of the vector that follow those of the chunk before, shape ``(m,)``, any m.

        Raises:
            RoundReused: If the stream is closed.
            ValueError: If `chunk` cannot be masked; the stream is where it was.
        """
        _verify(chunk)
        streams = self._streams
        if streams is None:
            raise RoundReused("This stream of masks is closed, its keys are forgotten.")
        try:
            add_keystreams(chunk, streams)
        except BaseException:
            self.close()  # Some masks may be ahead of others.
            raise

    def close(self) -> None:
        """Forget the masks. Closing twice is harmless."""
        self._streams = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KeystreamRounding(Secret):
    """Uniform draws for stochastic rounding, as `Encoding` takes them, from a keystream of their own.

    Draws are half of the time of encoding, and these take half the time of numpy's fastest generator.

    Guarantees:
        - Draws are independent of each other and of all masks, as far as AES-CTR is a keystream.
        - The same key gives the same draws.

    Args:
        key: AES key, 16 or 32 bytes; fresh from the operating system unless given.
    """

    __slots__ = ("_room", "_stream")

    def __init__(self, key: bytes | None = None) -> None:
        self._stream = keystream(os.urandom(CIPHER_KEY_BYTES["AES-128"]) if key is None else key)
        self._room = _aligned(_DRAWS * 4 + _AES_BLOCK)

    def random(self, *, dtype: type[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill `out`, contiguous and flat, with multiples of 2^-24 in [0, 1), each equally likely."""
        for low in range(0, out.size, _DRAWS):
            drawn = out[low : low + _DRAWS]
            self._stream.update_into(memoryview(_ZEROS)[: 4 * drawn.size], self._room.data)
            integers: NDArray[Any] = self._room[: 4 * drawn.size].view("<u4")
            np.right_shift(integers, 8, out=integers)
            np.copyto(drawn, integers.view("<i4"), casting="unsafe")  # Exact: 24 bits.
            np.multiply(drawn, _STEP, out=drawn)
        return out


def keystream(key: bytes, start: int = 0) -> CipherContext:
    """AES-CTR from 16-byte block `start` on: the key is used once, so a nonce would carry nothing."""
    mode = modes.CTR(start.to_bytes(_AES_BLOCK, "big")) if start else _FROM_ZERO
    return Cipher(algorithms.AES(key), mode).encryptor()


def add_keystreams(words: Words, streams: Sequence[tuple[CipherContext, Sign]]) -> None:
    """Add signed keystreams to little-endian words, in place, one cache-sized block after another.

    Each stream goes on from where it is and stops after ``8 * words.size`` bytes. The calls that take time
    let other threads run.
    """
    size = min(BLOCK_BYTES, words.nbytes)
    # update_into asks for room for one more cipher block than it writes.
    buffer = _aligned(size + _AES_BLOCK)
    room = buffer.data
    masks: NDArray[Any] = buffer[:size].view("<u8")
    zeros = memoryview(_ZEROS)
    opened = [(cipher.update_into, np.add if sign > 0 else np.subtract) for cipher, sign in streams]
    for low in range(0, words.size, BLOCK_BYTES // 8):
        block = words[low : low + BLOCK_BYTES // 8]
        zero, mask = zeros[: block.nbytes], masks[: block.size]
        for update_into, combine in opened:
            update_into(zero, room)
            combine(block, mask, block)


def add_masks(words: Words, masks: Iterable[Mask], *, threads: int = 1) -> None:
    """Add signed masks to words, in place, modulo 2^64, however many there are.

    Guarantees:
        - The result does not depend on `threads`.
        - `masks` is read in the calling thread, `BATCH` at a time: of what a generator derives, no more keys
          are alive than that. Memory beyond the vector is at most two blocks a thread.
        - Threads live for the call: nothing is left behind that a fork could break.

    Args:
        words: Words, contiguous, shape ``(n,)``.
        masks: Keys and signs, each used here for the only time.
        threads: Threads that share the work, where it is enough for them.

    Raises:
        ValueError: If `words` or `threads` cannot be used; no mask was read then.
    """
    _verify(words, threads)
    masks = iter(masks)
    with ExitStack() as stack:
        crew = None
        while batch := list(islice(masks, BATCH)):
            if threads == 1 or words.nbytes * len(batch) < WORTH_THREADS:
                add_keystreams(words, _opened(batch)[0])
            else:
                crew = crew or stack.enter_context(_Crew(words, threads))
                crew.add(batch)


class _Crew:
    """Threads that share one vector's masks, this one included.

    Of a long vector each takes a contiguous part. A vector of one block is too short to be cut: there each
    takes some of the masks, into a vector of its own, and these are summed at the end.
    """

    def __init__(self, words: Words, threads: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(threads - 1)
        self._by_masks = words.nbytes <= BLOCK_BYTES
        if self._by_masks:
            self._targets = [words, *(np.zeros_like(words) for _ in range(threads - 1))]
        else:
            # A part starts where a line of the cache does, if the vector does, and where a cipher block does.
            line = _CACHE_LINE // 8
            step = -(-words.size // (threads * line)) * line
            self._starts = range(0, words.size, step)
            self._targets = [words[start : start + step] for start in self._starts]

    def add(self, batch: list[Mask]) -> None:
        """Add a batch of masks, which is emptied, and return when all threads are done."""
        if self._by_masks:
            (streams,), number = _opened(batch), len(self._targets)
            shares = [streams[i::number] for i in range(number)]
        else:
            shares = _opened(batch, self._starts)
        work = list(zip(self._targets, shares, strict=True))
        others = [self._pool.submit(add_keystreams, *share) for share in work[1:]]
        add_keystreams(*work[0])
        for other in others:
            other.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if self._by_masks and failed is None:
            for other in self._targets[1:]:
                np.add(self._targets[0], other, out=self._targets[0])


def _opened(batch: list[Mask], starts: Sequence[int] = (0,)) -> list[list[tuple[CipherContext, Sign]]]:
    """The keystreams of a batch, from each of these words on (multiples of 2); the batch is emptied."""
    opened = [[(keystream(mask.key, start // 2), mask.sign) for mask in batch] for start in starts]
    batch.clear()
    return opened


def _drained(masks: list[Mask]) -> Iterator[Mask]:
    """The masks of a list that holds each only until it is asked for."""
    while masks:
        yield masks.pop()


def _aligned(size: int) -> NDArray[np.uint8]:
    """Uninitialised bytes that start with a line of the cache: 1 to 2 % on the sum of masks."""
    buffer = np.empty(size + _CACHE_LINE, np.uint8)
    return buffer[-buffer.__array_interface__["data"][0] % _CACHE_LINE :][:size]


def _verify(words: Words, threads: int = 1) -> None:
    if words.dtype != np.uint64 or words.ndim != 1 or not words.flags.writeable:
        kind = "writeable" if words.flags.writeable else "read-only"
        raise ValueError(
            f"Expected writeable uint64 words, shape (n,), got {kind} {words.dtype} {words.shape}."
        )
    verify_threads(threads)


def verify_threads(threads: int) -> None:
    """Raise ValueError unless so many threads can share work."""
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"Expected threads to be a positive integer, got {threads!r}.")
