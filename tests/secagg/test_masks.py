"""Masks: pairs cancel, one client's words look uniform, no keystream is ever shared, none is used twice."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

import secagg.client
from secagg import RoundReused, Schema, averaged, counted, summed
from secagg.keys import Binding, RoundKey
from secagg.masks import BLOCK_BYTES, Mask, Masks, add_keystreams, keystream
from tests.secagg.parties import make_parties, ready, run_round
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


def test_with_all_others_colluding_the_last_words_show_so_the_masks_are_what_hides_them(monkeypatch):
    """The attack works when the attacker has the keys: the tests above have something to find."""
    captured = capture_keys(monkeypatch)
    parties = make_parties(3, BIG)
    ready(parties)
    encoding = parties.clients[0]._round.encoding
    rounding = np.random.default_rng([0, 1])
    plain = encoding.encode(ZEROS, rounding)
    masked = masked_words(parties.clients[0].submit(ZEROS))
    for mask in captured["c0"]:
        term = stream_words(mask.key, masked.size)
        masked = masked - term if mask.sign > 0 else masked + term
    assert np.array_equal(masked, plain)


def capture_keys(monkeypatch):
    """Every mask that any client makes, by client, in order."""
    captured: dict[str, list[Mask]] = {}
    pair_masks = secagg.client.Client._pair_masks

    def recording(self, state, opened):
        made = pair_masks(self, state, opened)
        captured.setdefault(self.name, []).extend(made)
        return made

    monkeypatch.setattr(secagg.client.Client, "_pair_masks", recording)
    return captured


def test_no_keystream_is_shared_between_rounds_pairs_or_fields(monkeypatch):
    captured = capture_keys(monkeypatch)
    parties = make_parties(5, BIG)
    for number in range(1, 4):
        run_round(parties, [ZEROS] * 5, number)
    keys = [mask.key for masks in captured.values() for mask in masks]
    assert len(keys) == 3 * 5 * 4
    counts = {key: keys.count(key) for key in keys}
    assert set(counts.values()) == {2}, "each key belongs to one pair in one round"
    by_sign = {(key, mask.sign) for masks in captured.values() for mask in masks for key in [mask.key]}
    assert len(by_sign) == len(keys), "and enters with both signs"
    # Keystreams themselves: no aligned cipher block occurs twice, in any round, pair or field. Among b random
    # blocks of 128 bits a collision has probability b²/2^129 < 2^-85.
    size = 4_000
    blocks = np.concatenate([stream_words(key, size).reshape(-1, 2) for key in counts])
    assert len(np.unique(blocks, axis=0)) == len(blocks)


def test_a_folded_or_truncated_seed_would_be_seen():
    """R1: masks from seeds of 16 bits repeat among a thousand pairs; ours do not."""
    rng = np.random.default_rng(0)
    folded = [int(rng.integers(0, 2**16)).to_bytes(2, "little") * 8 for _ in range(1_000)]
    assert len(set(folded)) < 1_000
    names, binding = ("a", "b"), Binding(bytes(16), 1, bytes(32), bytes(32), bytes(32))
    a = RoundKey()
    keys = [a.pair_key(*names, RoundKey().public, binding, 16) for _ in range(1_000)]
    assert len(set(keys)) == 1_000
    assert_uniform_bits(np.frombuffer(b"".join(keys), np.uint8))
    assert_rejects(assert_uniform_bits, np.frombuffer(b"".join(folded), np.uint8))


CHANGES = {
    "session": b"\x01" * 16,
    "round": 2,
    "roster": b"\x01" * 32,
    "context": b"\x01" * 32,
    "config": b"\x01" * 32,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_key_is_bound_to_every_circumstance(field):
    base = {"session": bytes(16), "round": 1, "roster": bytes(32), "context": bytes(32), "config": bytes(32)}
    a, b = RoundKey(), RoundKey()
    right = a.pair_key("a", "b", b.public, Binding(**base), 16)
    assert b.pair_key("b", "a", a.public, Binding(**base), 16) == right
    other = Binding(**{**base, field: CHANGES[field]})
    assert a.pair_key("a", "b", b.public, other, 16) != right
    assert a.pair_key("a", "c", b.public, Binding(**base), 16) != right
    assert a.pair_key("a", "b", b.public, Binding(**base), 32)[:16] == right, "HKDF output is a prefix"


def test_info_is_unambiguous():
    """Ids that run into each other must not give the same key."""
    binding = Binding(bytes(16), 1, b"", b"", b"")
    publics = (bytes(32), bytes(32))
    others = (bytes(32), b"\x01" * 32)
    assert binding.info("pair mask", ("a", "b"), publics) != binding.info("pair mask", ("a", "b"), others)
    assert binding.info("pair mask", ("ab", "c"), publics) != binding.info("pair mask", ("a", "bc"), publics)
    assert binding.info("pair mask", ("a", "b"), publics) != binding.info("transport", ("a", "b"), publics)
