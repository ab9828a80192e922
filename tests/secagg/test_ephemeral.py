"""Ephemeral keys: the same mask for both sides of a pair, another under any other circumstance."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg import IdentityError
from secagg.ephemeral import (
    CONTRIBUTION_BYTES,
    KEM_CIPHERTEXT_BYTES,
    RECEIPT_BYTES,
    Binding,
    MaskKey,
    PublicKeys,
    TransportKey,
    pair_mask_key,
    self_mask_key,
)
from secagg.keys import hkdf, length_prefixed
from tests.statistical import assert_rejects, assert_uniform_bits

BINDING = Binding(bytes(16), 1, bytes(32), bytes(32), bytes(32))
CHANGES: dict[str, Any] = {
    "session": b"\x01" * 16,
    "round": 2,
    "roster": b"\x01" * 32,
    "context": b"\x01" * 32,
    "config": b"\x01" * 32,
}
LOW_ORDER = [bytes(32), b"\x01" + bytes(31), bytes.fromhex("ec" + "ff" * 30 + "7f")]
both_kinds = pytest.mark.parametrize("hybrid", [False, True], ids=["x25519", "hybrid"])


class Side:
    """One side of a pair, with both of its keys."""

    def __init__(self, name: str, hybrid: bool, seed: bytes | None = None) -> None:
        self.name, self.hybrid = name, hybrid
        self.key = MaskKey.generate(hybrid) if seed is None else MaskKey(seed, hybrid)
        self.transport = TransportKey(hybrid)
        transport, transport_kem = self.transport.keys
        self.public = PublicKeys(self.key.public, transport, self.key.kem_public, transport_kem)

    def pair(self, other: Side, binding: Binding = BINDING, length: int = 16, **names: str) -> bytes:
        """The mask key with `other`, as this side derives it."""
        mine, theirs = b"", b""
        own, peer = names.get("own", self.name), names.get("peer", other.name)
        if self.hybrid:
            mine = self.key.contribution(peer)
            sealed = other.key.seal_contribution(peer, own, self.public, binding)
            theirs = self.key.open_contribution(own, peer, other.public, binding, sealed)
        secret = self.key.exchange(other.public.mask)
        return pair_mask_key(secret, (own, self.public, mine), (peer, other.public, theirs), binding, length)


def test_the_circumstances_that_the_tests_change_are_all_there_are() -> None:
    assert set(CHANGES) == {field.name for field in fields(Binding)}


@both_kinds
def test_both_sides_of_a_pair_derive_the_same_key(hybrid: bool) -> None:
    a, b = Side("a", hybrid), Side("b", hybrid)
    key = a.pair(b)
    assert len(key) == 16
    assert b.pair(a) == key
    assert a.pair(b, length=32)[:16] == key, "HKDF output is a prefix"


@both_kinds
@pytest.mark.parametrize("field", CHANGES)
def test_a_pair_key_is_bound_to_every_circumstance(field: str, hybrid: bool) -> None:
    a, b = Side("a", hybrid), Side("b", hybrid)
    other = replace(BINDING, **{field: CHANGES[field]})
    assert b.pair(a, other) == a.pair(b, other) != a.pair(b)


@both_kinds
def test_a_pair_key_is_bound_to_the_names_and_keys_of_the_pair(hybrid: bool) -> None:
    a, b, c = Side("a", hybrid), Side("b", hybrid), Side("c", hybrid)
    assert len({a.pair(b), a.pair(b, peer="c"), a.pair(b, own="d"), a.pair(c), b.pair(c)}) == 5


@pytest.mark.parametrize("field", CHANGES)
def test_a_self_mask_key_is_bound_to_every_circumstance_and_to_its_owner(field: str) -> None:
    keys, other_keys = PublicKeys(b"m" * 32, b"t" * 32), PublicKeys(b"n" * 32, b"t" * 32)
    right = self_mask_key(bytes(32), "a", keys, BINDING, 16)
    others = [
        self_mask_key(bytes(32), "a", keys, replace(BINDING, **{field: CHANGES[field]}), 16),
        self_mask_key(bytes(32), "b", keys, BINDING, 16),
        self_mask_key(bytes(32), "a", other_keys, BINDING, 16),
        self_mask_key(b"\x01" + bytes(31), "a", keys, BINDING, 16),
    ]
    assert right == self_mask_key(bytes(32), "a", keys, BINDING, 16)
    assert len({right, *others}) == 5


def test_derivations_are_those_of_the_specification() -> None:
    """RFC 5869 and RFC 7748 by hand: secret, info and order, with nothing of the module in between."""
    seeds = [bytes([n]) * 32 for n in (1, 2)]
    private = [
        X25519PrivateKey.from_private_bytes(hkdf(seed, length_prefixed(b"secagg/2", b"mask key"), 32))
        for seed in seeds
    ]
    public = [key.public_key().public_bytes_raw() for key in private]
    a, b = (Side(name, False, seed) for name, seed in zip("ab", seeds, strict=True))
    assert [a.public.mask, b.public.mask] == public
    info = length_prefixed(
        b"secagg/2", b"pair mask", bytes(16), (1).to_bytes(8, "little"), b"a", b"b", *public, b"", b"",
        bytes(32), bytes(32), bytes(32),
    )  # fmt: skip
    assert b.pair(a) == hkdf(private[0].exchange(private[1].public_key()), info, 16)


def test_a_hybrid_pair_key_follows_from_both_contributions_and_the_x25519_secret() -> None:
    a, b = Side("a", True), Side("b", True)
    secret, parts = a.key.exchange(b.public.mask), [a.key.contribution("b"), b.key.contribution("a")]

    def derived(secret: bytes, first: bytes, second: bytes) -> bytes:
        return pair_mask_key(secret, ("a", a.public, first), ("b", b.public, second), BINDING, 16)

    right = a.pair(b)
    assert derived(secret, *parts) == right
    assert derived(bytes(32), *parts) != right, "X25519 alone broken: not enough to know both contributions"
    for guess in (b"", bytes(32)):
        assert derived(secret, parts[0], guess) != right, "ML-KEM is needed too"
        assert derived(secret, guess, parts[1]) != right
    assert derived(secret, *reversed(parts)) != right


def test_all_of_a_mask_key_follows_from_its_seed() -> None:
    """What shares give back has to unmask: the keys, and what was contributed to each peer."""
    for hybrid in (False, True):
        key = MaskKey.generate(hybrid)
        again = MaskKey(key.seed, hybrid)
        assert (again.public, again.kem_public) == (key.public, key.kem_public)
        assert again.contribution("c9") == key.contribution("c9") != key.contribution("c8")
        assert MaskKey.generate(hybrid).public != key.public


def test_a_contribution_opens_for_its_receiver_under_its_circumstances_only() -> None:
    a, b, c = Side("a", True), Side("b", True), Side("c", True)
    sealed = a.key.seal_contribution("a", "b", b.public, BINDING)
    assert len(sealed) == CONTRIBUTION_BYTES
    assert b.key.open_contribution("b", "a", a.public, BINDING, sealed) == a.key.contribution("b")
    attempts = [
        (c, "b", "a", a.public, BINDING, sealed),
        (b, "c", "a", a.public, BINDING, sealed),
        (b, "b", "c", a.public, BINDING, sealed),
        (b, "b", "a", c.public, BINDING, sealed),
        *((b, "b", "a", a.public, replace(BINDING, **{f: v}), sealed) for f, v in CHANGES.items()),
        *((b, "b", "a", a.public, BINDING, flipped(sealed, at)) for at in (0, KEM_CIPHERTEXT_BYTES, -1)),
    ]
    for side, own, peer, keys, binding, data in attempts:
        with pytest.raises(InvalidTag):
            side.key.open_contribution(own, peer, keys, binding, data)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@both_kinds
def test_a_box_opens_for_its_receiver_under_its_circumstances_only(hybrid: bool) -> None:
    """R8: another sender, receiver, round, roster, context, schema, or one flipped bit."""
    a, b, c = Side("a", hybrid), Side("b", hybrid), Side("c", hybrid)
    box, receipt = a.transport.seal("a", "b", b.public, BINDING, b"two shares")
    assert b.transport.open("b", "a", a.public, BINDING, box) == (b"two shares", receipt)
    assert len(receipt) == RECEIPT_BYTES
    ends = [0, -1, -17] + ([KEM_CIPHERTEXT_BYTES] if hybrid else [])
    attempts = [
        (c, "b", "a", a.public, BINDING, box),
        (b, "c", "a", a.public, BINDING, box),
        (b, "b", "c", a.public, BINDING, box),
        (b, "b", "a", c.public, BINDING, box),
        (a, "a", "b", b.public, BINDING, box),
        *((b, "b", "a", a.public, replace(BINDING, **{f: v}), box) for f, v in CHANGES.items()),
        *((b, "b", "a", a.public, BINDING, flipped(box, at)) for at in ends),
        (b, "b", "a", a.public, BINDING, box[:-1]),
    ]
    for side, own, peer, keys, binding, data in attempts:
        with pytest.raises(InvalidTag):
            side.transport.open(own, peer, keys, binding, data)


@both_kinds
def test_each_direction_of_a_pair_has_a_box_key_of_its_own(hybrid: bool, monkeypatch: Any) -> None:
    """The nonce is constant, which is right only as long as no key seals two boxes."""
    keys: list[bytes] = []

    class Recording:
        def __init__(self, key: bytes) -> None:
            keys.append(key)
            self._cipher = AESGCM(key)

        def encrypt(self, *args: Any) -> bytes:
            return self._cipher.encrypt(*args)

    monkeypatch.setattr("secagg.ephemeral.AESGCM", Recording)
    sides = [Side(name, hybrid) for name in "abc"]
    for binding in (BINDING, replace(BINDING, round=2)):
        for one in sides:
            for other in sides:
                if one is not other:
                    one.transport.seal(one.name, other.name, other.public, binding, b"x")
                    if hybrid:
                        one.key.seal_contribution(one.name, other.name, other.public, binding)
    assert len(keys) == 12 * (2 if hybrid else 1)
    assert len(set(keys)) == len(keys)


def test_mask_and_transport_keys_have_nothing_in_common() -> None:
    """A dropped client's mask key comes to light; its boxes must stay closed."""
    a, b = Side("a", False), Side("b", False)
    box, _ = a.transport.seal("a", "b", b.public, BINDING, b"two shares")
    thief = TransportKey(False)
    thief._private = b.key._private
    with pytest.raises(InvalidTag):
        thief.open("b", "a", a.public, BINDING, box)


