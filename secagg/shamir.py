"""Shamir's secret sharing of 32-byte secrets: any `threshold` shares give them, fewer say nothing.

    share           split
    give back       reconstruct; reconstruct_each, where every secret has other holders;
                    reconstruct_verified, where some shares may be wrong

A secret is 9 limbs of 30 bits, each shared by a polynomial of its own over the integers modulo 2^31 - 1.
Shares of many secrets are one matrix product, done in float64 on pieces small enough that every sum is exact.
Nothing here is secret but what goes in and comes out; who may see a share is the protocol's matter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LIMBS",
    "MAX_HOLDERS",
    "PRIME",
    "SECRET_BYTES",
    "reconstruct",
    "reconstruct_each",
    "reconstruct_verified",
    "split",
]

PRIME: Final = 2**31 - 1
SECRET_BYTES: Final = 32
LIMBS: Final = 9
MAX_HOLDERS: Final = 2**20
"""Most shares of one secret; tables of factorials have as many entries."""
MAX_TRIALS: Final = 2**11
"""Most subsets of shares that `reconstruct_verified` tries."""
_LIMB_BITS: Final = 30
_CUTS: Final = ((0, 11), (11, 10), (21, 10))
"""Where a residue is cut into pieces: first bit and length."""
_EXACT: Final = 2**11
"""Products of 31 and 11 bits that add up to less than 2^53, where float64 stops counting."""
_ONE_THREAD: Final = 2**18
"""Products in one call of a matrix product."""
_BLOCK: Final = 2**20
"""Numbers in a block of work, so that memory stays bounded however many holders and secrets there are."""

Shares = NDArray[np.uint32]
_Residues = NDArray[np.int64]
_Floats = NDArray[np.float64]


def split(secrets: Sequence[bytes], holders: int, threshold: int) -> Shares:
    """Share secrets among the points 1 to `holders`.

    The first ``threshold - 1`` shares are drawn; with the secret they fix a polynomial, and the other shares
    are its values. That is the same distribution as drawing its coefficients, for a third of the work.

    Guarantees:
        - Fewer than `threshold` shares are uniform and independent of the secrets.
        - They are drawn from the operating system's generator by rejection, without bias.

    Args:
        secrets: Secrets of 32 bytes.
        holders: Number of shares of each, at most 2^20.
        threshold: Shares that give a secret back, in 1..holders.

    Returns:
        Shares, shape ``(holders, len(secrets), 9)``; row i belongs to point i + 1.

    Raises:
        ValueError: If a secret has another length, or a number is out of range. No secret is shown.

    References:
        Shamir (1979), https://doi.org/10.1145/359168.359176; McEliece and Sarwate (1981),
        https://doi.org/10.1145/358746.358762, on shares as a systematic Reed-Solomon code.
    """
    if not 1 <= threshold <= holders <= MAX_HOLDERS:
        raise ValueError(
            f"Expected 1 <= threshold <= holders <= {MAX_HOLDERS}, got threshold={threshold}, "
            f"holders={holders}."
        )
    limbs = _limbs(secrets)
    values = np.empty((holders + 1, limbs.size), np.uint32)  # at the points 0 to holders
    values[0] = limbs.reshape(-1)
    values[1:threshold] = _random_residues((threshold - 1) * limbs.size).reshape(threshold - 1, limbs.size)
    step = max(1, _BLOCK // threshold)
    for start in range(threshold, holders + 1, step):
        stop = min(start + step, holders + 1)
        values[start:stop] = _product(_extension(threshold, start, stop), values[:threshold])
    return values[1:].reshape(holders, len(secrets), LIMBS)


def reconstruct(points: Sequence[int], shares: Shares) -> list[bytes]:
    """The secrets that shares at these points give.

    What is no share of theirs is not noticed here: compare the result with a hash or a public key. Weights of
    the last few sets of points are kept, so that secrets which come one by one cost no more than together.

    Args:
        points: Who holds the shares, each in 1..2^31 - 2, all different; exactly as many as the threshold
            was, or more.
        shares: Shape ``(len(points), secrets, 9)``, values below 2^31 - 1.

    Raises:
        ValueError: If shapes or values are not those of shares, or what they give is no secret of 32 bytes
            (too few shares, or altered ones). No share is shown.
    """
    _verify_shares(points, shares)
    weights = _weights_at_zero(tuple(map(int, points)))[:, None]
    step = max(1, _BLOCK // (LIMBS * len(points)))
    limbs: list[list[int]] = []
    for start in range(0, shares.shape[1], step):
        block = shares[:, start : start + step].reshape(len(points), -1).astype(np.float64)
        limbs += _product(block.T, weights).reshape(-1, LIMBS).tolist()
    secrets = [secret for row in limbs if (secret := _secret(row)) is not None]
    if len(secrets) < len(limbs):
        raise ValueError("Expected shares of one secret, at least as many as its threshold, got others.")
    return secrets


def reconstruct_each(points: NDArray[np.integer], shares: Shares, holders: int) -> list[bytes | None]:
    """The secrets that shares give where each secret's are at points of its own.

    Lagrange's weights need a product over all pairs of points. Those of all of 1..holders are binomials, and
    each point that is missing takes one factor out: cheap where most of the holders are there, and done for
    many secrets at once, without a division.

    Args:
        points: Each secret's points, shape ``(secrets, t)``, different ones of 1..holders.
        shares: A share a point, shape ``(secrets, t, 9)``, values below 2^31 - 1.
        holders: Number of points that there are, at most 2^20.

    Returns:
        The secrets in their order; None where the shares give none of 32 bytes. As for `reconstruct`, what
        comes out may be another secret than was shared.

    Raises:
        ValueError: If shapes or values are not those of shares.
    """
    if points.ndim != 2 or shares.shape != (*points.shape, LIMBS) or not points.shape[1]:
        raise ValueError(
            f"Expected points of shape (secrets, t) and shares of (secrets, t, {LIMBS}), got {points.shape} "
            f"and {shares.shape}."
        )
    if not points.shape[1] <= holders <= MAX_HOLDERS:
        raise ValueError(f"Expected {points.shape[1]}..{MAX_HOLDERS} holders, got {holders}.")
    if points.size and (int(points.min()) < 1 or int(points.max()) > holders):
        raise ValueError(f"Expected points in 1..{holders}, got one outside.")
    if shares.size and (int(shares.min()) < 0 or int(shares.max()) >= PRIME):
        raise ValueError("Expected shares below 2^31 - 1, got one that is not.")
    found: list[bytes | None] = []
    step = max(1, _BLOCK // (LIMBS * holders))
    for start in range(0, len(points), step):
        some = points[start : start + step].astype(np.int64)
        weights = _weights_of_each(some, holders)
        limbs = np.zeros((len(some), LIMBS), np.int64)
        for place in range(some.shape[1]):  # up to 2^20 terms of 31 bits
            limbs += weights[:, place, None] * shares[start : start + step, place].astype(np.int64) % PRIME
        found += [_secret(row) for row in (limbs % PRIME).tolist()]
    return found


def _weights_of_each(points: _Residues, holders: int) -> _Residues:
    """Lagrange's coefficients of the value at 0, row by row of points."""
    used = np.zeros((len(points), holders + 1), np.bool_)
    np.put_along_axis(used, points, True, axis=1)
    if (used.sum(axis=1) < points.shape[1]).any():
        raise ValueError("Expected different points for each secret, got one twice.")
    # The weight of i is the product of j / (j - i) over the other points j. Over all j of 1..holders, the
    # differences give factorials; over those that are missing they are taken out again.
    _, inverses = _factorials(holders)
    weights = inverses[points] * inverses[holders - points] % PRIME  # of i's own j, 1 / i is in there
    weights[points % 2 == 0] *= -1
    absent = np.argsort(used[:, 1:], axis=1, kind="stable")[:, : holders - points.shape[1]] + 1
    for column in absent.T:
        weights = weights * (column[:, None] - points) % PRIME
    product = np.ones(len(points), np.int64)
    for column in points.T:
        product = product * column % PRIME
    return np.asarray(weights * product[:, None] % PRIME)


