"""Holders: Shamir's reconstruction of many secrets at once, each from other points.

On a ring each client has holders of its own, and others of them are lost. Lagrange's weights need the product
of all differences to the other points used. Where most of a small range of points is used, they follow from
the range's products, made once, and the few points that are not: no division is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..shamir import LIMBS, PRIME, SECRET_BYTES

_LIMB_BITS = 30


def reconstruct_each(
    points: NDArray[np.int64], shares: NDArray[np.uint32], holders: int
) -> list[bytes | None]:
    """The secret that each row's shares give.

    Args:
        points: Each row's points, shape ``(rows, t)``, different ones of 1..holders.
        shares: A share a point, shape ``(rows, t, 9)``, below 2^31 - 1.
        holders: Number of points there are.

    Returns:
        Secrets of 32 bytes by row; None where the shares give none.
    """
    rows, t = points.shape
    used = np.zeros((rows, holders + 1), bool)
    np.put_along_axis(used, points, True, axis=1)
    unused = np.argsort(used[:, 1:], axis=1, kind="stable")[:, : holders - t] + 1
    weights = (_inverse_products(holders) * _inverses(holders) % PRIME)[points]
    for column in unused.T[:, :, None]:
        weights = weights * ((column - points) % PRIME) % PRIME
    product = np.ones(rows, np.int64)
    for column in points.T:
        product = product * column % PRIME
    weights = weights * product[:, None] % PRIME
    limbs = np.zeros((rows, LIMBS), np.int64)
    for place in range(t):
        limbs += weights[:, place, None] * shares[:, place].astype(np.int64) % PRIME
    return [_secret(row) for row in (limbs % PRIME).tolist()]


def _inverses(holders: int) -> NDArray[np.int64]:
    """1 / i modulo the prime, by i; 0 at 0."""
    return np.array([0, *(pow(i, -1, PRIME) for i in range(1, holders + 1))], np.int64)


def _inverse_products(holders: int) -> NDArray[np.int64]:
    """1 / product of all (j - i) for j of 1..holders but i, by i; 0 at 0."""
    points = np.arange(1, holders + 1)
    products = np.ones(holders, np.int64)
    for j in range(1, holders + 1):
        products = products * np.where(points == j, 1, (j - points) % PRIME) % PRIME
    return np.array([0, *(pow(product, -1, PRIME) for product in products.tolist())], np.int64)


def _secret(limbs: list[int]) -> bytes | None:
    number = sum(limb << (_LIMB_BITS * place) for place, limb in enumerate(limbs))
    if max(limbs) >= 2**_LIMB_BITS or number >= 2 ** (8 * SECRET_BYTES):
        return None
    return number.to_bytes(SECRET_BYTES, "little")
