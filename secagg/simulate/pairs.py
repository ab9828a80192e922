"""Pairs: keys and masks of neighbours, by the million.

Byte for byte what `secagg.ephemeral.pair_mask_key` and `secagg.masks` give (a test says so); what is alike in
all pairs of a round is prepared once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from ..encoding import Words
from ..ephemeral import Binding, MaskKey
from ..keys import PROTOCOL, hkdf, length_prefixed
from ..masks import BLOCK_BYTES, CIPHER_KEY_BYTES, keystream

KEY_BYTES = CIPHER_KEY_BYTES["AES-128"]
_CIPHER_BLOCK = 16


@dataclass(frozen=True, slots=True, repr=False)
class Side:
    """One end of a pair, as the derivation of their key names it.

    Attributes:
        name: Id.
        public: Public mask key.
        labels: Both, each with its length before it.
        loaded: The key, ready for use: loading it anew for each neighbour takes a tenth of the time of all.
    """

    name: str
    public: bytes
    labels: tuple[bytes, bytes]
    loaded: X25519PublicKey

    @classmethod
    def of(cls, name: str, public: bytes) -> Side:
        """The end of a client with this id and this public mask key."""
        labels = length_prefixed(name.encode()), length_prefixed(public)
        return cls(name, public, labels, X25519PublicKey.from_public_bytes(public))


class PairKeys:
    """Derives the mask keys of pairs in one round."""

    def __init__(self, binding: Binding) -> None:
        number = binding.round.to_bytes(8, "little")
        self._before = length_prefixed(PROTOCOL, b"pair mask", binding.session, number)
        # Two empty ML-KEM keys: rounds here are not hybrid.
        self._after = length_prefixed(b"", b"", binding.roster, binding.context, binding.config)

    def key(self, private: MaskKey, mine: Side, other: Side) -> bytes:
        """Agree with a peer by X25519, and derive the mask's key."""
        first, second = (mine, other) if mine.name < other.name else (other, mine)
        (name, key), (peers_name, peers_key) = first.labels, second.labels
        info = b"".join((self._before, name, peers_name, key, peers_key, self._after))
        return hkdf(private._private.exchange(other.loaded), info, KEY_BYTES)


class Applier:
    """Adds keystreams to vectors and subtracts them, with one buffer for all."""

    def __init__(self, words: int) -> None:
        step = min(BLOCK_BYTES // 8, words)
        buffer = np.empty(8 * step + _CIPHER_BLOCK, np.uint8)
        self._room, mask, zeros = buffer.data, buffer[: 8 * step].view("<u8"), memoryview(bytes(8 * step))
        sizes = {low: min(step, words - low) for low in range(0, words, step)}
        self._blocks = [
            (slice(low, low + size), zeros[: 8 * size], mask[:size]) for low, size in sizes.items()
        ]

    def apply(self, key: bytes, plus: Words, minus: Words | None = None) -> None:
        """Add the keystream of a key to one vector, and subtract it from another where there is one."""
        stream = keystream(key)
        for place, zeros, mask in self._blocks:
            stream.update_into(zeros, self._room)
            block = plus[place]
            np.add(block, mask, block)
            if minus is not None:
                block = minus[place]
                np.subtract(block, mask, block)
