"""Masks: AES-CTR keystreams added to and subtracted from a vector of words, block by block.

The sum of all clients' vectors is unmasked because each pair's keystream enters it once with either sign.
Keystream is made in blocks that stay in cache and is added at once: a mask is never held in memory whole.
A key is used for one vector of one round; the object that holds it forgets it on use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from .errors import RoundReused
from .keys import Secret

CipherName: TypeAlias = Literal["AES-128", "AES-256"]
CIPHER_KEY_BYTES: Final[dict[str, int]] = {"AES-128": 16, "AES-256": 32}
BLOCK_BYTES: Final = 1 << 18
"""Measured: 256 KB is where the call's overhead has vanished and the block still lies in cache."""
_AES_BLOCK: Final = 16
_ZEROS: Final = bytes(BLOCK_BYTES)


@dataclass(frozen=True, slots=True, repr=False)
class Mask(Secret):
    """One keystream and the sign with which it enters the vector.

    Attributes:
        key: AES key, 16 or 32 bytes, secret, used for this vector alone.
        sign: 1 to add, -1 to subtract.
    """

    key: bytes
    sign: Literal[1, -1]


class Masks(Secret):
    """The masks of one vector: applied once, then forgotten.

    Guarantees:
        - `apply` works once; a second call raises RoundReused and changes nothing (R15).
        - Memory beyond the vector is one block, whatever the number of masks.
    """

    __slots__ = ("_masks",)

    def __init__(self, masks: Iterable[Mask]) -> None:
        self._masks: tuple[Mask, ...] | None = tuple(masks)

    def apply(self, words: NDArray[np.uint64]) -> None:
        """Add every mask to `words`, in place, modulo 2^64.

        Args:
            words: Encoded vector, contiguous, shape ``(n,)``.

        Raises:
            RoundReused: If these masks were applied before.
        """
        masks, self._masks = self._masks, None
        if masks is None:
            raise RoundReused("These masks were already used for one vector; a second would reveal both.")
        add_keystreams(words, [(keystream(mask.key), mask.sign) for mask in masks])


def keystream(key: bytes, start: int = 0) -> CipherContext:
    """AES-CTR from 16-byte block `start` on: the key is used once, so a nonce would carry nothing."""
    return Cipher(algorithms.AES(key), modes.CTR(start.to_bytes(_AES_BLOCK, "big"))).encryptor()


def add_keystreams(words: NDArray[np.uint64], streams: list[tuple[CipherContext, Literal[1, -1]]]) -> None:
    """Add signed keystreams to little-endian words, in place, one cache-sized block after another."""
    # update_into asks for room for one more cipher block than it writes.
    buffer = np.empty(BLOCK_BYTES + _AES_BLOCK, np.uint8)
    view = buffer.data
    stream: NDArray[Any] = buffer[:BLOCK_BYTES].view("<u8")
    zeros = memoryview(_ZEROS)
    step = BLOCK_BYTES // 8
    for low in range(0, words.size, step):
        block = words[low : low + step]
        zero, mask = zeros[: block.nbytes], stream[: block.size]
        for cipher, sign in streams:
            cipher.update_into(zero, view)
            (np.add if sign > 0 else np.subtract)(block, mask, out=block)
