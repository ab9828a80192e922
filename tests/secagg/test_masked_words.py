"""Masked words as a server or an eavesdropper sees them: uniform, and never two under one keystream."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import secagg.sharing
from secagg import Schema, averaged, counted, summed
from secagg.masks import Mask, Masks
from tests.secagg.parties import insecure_rounding, make_parties, ready, run_round
from tests.secagg.test_masks import stream_words
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


@pytest.fixture
def made(monkeypatch) -> list[list[Mask]]:
    """The masks of each vector that was masked, in order."""
    seen: list[list[Mask]] = []

    def recording(masks: list[Mask]) -> Masks:
        seen.append(list(masks))
        return Masks(masks)

    monkeypatch.setattr(secagg.sharing, "Masks", recording)
    return seen


def test_who_has_all_keys_reads_the_words_so_the_masks_are_what_hides_them(made):
    """The attack works when the attacker has the keys: the tests above have something to find."""
    parties = make_parties(3, BIG)
    ready(parties)
    encoding = parties.clients[0]._round.encoding
    plain = encoding.encode(ZEROS, insecure_rounding(0)(b"", 1))
    masked = masked_words(parties.clients[0].submit(ZEROS))
    (masks,) = made
    for mask in masks:
        term = stream_words(mask.key, masked.size)
        masked = masked - term if mask.sign > 0 else masked + term
    assert np.array_equal(masked, plain)


def test_all_others_together_do_not_read_a_survivors_words(made):
    """They and the server know every pair key of the client: its self mask is left, and hides everything."""
    parties = make_parties(3, BIG)
    ready(parties)
    masked = masked_words(parties.clients[0].submit(ZEROS))
    others = [mask.key for client in parties.clients[1:] if client.submit(ZEROS) for mask in made[-1]]
    for mask in made[0]:
        if mask.key in others:
            masked -= np.uint64(mask.sign % 2**64) * stream_words(mask.key, masked.size)
    assert sum(mask.key in others for mask in made[0]) == 2
    assert_uniform_bits(masked)


def test_no_keystream_is_shared_between_rounds_and_pairs(made):
    n, rounds, size = 5, 3, 4_000
    parties = make_parties(n, BIG)
    for number in range(1, rounds + 1):
        run_round(parties, [ZEROS] * n, number)
    signs: dict[bytes, list[int]] = {}
    for masks in made:
        for mask in masks:
            signs.setdefault(mask.key, []).append(mask.sign)
    own = [key for key, kept in signs.items() if kept == [1]]
    pairs = [key for key, kept in signs.items() if sorted(kept) == [-1, 1]]
    assert len(own) == rounds * n, "Each client has a self mask of its own in each round,"
    assert len(pairs) == rounds * n * (n - 1) // 2, "each pair a mask of its own, with both signs,"
    assert len(signs) == len(own) + len(pairs), "and there are no others."
    # Keystreams themselves: no aligned cipher block occurs twice. Among b random blocks of 128 bits two are
    # equal with probability b²/2^129 < 2^-90.
    blocks = np.concatenate([stream_words(key, size).reshape(-1, 2) for key in signs])
    assert len(np.unique(blocks, axis=0)) == len(blocks)