def reconstruct_verified(
    points: Sequence[int], shares: Shares, threshold: int, is_secret: Callable[[bytes], bool]
) -> tuple[bytes, tuple[int, ...]]:
    """The one secret that passes a check, although some shares are wrong, and whose shares those are.

    Tried in turn: the first `threshold` shares; decoding, which corrects up to half as many wrong shares as
    there are more than `threshold`; leaving out one share, two and so on, at most 2,048 times.

    Guarantees:
        - The secret passes `is_secret`.
        - If at most ``(len(points) - threshold) // 2`` shares are wrong, the secret is found, and exactly
          their points are returned, but for a chance of 2^-31 a share. If more are wrong, the points returned
          are those off the polynomial that was found: holders who agree with each other can make that any
          polynomial through the secret, so take them for a hint and not for a proof.

    Args:
        points: As for `reconstruct`.
        shares: Shares of one secret, shape ``(len(points), 1, 9)``.
        threshold: Shares that give the secret back.
        is_secret: Whether bytes are the secret: compares a hash or a public key. Called with 32 bytes.

    Returns:
        The secret, and the points of wrong shares, sorted.

    Raises:
        ValueError: If the arguments are no shares, fewer than `threshold`, or no secret is found.
    """
    _verify_shares(points, shares)
    if shares.shape[1] != 1:
        raise ValueError(f"Expected shares of one secret, got those of {shares.shape[1]}.")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"Expected at least threshold={threshold} >= 1 shares, got {len(points)}.")
    places, shares = tuple(map(int, points)), shares[:, 0]
    by_first = _attempt(places, shares, range(threshold), threshold, is_secret)
    if by_first is not None and not by_first[1]:
        return by_first
    wrong = _locate_errors(places, shares, threshold)
    if wrong:
        right = [k for k in range(len(places)) if k not in wrong]
        decoded = _attempt(places, shares, right[:threshold], threshold, is_secret)
        if decoded is not None and len(decoded[1]) <= (len(places) - threshold) // 2:
            return decoded
    if by_first is not None:
        return by_first
    trials = 1
    for left_out in range(1, len(places) - threshold + 1):
        among = range(threshold + left_out)
        trials += math.comb(len(among), left_out)
        if trials > MAX_TRIALS:
            break
        for out in combinations(among, left_out):
            found = _attempt(places, shares, [k for k in among if k not in out], threshold, is_secret)
            if found is not None:
                return found
    raise ValueError(
        f"Expected {threshold} right shares of one secret among {len(points)}, found none that pass. Ask "
        "more holders."
    )


