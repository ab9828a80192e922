"""Masked words as a server or an eavesdropper sees them: uniform, and never two under one keystream."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from secagg import Schema, averaged, counted, summed
from tests.secagg.parties import make_parties, ready
from tests.statistical import assert_rejects, assert_uncorrelated, assert_uniform_bits


def masked_words(message: bytes) -> np.ndarray:
    """The tail of a masked message, as a server (or anybody on the wire) sees it."""
    end = 73 + int.from_bytes(message[69:73], "little")
    return np.frombuffer(message[end:], "<u8").astype(np.uint64)


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
