"""Randomness that a guarantee rests on: AES-CTR keyed by the operating system, without a seed: floor 2.

A stream is used for one purpose and forgotten. The seeded source exists for tests and for showing that a run
can be resumed bit for bit; its name says what it is.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["Source", "Stream", "insecure_source", "secure_source"]

_KEY_BYTES = 32
_CIPHER_BLOCK = 16
# Cache-sized: the block of zeros that is encrypted stays in cache, and memory stays bounded.
_ZEROS = memoryview(bytes(1 << 18))

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


# A process id can come again; the number of forks since the stream was made cannot.
os.register_at_fork(after_in_child=_count_fork)


class _Unshared:
    """Base of what must not be copied: a copy would give the same randomness twice."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} holds a key and is neither pickled nor copied; make a new one."
        )


class Stream(_Unshared):
    """A keystream, read once from front to back.

    Guarantees:
        - No word is given out twice by one stream.
        - A stream of the secure source that a forked process inherits is keyed anew there; one of the
          insecure source refuses to go on there, for it could only repeat its parent's words.
        - It is not picklable, not copyable, and its repr shows nothing.
    """

    __slots__ = ("_born", "_cipher", "_secure")

    def __init__(self, key: bytes, *, secure: bool) -> None:
        self._cipher = _keystream(key)
        self._secure = secure
        self._born = _forks

    def uint64(self, n: int) -> npt.NDArray[np.uint64]:
        """Draw `n` uniform 64-bit words.

        Args:
            n: How many, at least 0.

        Returns:
            The words, shape ``(n,)``.

        Raises:
            ValueError: If `n` is negative.
            RuntimeError: If an insecure stream crossed a fork.
        """
        if n < 0:
            raise ValueError(f"Expected n >= 0 words, got n={n}.")
        if self._born != _forks:
            self._after_fork()
        # update_into asks for room for one more cipher block than it writes.
        buffer = np.empty(8 * n + _CIPHER_BLOCK, np.uint8)
        view = buffer.data
        for low in range(0, 8 * n, len(_ZEROS)):
            self._cipher.update_into(_ZEROS[: min(len(_ZEROS), 8 * n - low)], view[low:])
        words: npt.NDArray[np.uint64] = buffer[: 8 * n].view("<u8").astype(np.uint64, copy=False)
        return words

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        """Draw `n` floats in the open interval (0, 1), 53 bits each.

        For decisions that a guarantee rests on compare words (`dp.sampling`); this is for the rest.
        """
        return ((self.uint64(n) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def _after_fork(self) -> None:
        if not self._secure:
            raise RuntimeError("Expected an insecure stream to stay in its process, got a forked one. Make a "
                               "stream with another label there.")  # fmt: skip
        self._cipher = _keystream(os.urandom(_KEY_BYTES))
        self._born = _forks


class Source(Protocol):
    """Where streams come from."""

    def stream(self, label: str) -> Stream:
        """A stream for the purpose that `label` names."""
        ...  # pragma: no cover


class _SecureSource(_Unshared):
    """Every stream has a key of its own from the operating system."""

    __slots__ = ()

    def stream(self, label: str) -> Stream:
        """A stream like no other; the label is for the reader of the code alone."""
        del label
        return Stream(os.urandom(_KEY_BYTES), secure=True)


class _InsecureSource(_Unshared):
    """Streams that follow from a seed and a label."""

    __slots__ = ("_seed",)

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**256:
            raise ValueError("Expected the seed of an insecure source to be an int in [0, 2**256).")
        self._seed = seed.to_bytes(32, "little")

    def stream(self, label: str) -> Stream:
        """The stream of this seed and label; the same label gives the same words again."""
        info = b"dp/insecure-source/1/" + label.encode()
        return Stream(HKDF(SHA256(), _KEY_BYTES, None, info).derive(self._seed), secure=False)


def secure_source() -> Source:
    """The source that privacy rests on: each stream is keyed by the operating system.

    Guarantees:
        - Two streams never share a key, whatever their labels, in one process or in forked ones.
        - There is no seed, and nothing from which a stream could be drawn again.
    """
    return _SecureSource()


def insecure_source(seed: int) -> Source:
    """A source that can be replayed, for tests: whoever knows the seed can subtract the noise.

    Args:
        seed: Any int in [0, 2**256).

    Raises:
        ValueError: If the seed is none.
    """
    return _InsecureSource(seed)


def _keystream(key: bytes) -> CipherContext:
    """AES-256 in counter mode from zero: the key is used for one stream, so the counter's start is free."""
    return Cipher(algorithms.AES(key), modes.CTR(bytes(_CIPHER_BLOCK))).encryptor()