@pytest.mark.parametrize("public", LOW_ORDER, ids=["zero", "one", "p - 1"])
def test_keys_that_give_predictable_secrets_are_refused(public: bytes) -> None:
    good = Side("a", False)
    with pytest.raises(IdentityError, match="low order"):
        good.key.exchange(public)
    for keys in (replace(good.public, mask=public), replace(good.public, transport=public)):
        with pytest.raises(IdentityError, match="low order"):
            keys.verify(False)
    with pytest.raises(IdentityError, match="low order"):
        good.transport.seal("a", "b", replace(good.public, transport=public), BINDING, b"")
    good.public.verify(False)


def test_keys_of_another_kind_of_round_are_refused() -> None:
    plain, hybrid = Side("a", False).public, Side("a", True).public
    plain.verify(False)
    hybrid.verify(True)
    with pytest.raises(IdentityError, match="ML-KEM keys of 1184 bytes, since the round is hybrid"):
        plain.verify(True)
    with pytest.raises(IdentityError, match="of 0 bytes, since the round is not hybrid"):
        hybrid.verify(False)
    for field in ("mask_kem", "transport_kem"):
        with pytest.raises(IdentityError, match="of 1184 bytes"):
            replace(hybrid, **{field: b""}).verify(True)
        # FIPS 203, 7.2: coefficients of 12 bits must be below 3329.
        with pytest.raises(IdentityError, match="not valid"):
            replace(hybrid, **{field: b"\xff" * 1184}).verify(True)