def _attempt(
    points: tuple[int, ...],
    shares: Shares,
    chosen: Sequence[int],
    threshold: int,
    is_secret: Callable[[bytes], bool],
) -> tuple[bytes, tuple[int, ...]] | None:
    """The secret of the chosen shares if it passes, and the points of all that are off its polynomial."""
    chosen = list(chosen)[:threshold]
    nodes = tuple(points[k] for k in chosen)
    try:
        (secret,) = reconstruct(nodes, shares[chosen, None])
    except ValueError:  # no secret of 32 bytes
        return None
    if not is_secret(secret):
        return None
    rest = sorted(set(range(len(points))) - set(chosen))
    if not rest:
        return secret, ()
    others = np.array([points[k] for k in rest], np.int64)
    on_polynomial = _product(_interpolation(nodes, others).astype(np.float64), shares[chosen])
    off = (on_polynomial != shares[rest]).any(axis=1)
    return secret, tuple(sorted(others[off].tolist()))


def _locate_errors(points: tuple[int, ...], shares: Shares, threshold: int) -> set[int]:
    """Rows of wrong shares, if there are few enough to tell; an empty set if there are none or too many.

    Shares are words of a generalized Reed-Solomon code. All limbs are decoded at once, as one combination
    with random weights: an error vanishes from it with probability 2^-31.
    """
    spare = len(points) - threshold
    if spare < 2:
        return set()
    places = np.array(points, np.int64)
    weights = _random_residues(LIMBS).astype(np.int64)
    word = _product(shares.astype(np.float64), weights[:, None])[:, 0].astype(np.int64)
    scaled = word * _inverse(_products_of_differences(places, places)) % PRIME
    syndromes = []
    for _ in range(spare):
        syndromes.append(int(scaled.sum()) % PRIME)  # up to 2^20 terms of 31 bits
        scaled = scaled * places % PRIME
    locator = _shortest_recurrence(syndromes)
    if 2 * (len(locator) - 1) > spare:
        return set()
    # The locator is the product of (1 - point z) over wrong points: reversed, it vanishes there.
    value = np.zeros_like(places)
    for coefficient in locator:
        value = (value * places + coefficient) % PRIME
    wrong = set(np.flatnonzero(value == 0).tolist())
    return wrong if len(wrong) == len(locator) - 1 else set()


def _shortest_recurrence(sequence: Sequence[int]) -> list[int]:
    """Coefficients 1, c_1 ... c_L of the shortest recurrence ``s_n + c_1 s_(n-1) + ... = 0``.

    Massey (1969), https://doi.org/10.1109/TIT.1969.1054260.
    """
    current, previous = [1], [1]
    length, since, last = 0, 1, 1
    for n, value in enumerate(sequence):
        terms = zip(current[1:], reversed(sequence[:n]), strict=False)
        discrepancy = (value + sum(c * s for c, s in terms)) % PRIME
        if discrepancy == 0:
            since += 1
            continue
        factor = discrepancy * pow(last, -1, PRIME) % PRIME
        update = [0] * since + [factor * c % PRIME for c in previous]
        size = max(len(current), len(update))
        padded = [*current, *[0] * (size - len(current))]
        update += [0] * (size - len(update))
        if 2 * length <= n:
            previous, length, last, since = current, n + 1 - length, discrepancy, 1
        else:
            since += 1
        current = [(a - b) % PRIME for a, b in zip(padded, update, strict=True)]
    return (current + [0] * (length + 1))[: length + 1]


