"""Shamir's secret sharing of 32-byte secrets: any `threshold` shares give them, fewer say nothing.

A secret is 9 limbs of 30 bits, each shared by a polynomial of its own over the integers modulo 2^31 - 1.
Shares of many secrets are one matrix product, done in float64 by halves of 16 and 15 bits, so that every sum
is exact. Nothing here is secret but what goes in and comes out; who may see a share is the protocol's matter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMBS", "MAX_THRESHOLD", "PRIME", "SECRET_BYTES", "reconstruct", "split"]

PRIME: Final = 2**31 - 1
SECRET_BYTES: Final = 32
LIMBS: Final = 9
MAX_THRESHOLD: Final = 2**20
"""Products of halves have at most 32 bits, so 2^20 of them add up to less than 2^53: exact in float64."""
_LIMB_BITS: Final = 30

Shares = NDArray[np.uint32]
_Residues = NDArray[np.int64]


def split(secrets: Sequence[bytes], holders: int, threshold: int) -> Shares:
    """Share secrets among the points 1 to `holders`.

    Guarantees:
        - Fewer than `threshold` shares are uniform and independent of the secrets.
        - Coefficients are drawn from the operating system's generator by rejection, without bias.

    Args:
        secrets: Secrets of 32 bytes.
        holders: Number of shares of each, at most 2^31 - 2.
        threshold: Shares that give a secret back, in 1..holders and at most 2^20.

    Returns:
        Shares, shape ``(holders, len(secrets), 9)``; row i belongs to point i + 1.

    Raises:
        ValueError: If a secret has another length, or a number is out of range. No secret is shown.

    References:
        Shamir (1979), https://doi.org/10.1145/359168.359176.
    """
    if not 1 <= threshold <= min(holders, MAX_THRESHOLD) or holders >= PRIME:
        raise ValueError(
            "Expected 1 <= threshold <= holders < 2^31 - 1 and threshold <= 2^20, got "
            f"threshold={threshold}, holders={holders}."
        )
    limbs = _limbs(secrets)
    columns = limbs.size
    coefficients = np.concatenate(
        [limbs.reshape(1, -1), _random_residues((threshold - 1) * columns).reshape(threshold - 1, columns)]
    )
    powers = np.empty((holders, threshold), np.int64)
    powers[:, 0] = 1
    points = np.arange(1, holders + 1)
    for k in range(1, threshold):
        powers[:, k] = powers[:, k - 1] * points % PRIME
    shares = _product(powers, coefficients).astype(np.uint32)
    return shares.reshape(holders, len(secrets), LIMBS)


def reconstruct(points: Sequence[int], shares: Shares) -> list[bytes]:
    """The secrets that shares at these points give.

    What is no share of theirs is not noticed here: compare the result with a hash or a public key.

    Args:
        points: Who holds the shares, each in 1..2^31 - 2, all different; exactly as many as the threshold
            was, or more.
        shares: Shape ``(len(points), secrets, 9)``, values below 2^31 - 1.

    Raises:
        ValueError: If shapes or values are not those of shares, or what they give is no secret of 32 bytes
            (too few shares, or altered ones). No share is shown.
    """
    places = np.array(points, np.int64)
    if places.ndim != 1 or not places.size or len(set(points)) < len(points):
        raise ValueError(f"Expected different points, at least one, got {len(points)}.")
    if places.min() < 1 or places.max() >= PRIME:
        raise ValueError("Expected points in 1..2^31 - 2, got one outside.")
    if shares.ndim != 3 or shares.shape[0] != len(points) or shares.shape[2] != LIMBS:
        raise ValueError(
            f"Expected shares of shape ({len(points)}, secrets, {LIMBS}), a row a point, got {shares.shape}."
        )
    residues = shares.astype(np.int64)
    if residues.size and residues.max() >= PRIME:
        raise ValueError("Expected shares below 2^31 - 1, got one that is not.")
    weights = _weights_at_zero(places)
    limbs = _product(weights[None, :], residues.reshape(len(points), -1)).reshape(-1, LIMBS)
    return [_secret(row) for row in limbs.tolist()]


def _limbs(secrets: Sequence[bytes]) -> _Residues:
    for secret in secrets:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"Expected secrets of {SECRET_BYTES} bytes, got one of {len(secret)}.")
    numbers = [int.from_bytes(secret, "little") for secret in secrets]
    mask = 2**_LIMB_BITS - 1
    rows = [[number >> (_LIMB_BITS * k) & mask for k in range(LIMBS)] for number in numbers]
    return np.array(rows, np.int64).reshape(len(secrets), LIMBS)


def _secret(limbs: Sequence[int]) -> bytes:
    number = sum(limb << (_LIMB_BITS * k) for k, limb in enumerate(limbs))
    if max(limbs) >= 2**_LIMB_BITS or number >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("Expected shares of one secret, at least as many as its threshold, got others.")
    return number.to_bytes(SECRET_BYTES, "little")


def _random_residues(count: int) -> _Residues:
    """Uniform numbers below the prime."""
    found = np.empty(count, np.int64)
    have = 0
    while have < count:
        drawn = np.frombuffer(os.urandom(4 * (count - have)), "<u4") & np.uint32(PRIME)
        kept = drawn[drawn < PRIME]  # all 31 bits set is the one value to draw again
        found[have : have + kept.size] = kept
        have += kept.size
    return found


def _product(left: _Residues, right: _Residues) -> _Residues:
    """A matrix product modulo the prime."""
    (a, b), (c, d) = (_halves(left), _halves(right))
    high, low = (a @ c).astype(np.int64), (b @ d).astype(np.int64)
    middle = (a @ d).astype(np.int64) % PRIME + (b @ c).astype(np.int64) % PRIME
    product: _Residues = ((high % PRIME << 32) % PRIME + (middle << 16) % PRIME + low % PRIME) % PRIME
    return product


def _halves(residues: _Residues) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (residues >> 16).astype(np.float64), (residues & 0xFFFF).astype(np.float64)


def _weights_at_zero(points: _Residues) -> _Residues:
    """Lagrange's coefficients of the value at 0."""
    above, below = np.ones_like(points), np.ones_like(points)
    for k, point in enumerate(points.tolist()):
        others = np.arange(points.size) != k
        above = np.where(others, above * point % PRIME, above)
        below = np.where(others, below * ((point - points) % PRIME) % PRIME, below)
    inverse = np.array([pow(number, -1, PRIME) for number in below.tolist()], np.int64)
    return above * inverse % PRIME
