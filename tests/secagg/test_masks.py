"""Masks: pairs cancel, one client's words look uniform, no keystream is ever shared, none is used twice."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import RoundReused, Schema, averaged, counted, summed
from secagg.masks import BLOCK_BYTES, Mask, Masks, add_keystreams, keystream
from tests.secagg.parties import make_parties, ready
from tests.statistical import assert_rejects, assert_uncorrelated, assert_uniform_bits


def stream_words(key: bytes, n: int) -> np.ndarray:
    """The simplest version: the whole keystream in one call."""
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * n)), "<u8").astype(np.uint64)


def masked_words(message: bytes) -> np.ndarray:
    """The tail of a masked message, as a server (or anybody on the wire) sees it."""
    end = 73 + int.from_bytes(message[69:73], "little")
    return np.frombuffer(message[end:], "<u8").astype(np.uint64)


@pytest.mark.parametrize(
    "size", [0, 1, 2, 7, BLOCK_BYTES // 8 - 1, BLOCK_BYTES // 8, BLOCK_BYTES // 8 + 1, 100_003]
)
@pytest.mark.parametrize("length", [16, 32])
def test_blocked_masks_equal_the_whole_keystream(size, length):
    keys = [bytes([i]) * length for i in range(3)]
    words = np.arange(size, dtype=np.uint64)
    expected = words + stream_words(keys[0], size) - stream_words(keys[1], size) + stream_words(keys[2], size)
    Masks([Mask(keys[0], 1), Mask(keys[1], -1), Mask(keys[2], 1)]).apply(words)
    assert np.array_equal(words, expected)


def test_a_keystream_may_start_anywhere():
    words = np.zeros(100, np.uint64)
    add_keystreams(words[40:], [(keystream(bytes(16), 20), 1)])
    assert np.array_equal(words[40:], stream_words(bytes(16), 100)[40:])


@given(st.integers(2, 12), st.integers(0, 300), st.integers(0, 2**32))
@settings(max_examples=60)
def test_pairwise_masks_cancel_in_the_sum_in_any_order(n, size, seed):
    rng = np.random.default_rng(seed)
    plain = [rng.integers(0, 2**64, size, dtype=np.uint64) for _ in range(n)]
    keys = {pair: rng.bytes(16) for pair in combinations(range(n), 2)}
    masked = []
    for i in range(n):
        words = plain[i].copy()
        Masks([Mask(key, 1 if i == pair[0] else -1) for pair, key in keys.items() if i in pair]).apply(words)
        masked.append(words)
    total = np.sum([masked[i] for i in rng.permutation(n)], axis=0, dtype=np.uint64)
    assert np.array_equal(total, np.sum(plain, axis=0, dtype=np.uint64))


def test_masks_are_applied_once():
    masks = Masks([Mask(bytes(16), 1)])
    words = np.zeros(4, np.uint64)
    masks.apply(words)
    before = words.copy()
    with pytest.raises(RoundReused, match="a second would reveal both"):
        masks.apply(words)
    assert np.array_equal(words, before)


BIG = Schema(x=summed(1.0, shape=(60_000,)), m=averaged(1.0, "n", shape=(500,)), n=counted())
ZEROS = {"x": np.zeros(60_000, np.float32), "m": np.zeros(500), "n": 0}


def test_what_the_server_gets_from_one_client_is_uniform():
    """All-zero values, the hardest to hide: the masked words pass, the same words unmasked fail."""
    parties = make_parties(3, BIG)
    ready(parties)
    encoding = parties.clients[0]._round.encoding
    plain = encoding.encode(ZEROS, np.random.default_rng(0))
    masked = masked_words(parties.clients[0].submit(ZEROS))
    assert masked.size == plain.size
    assert_uniform_bits(masked)
    assert_rejects(assert_uniform_bits, plain)
    assert_uncorrelated(masked, plain)


def test_uniformity_has_power_against_masks_that_miss_some_words():
    """Were the masks to leave out one word in eight, the test above would fail."""
    parties = make_parties(3, BIG)
    ready(parties)
    plain = parties.clients[0]._round.encoding.encode(ZEROS, np.random.default_rng(0))
    masked = masked_words(parties.clients[0].submit(ZEROS))
    masked[::8] = plain[::8]
    assert_rejects(assert_uniform_bits, masked)


def test_the_difference_of_two_rounds_and_of_two_clients_is_uniform():
    """A shared or repeated keystream would cancel in the difference and show the plain words."""
    parties = make_parties(4, BIG)
    sent = []
    for number in (1, 2):
        ready(parties, number)
        sent.append([masked_words(client.submit(ZEROS)) for client in parties.clients])
        parties.server.abort()
    for a, b in combinations(sent[0] + sent[1], 2):
        assert_uniform_bits(a - b)
        assert_uniform_bits(a + b)  # The two of a pair use one keystream with opposite signs.
