"""Shamir's sharing: against exact integers, any threshold of shares, and nothing from fewer."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import shamir
from secagg.shamir import LIMBS, PRIME, reconstruct, split
from tests.statistical import assert_rejects, assert_uniform_bits


@given(
    secrets=st.lists(st.binary(min_size=32, max_size=32), max_size=5),
    sizes=st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    data=st.data(),
)
def test_any_threshold_of_shares_gives_the_secrets(
    secrets: list[bytes], sizes: tuple[int, int], data: st.DataObject
) -> None:
    holders, threshold = sizes
    shares = split(secrets, holders, threshold)
    assert shares.shape == (holders, len(secrets), LIMBS)
    count = data.draw(st.integers(threshold, holders))
    points = data.draw(st.permutations(range(1, holders + 1)))[:count]
    assert reconstruct(points, shares[[p - 1 for p in points]]) == secrets


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_secrets_at_the_ends_of_their_range_come_back(secret: bytes) -> None:
    shares = split([secret], 5, 3)
    for points in itertools.combinations(range(1, 6), 3):
        assert reconstruct(points, shares[[p - 1 for p in points]]) == [secret]


def test_shares_are_values_of_one_polynomial_over_the_prime(monkeypatch: pytest.MonkeyPatch) -> None:
    coefficients = np.arange(PRIME - 4 * LIMBS, PRIME, dtype=np.int64)
    monkeypatch.setattr(shamir, "_random_residues", lambda count: coefficients[:count])
    secret = bytes(range(200, 232))
    shares = split([secret], 7, 5)
    number = int.from_bytes(secret, "little")
    for limb in range(LIMBS):
        terms = [number >> (30 * limb) & (2**30 - 1), *coefficients.reshape(4, LIMBS)[:, limb].tolist()]
        for point in range(1, 8):
            assert shares[point - 1, 0, limb] == sum(c * point**k for k, c in enumerate(terms)) % PRIME


def test_lagranges_weights_are_those_of_exact_fractions() -> None:
    points = [3, 1, 40, 7, 2**31 - 2]
    for k, weight in enumerate(shamir._weights_at_zero(np.array(points)).tolist()):
        exact = Fraction(1)
        for j, other in enumerate(points):
            if j != k:
                exact *= Fraction(other, other - points[k])
        assert weight == exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME


def test_matrix_products_are_exact_for_the_largest_numbers() -> None:
    rng = np.random.default_rng(0)
    for left, right in (
        (np.full((2, 3000), PRIME - 1), np.full((3000, 3), PRIME - 1)),
        (rng.integers(0, PRIME, (4, 700)), rng.integers(0, PRIME, (700, 5))),
    ):
        exact = left.astype(object) @ right.astype(object) % PRIME
        assert (shamir._product(left, right) == exact).all()
    # What the bound on thresholds rests on.
    assert (2**16 - 1) ** 2 * shamir.MAX_THRESHOLD < 2**53


def test_fewer_shares_than_the_threshold_look_the_same_for_every_secret() -> None:
    for secret in (bytes(32), b"\xff" * 32):
        shares = np.concatenate([split([secret] * 50, 3, 3)[:2] for _ in range(20)])
        # 30 of 31 bits: the prime lacks one value in 2^31, which no test of this size sees.
        words = (shares & (2**30 - 1)).astype(np.uint64).reshape(-1)
        packed = (words[0::2] << np.uint64(34)) | (words[1::2] << np.uint64(4))
        bits = packed | np.frombuffer(os.urandom(8 * packed.size), np.uint64) & np.uint64(15)
        assert_uniform_bits(bits)
        assert_rejects(assert_uniform_bits, bits | np.uint64(1 << 40))


@pytest.mark.parametrize("points", [[1, 2, 3], [1, 2, 3, 5]])
def test_too_few_shares_or_those_of_others_are_no_secret(points: list[int]) -> None:
    shares = split([os.urandom(32)], 6, 4)
    # By chance they are one, and the test fails, once in 2^23 times: 9 limbs below 2^30, the last below 2^16.
    with pytest.raises(ValueError, match="at least as many as its threshold"):
        reconstruct(points, shares[: len(points)])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split([bytes(31)], 3, 2), "secrets of 32 bytes, got one of 31"),
        (lambda: split([bytes(32)], 3, 4), "threshold=4, holders=3"),
        (lambda: split([bytes(32)], 3, 0), "threshold=0"),
        (lambda: reconstruct([1, 1], np.zeros((2, 1, 9), np.uint32)), "different points"),
        (lambda: reconstruct([], np.zeros((0, 1, 9), np.uint32)), "at least one"),
        (lambda: reconstruct([0, 1], np.zeros((2, 1, 9), np.uint32)), "one outside"),
        (lambda: reconstruct([1, PRIME], np.zeros((2, 1, 9), np.uint32)), "one outside"),
        (lambda: reconstruct([1, 2], np.zeros((2, 1, 8), np.uint32)), r"shape \(2, secrets, 9\)"),
        (lambda: reconstruct([1], np.full((1, 1, 9), PRIME, np.uint32)), "below 2\\^31 - 1"),
    ],
)
def test_what_is_no_share_is_refused(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        call()


def test_coefficients_are_drawn_again_where_they_are_the_prime(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([b"\xff\xff\xff\x7f\x05\0\0\x80", b"\xff\xff\xff\xff", b"\x07\0\0\0"])
    monkeypatch.setattr(os, "urandom", lambda size: next(drawn))
    assert shamir._random_residues(2).tolist() == [5, 7]