def _verify_shares(points: Sequence[int], shares: Shares) -> None:
    if not len(points) or len(set(points)) < len(points):
        raise ValueError(f"Expected different points, at least one, got {len(points)}.")
    if min(points) < 1 or max(points) >= PRIME:
        raise ValueError("Expected points in 1..2^31 - 2, got one outside.")
    if shares.ndim != 3 or shares.shape[0] != len(points) or shares.shape[2] != LIMBS:
        raise ValueError(
            f"Expected shares of shape ({len(points)}, secrets, {LIMBS}), a row a point, got {shares.shape}."
        )
    if shares.size and (int(shares.min()) < 0 or int(shares.max()) >= PRIME):
        raise ValueError("Expected shares below 2^31 - 1, got one that is not.")


def _limbs(secrets: Sequence[bytes]) -> _Residues:
    for secret in secrets:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"Expected secrets of {SECRET_BYTES} bytes, got one of {len(secret)}.")
    numbers = [int.from_bytes(secret, "little") for secret in secrets]
    mask = 2**_LIMB_BITS - 1
    rows = [[number >> (_LIMB_BITS * k) & mask for k in range(LIMBS)] for number in numbers]
    return np.array(rows, np.int64).reshape(len(secrets), LIMBS)


def _secret(limbs: Sequence[int]) -> bytes | None:
    """The secret that limbs are of; None if they are of none."""
    number = sum(limb << (_LIMB_BITS * k) for k, limb in enumerate(limbs))
    if max(limbs) >= 2**_LIMB_BITS or number >= 2 ** (8 * SECRET_BYTES):
        return None
    return number.to_bytes(SECRET_BYTES, "little")


def _random_residues(count: int) -> Shares:
    """Uniform numbers below the prime."""
    found = np.frombuffer(os.urandom(4 * count), "<u4") & np.uint32(PRIME)
    while (again := np.flatnonzero(found == PRIME)).size:  # all 31 bits set is the one value to draw again
        found[again] = np.frombuffer(os.urandom(4 * again.size), "<u4") & np.uint32(PRIME)
    return found


def _product(left: _Floats, right: NDArray[np.integer]) -> Shares:
    """A matrix product modulo the prime; `left` holds residues as float64."""
    rows, columns = left.shape[0], right.shape[1]
    total = np.zeros((rows, columns))
    for start in range(0, right.shape[0], _EXACT):
        block = right[start : start + _EXACT]
        pieces = np.empty((block.shape[0], len(_CUTS), columns))
        for k, (first, length) in enumerate(_CUTS):
            pieces[:, k] = block >> first & (1 << length) - 1
        sums = _sums(left[:, start : start + _EXACT], pieces.reshape(block.shape[0], -1))
        sums = _remainder(sums).reshape(rows, len(_CUTS), columns)
        for k, (first, _) in enumerate(_CUTS):
            total += sums[:, k] * float(1 << first)  # below 2^31 + 2^42 + 2^52
        total = _remainder(total)
    # What is left is between -1 and the prime, by the rounding of one division.
    total[total < 0] += PRIME
    total[total >= PRIME] -= PRIME
    return total.astype(np.uint32)


