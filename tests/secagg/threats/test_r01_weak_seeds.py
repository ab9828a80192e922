"""R1: seeds that can be guessed. A vector says of itself when it is open (zero lane, count lane)."""

from __future__ import annotations

import hashlib
import os
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg import Encoding, sharing
from secagg.ephemeral import Binding, MaskKey, PublicKeys, pair_mask_key, self_mask_key
from secagg.masks import Mask, add_masks
from secagg.sharing import hash_seed
from tests.secagg.threats.attacker import SCHEMA, THREE, Attacker, assert_is_sum, secret_values
from tests.statistical import assert_rejects

FOLDED = 2**16


def folded(key: bytes) -> bytes:
    """16 bits of what was 128: the seeds that some implementations hand to their generator."""
    return (int.from_bytes(key, "little") % (FOLDED - 15)).to_bytes(2, "little") + bytes(len(key) - 2)


def fold_self_seeds(monkeypatch):
    few = SimpleNamespace(token_bytes=lambda length: os.urandom(2) + bytes(length - 2))
    monkeypatch.setattr(sharing, "secrets", few)


def fold_pair_keys(monkeypatch):
    monkeypatch.setattr(sharing, "pair_mask_key", lambda *given: folded(pair_mask_key(*given)))


def recorded() -> tuple[Attacker, dict]:
    """A round of three of which the attacker has the messages, and nothing else."""
    parties = Attacker(3, policy=THREE)
    values = secret_values(parties.names)
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit(values)
    return parties, values


def brute_force(parties: Attacker, victim: str = "c0") -> dict | None:
    """All self seeds of 16 bits against the stated hash; then all pairs of pair keys, met in the middle."""
    seen = parties.now
    binding, stated = parties.binding(seen), seen.boxes[victim].message.seed
    guesses = (guess.to_bytes(2, "little") + bytes(30) for guess in range(FOLDED))
    seed = next((guess for guess in guesses if hash_seed(binding, victim, guess) == stated), None)
    if seed is None:
        return None
    words = parties.words([victim])
    own = self_mask_key(seed, victim, seen.publics[victim], binding, 16)
    add_masks(words, [Mask(own, -1)])
    keys = [guess.to_bytes(2, "little") + bytes(14) for guess in range(FOLDED)]
    ecb = modes.ECB()  # of a block of zeros: the first block of the keystream
    blocks = b"".join(Cipher(algorithms.AES(key), ecb).encryptor().update(bytes(16)) for key in keys)
    zero, count = np.frombuffer(blocks, "<u8").reshape(-1, 2).T
    order = np.argsort(zero)
    wanted = words[0] - zero  # c0 adds both of its pair masks
    places = np.searchsorted(zero[order], wanted).clip(max=FOLDED - 1)
    partners = order[places]
    (found,) = np.nonzero((zero[partners] == wanted) & (count + count[partners] + np.uint64(1) == words[1]))
    if not found.size:
        return None
    add_masks(words, [Mask(keys[found[0]], -1), Mask(keys[partners[found[0]]], -1)])
    return Encoding(parties.schema, 3).decode(words, 1).values


def test_seeds_of_16_bits_are_guessed_from_the_messages_of_a_round(monkeypatch):
    fold_self_seeds(monkeypatch)
    fold_pair_keys(monkeypatch)
    parties, values = recorded()
    found = brute_force(parties)
    assert found is not None
    assert_is_sum(found, [values["c0"]])


@pytest.mark.parametrize("weakened", [None, fold_self_seeds, fold_pair_keys])
def test_neither_seeds_nor_pair_keys_are_among_the_guesses(monkeypatch, weakened):
    if weakened:
        weakened(monkeypatch)
    assert brute_force(recorded()[0]) is None


BINDING = Binding(bytes(16), 1, bytes(32), bytes(32), SCHEMA.digest)
KEYS = PublicKeys(bytes(32), bytes(32))
DERIVED = {
    "self mask": lambda seed: self_mask_key(seed, "c0", KEYS, BINDING, 16),
    "pair mask": lambda s: pair_mask_key(s, ("c0", KEYS, b""), ("c1", KEYS, b""), BINDING, 16),
    "mask key": lambda seed: MaskKey(seed, False).public,
}


def assert_every_bit_counts(derive, step=16) -> None:
    """Seeds that differ in one bit, or in two that a fold to `step` bits lays upon each other."""
    start = int.from_bytes(os.urandom(32), "little")
    folds = [(i, j) for i, j in combinations(range(256), 2) if (j - i) % step == 0]
    changed = [0, *(1 << i for i in range(256)), *((1 << i) ^ (1 << j) for i, j in folds)]
    keys = {derive((start ^ change).to_bytes(32, "little")) for change in changed}
    assert len(keys) == len(changed), "two seeds give one key"


@pytest.mark.parametrize("what", DERIVED)
def test_every_bit_of_a_seed_counts_and_none_is_folded_away(what):
    derive = DERIVED[what]
    assert_every_bit_counts(derive)

    def by_halves(seed):
        return derive(bytes(a ^ b for a, b in zip(seed[:16], seed[16:], strict=True)) * 2)

    for weak in (lambda s: derive(s[:16] + bytes(16)), by_halves, lambda s: folded(derive(s))):
        assert_rejects(assert_every_bit_counts, weak)


def assert_unpredictable(seeds: list[bytes]) -> None:
    """No 8 bytes at one place twice (a chance of 2^-43 in all), and no bit that is stuck (1e-6 in all)."""
    for place in range(0, 32, 4):
        assert len({seed[place : place + 8] for seed in seeds}) == len(seeds)
    ones = np.unpackbits(np.frombuffer(b"".join(seeds), np.uint8)).reshape(len(seeds), -1).sum(0)
    # 256 binomial counts at 6.2 standard deviations: less than 1e-6 together.
    assert np.abs(ones - len(seeds) / 2).max() <= 6.2 * np.sqrt(len(seeds)) / 2


def test_seeds_are_fresh_and_uniform():
    made = [sharing.RoundSecrets("c0", False) for _ in range(1000)]
    assert_unpredictable([secrets._seed for secrets in made])
    assert_unpredictable([secrets._mask_key.seed for secrets in made])
    assert_rejects(assert_unpredictable, [os.urandom(2) + bytes(30) for _ in range(1000)])
    assert_rejects(assert_unpredictable, [hashlib.sha256(os.urandom(1)).digest() for _ in range(1000)])