def test_encapsulation_keys_are_those_of_the_standard() -> None:
    """FIPS 203: keys of 1184 bytes that follow from a seed of 64, by another derivation of the same seed."""
    key = MaskKey(b"s" * 32, True)
    seed = hkdf(b"s" * 32, length_prefixed(b"secagg/2", b"mask kem"), 64)
    expected = MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
    assert key.kem_public == expected
    assert len(expected) == 1184


def test_info_is_unambiguous() -> None:
    """Ids that run into each other must not give the same key."""
    publics, others = (bytes(32), bytes(32)), (bytes(32), b"\x01" * 32)
    infos = {
        BINDING.info("pair mask", ("a", "b"), publics),
        BINDING.info("pair mask", ("a", "b"), others),
        BINDING.info("pair mask", ("ab", "c"), publics),
        BINDING.info("pair mask", ("a", "bc"), publics),
        BINDING.info("pair mask", ("b", "a"), publics),
        BINDING.info("share box", ("a", "b"), publics),
    }
    assert len(infos) == 6


def test_a_folded_or_truncated_seed_would_be_seen() -> None:
    """R1: masks from seeds of 16 bits repeat among a thousand pairs; ours do not."""
    rng = np.random.default_rng(0)
    folded = [int(rng.integers(0, 2**16)).to_bytes(2, "little") * 8 for _ in range(1_000)]
    assert len(set(folded)) < 1_000
    a = Side("a", False)
    peers = [PublicKeys(MaskKey.generate(False).public, bytes(32)) for _ in range(1_000)]
    keys = [
        pair_mask_key(a.key.exchange(p.mask), ("a", a.public, b""), ("b", p, b""), BINDING, 16) for p in peers
    ]
    assert len(set(keys)) == 1_000
    assert_uniform_bits(np.frombuffer(b"".join(keys), np.uint8))
    assert_rejects(assert_uniform_bits, np.frombuffer(b"".join(folded), np.uint8))


@pytest.mark.parametrize("which", ["mask", "transport"])
def test_a_key_has_one_form(which):
    """X25519 drops the top bit and reduces modulo 2^255 - 19: others' forms would pass for different keys."""
    good = TransportKey(False).keys[0], TransportKey(False).keys[0]
    keys = PublicKeys(*good)
    keys.verify_form(False)
    for form in (bytes([*good[0][:31], good[0][31] | 0x80]), (2**255 - 19 + 9).to_bytes(32, "little")):
        with pytest.raises(IdentityError, match=r"below 2\^255 - 19"):
            replace(keys, **{which: form}).verify_form(False)
