"""The masking of Flower and declearn, behind functions that are timed, and what theirs must give.

Each side is made with its seeds and values, and is checked on a small vector before it is timed: two clients
of one pair, whose masks must cancel in the sum.
"""

from __future__ import annotations

import importlib
import os
import secrets
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .harness import Disagreement, Unavailable

__all__ = ["DeclearnMasks", "FlowerMasks"]

MODULUS = 1 << 32
"""Flower's default."""
BOUND = 8.0
"""Clipping bound of both sides; Flower's default."""


class FlowerMasks:
    """What a client of Flower's SecAgg+ adds to its quantized values: a mask for each seed, then the modulus.

    Flower draws each from a Mersenne Twister whose 32-bit state is the XOR of the seed's words, so its masks
    hide nothing from whoever tries 2^32 seeds; they are timed all the same.
    """

    name = "flower"

    def __init__(self, values: NDArray[np.int32], seeds: Sequence[tuple[bytes, int]]) -> None:
        utils = "flwr.common.secure_aggregation"
        self._draw = imported(f"{utils}.secaggplus_utils").pseudo_rand_gen
        self._arithmetic = imported(f"{utils}.ndarrays_arithmetic")
        self.values, self.seeds = [values], seeds

    def __call__(self) -> Any:
        """The masked values, as its client sends them."""
        arithmetic, masked = self._arithmetic, self.values
        shapes = arithmetic.get_parameters_shape(masked)
        for seed, sign in self.seeds:
            mask = self._draw(seed, MODULUS, shapes)
            combine = arithmetic.parameters_addition if sign > 0 else arithmetic.parameters_subtraction
            masked = combine(masked, mask)
        return arithmetic.parameters_mod(masked, MODULUS)[0]

    @classmethod
    def random(cls, values: NDArray[np.int32], k: int) -> FlowerMasks:
        """With `k` seeds of fresh random bytes."""
        return cls(values, [(os.urandom(32), 1 if i % 2 else -1) for i in range(k)])

    @classmethod
    def verify(cls) -> None:
        """Raise Disagreement unless the masks of two clients cancel and one client's are there."""
        values, seed = np.arange(1000, dtype=np.int32), os.urandom(32)
        masked = [cls(values, [(seed, sign)])() for sign in (1, -1)]
        if np.array_equal(masked[0], values) or not np.array_equal(sum(masked) % MODULUS, 2 * values):
            raise Disagreement("Flower's masks of one pair do not cancel.")


class DeclearnMasks:
    """What a client of declearn does to a vector: quantize, mask once per seed, by its batched path."""

    name = "declearn"

    def __init__(self, values: NDArray[np.float32], added: Sequence[int], subtracted: Sequence[int]) -> None:
        encrypter = imported("declearn.secagg.masking").MaskingEncrypter
        self._encrypter = encrypter(list(added), list(subtracted), bitsize=64, clipval=BOUND)
        self._vector = imported("declearn.model.sklearn").NumpyVector({"update": values})

    def __call__(self) -> Any:
        """The encrypted values, Python integers in a list."""
        return self._encrypter.encrypt_vector(self._vector)[0]

    @classmethod
    def random(cls, values: NDArray[np.float32], k: int) -> DeclearnMasks:
        """With `k` random seeds of 128 bits, half of them added."""
        seeds = [secrets.randbits(128) for _ in range(k)]
        return cls(values, seeds[::2], seeds[1::2])

    @classmethod
    def verify(cls) -> None:
        """Raise Disagreement unless two clients' sum decodes to the sum of their values."""
        values, seed = np.linspace(-1, 1, 1000, dtype=np.float32), secrets.randbits(128)
        sides = [cls(values, [seed], []), cls(values, [], [seed])]
        one, other = (side() for side in sides)
        total = [(a + b) % 2**64 for a, b in zip(one, other, strict=True)]
        levels = sides[0]._encrypter.quantizer.int_range
        decoded = np.array(total, np.float64) * (2 * BOUND / levels) - 2 * BOUND
        if not np.allclose(decoded, 2 * values, rtol=0, atol=1e-9):
            raise Disagreement("declearn's masks of one pair do not cancel.")


def imported(name: str) -> Any:
    """A peer's module, without the warnings that its imports give; Unavailable says how to install it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise Unavailable(f"{error}. Run: pip install 'privopt[bench]'") from error