def _sums(left: _Floats, right: _Floats) -> _Floats:
    """``left @ right`` in parts that one thread does.

    OpenBLAS wakes its threads for more than 2^18 products. Where other work keeps the processors busy,
    waiting for them takes ten times as long as the products do.
    """
    (rows, inner), columns = left.shape, right.shape[1]
    width = min(max(1, columns), max(8, _ONE_THREAD // (16 * inner)))
    height = min(rows, _ONE_THREAD // (inner * width))
    whole = rows - rows % height
    found = np.empty((rows, columns))
    for start in range(0, columns, width):
        part = np.ascontiguousarray(right[:, start : start + width])
        above = np.matmul(left[:whole].reshape(-1, height, inner), part)
        found[:whole, start : start + width] = above.reshape(whole, -1)
        found[whole:, start : start + width] = left[whole:] @ part
    return found


def _remainder(numbers: _Floats) -> _Floats:
    """In place, integers below 2^53 less a multiple of the prime; one too many or too few may be taken."""
    multiple = numbers * (1 / PRIME)
    np.floor(multiple, out=multiple)
    multiple *= PRIME
    numbers -= multiple
    return numbers


@lru_cache(maxsize=8)
def _factorial_table(size: int) -> tuple[_Residues, _Residues]:
    factorials = [1]
    for k in range(1, size):
        factorials.append(factorials[-1] * k % PRIME)
    inverses = [pow(factorials[-1], -1, PRIME)]
    for k in range(size - 1, 0, -1):
        inverses.append(inverses[-1] * k % PRIME)
    return np.array(factorials, np.int64), np.array(inverses[::-1], np.int64)


def _factorials(up_to: int) -> tuple[_Residues, _Residues]:
    """0! to `up_to`! and more, and their inverses; of a few sizes, so that tables are seldom made."""
    return _factorial_table(1 << up_to.bit_length())


@lru_cache(maxsize=4)
def _extension(threshold: int, start: int, stop: int) -> _Floats:
    """Lagrange's coefficients that take values at 0 to threshold - 1 to those at `start` to stop - 1."""
    factorials, inverses = _factorials(stop)
    nodes, points = np.arange(threshold), np.arange(start, stop)
    # Products of differences of integers in a row are factorials.
    below = inverses[nodes] * inverses[threshold - 1 - nodes] % PRIME
    below[(threshold - 1 - nodes) % 2 == 1] *= -1
    above = factorials[points] * inverses[points - threshold] % PRIME
    reciprocals = np.zeros(stop, np.int64)
    reciprocals[1:] = inverses[1:stop] * factorials[: stop - 1] % PRIME
    matrix = reciprocals[points[:, None] - nodes] * (below % PRIME) % PRIME
    extension: _Floats = (matrix * above[:, None] % PRIME).astype(np.float64)
    return extension


@lru_cache(maxsize=64)
def _weights_at_zero(points: tuple[int, ...]) -> _Residues:
    """Lagrange's coefficients of the value at 0."""
    places = np.array(points, np.int64)
    top, missing = max(points), max(points) - len(points)
    if top > MAX_HOLDERS or missing > len(points):
        at_zero: _Residues = _interpolation(points, np.zeros(1, np.int64))[0]
        return at_zero
    # Of all of 1..top the coefficients are binomials; each point that is missing takes one factor out.
    factorials, inverses = _factorials(top)
    weights = inverses[places] * inverses[top - places] % PRIME * factorials[top] % PRIME
    weights[places % 2 == 0] *= -1
    is_absent = np.ones(top + 1, np.bool_)
    is_absent[0] = is_absent[places] = False
    absent = np.flatnonzero(is_absent)
    weights = weights % PRIME * _products_of_differences(absent, places) % PRIME
    scale = pow(_product_of(absent.tolist()), -1, PRIME)
    return np.asarray(weights * scale % PRIME)


def _interpolation(nodes: tuple[int, ...], points: _Residues) -> _Residues:
    """Lagrange's coefficients that take values at `nodes` to those at `points`, none of them a node."""
    at = np.array(nodes, np.int64)
    above, below = _products_of_differences(at, points), _products_of_differences(at, at)
    # Few differences are different where points are small integers.
    differences, where = np.unique((at - points[:, None]) % PRIME, return_inverse=True)
    reciprocals = _inverse(differences)[where].reshape(points.size, at.size)
    return np.asarray(reciprocals * _inverse(below) % PRIME * above[:, None] % PRIME)


def _products_of_differences(others: _Residues, points: _Residues) -> _Residues:
    """For each point the product of ``other - point`` over all others but itself."""
    product = np.ones_like(points)
    step = max(1, _BLOCK // max(1, points.size))
    for start in range(0, others.size, step):
        factors = (others[start : start + step, None] - points) % PRIME
        factors[factors == 0] = 1
        while len(factors) > 1:
            half = len(factors) // 2
            paired = factors[:half] * factors[half : 2 * half] % PRIME
            factors = np.concatenate([paired, factors[2 * half :]])
        product = product * factors[0] % PRIME
    return product


def _product_of(numbers: Iterable[int]) -> int:
    product = 1
    for number in numbers:
        product = product * number % PRIME
    return product


def _inverse(numbers: _Residues) -> _Residues:
    """Inverses of residues that are not 0, by one inversion of the product of all (Montgomery 1987)."""
    partial = [1]
    for number in numbers.tolist():
        partial.append(partial[-1] * number % PRIME)
    rest = pow(partial[-1], -1, PRIME)
    inverses = []
    for number, before in zip(reversed(numbers.tolist()), reversed(partial[:-1]), strict=True):
        inverses.append(rest * before % PRIME)
        rest = rest * number % PRIME
    return np.array(inverses[::-1], np.int64)
