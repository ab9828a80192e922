"""Ephemeral keys: what a client makes for one round, and what two clients derive from theirs.

    mask key        pair masks come from it. All of it follows from one 32-byte seed, which is what is shared
                    out: whoever puts the shares of a dropped client together can take its masks off.
    transport key   boxes (shares on their way to a holder) are sealed with it. It is never shared out, or a
                    dropped client's boxes could be opened and its holders' shares counted twice.

In a hybrid round each of the two is an X25519 key and an ML-KEM-768 key, and what a pair derives needs both:
who records a round now and breaks one of them later still learns nothing. An encapsulation has one direction
and a pair mask has two sides, so each side contributes 32 bytes that follow from its seed, sealed for the
other's mask key; a mask then comes from the X25519 secret and both contributions.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .errors import IdentityError
from .keys import KEY_BYTES, PROTOCOL, Secret, hkdf, length_prefixed

SEED_BYTES: Final = 32
KEM_KEY_BYTES: Final = 1184
KEM_CIPHERTEXT_BYTES: Final = 1088
_KEM_SEED_BYTES: Final = 64
TAG_BYTES: Final = 16
BOX_KEY_BYTES: Final = 32
RECEIPT_BYTES: Final = 16
CONTRIBUTION_BYTES: Final = KEM_CIPHERTEXT_BYTES + SEED_BYTES + TAG_BYTES
_FIELD: Final = 2**255 - 19
_NONCE: Final = bytes(12)
"""Each key of AES-GCM seals one message, so a nonce would carry nothing."""


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """A client's ephemeral public keys, as its advert states them.

    Attributes:
        mask: X25519, 32 bytes.
        transport: X25519, 32 bytes.
        mask_kem: ML-KEM-768 encapsulation key, 1184 bytes; empty unless the round is hybrid.
        transport_kem: The same for boxes.
    """

    mask: bytes
    transport: bytes
    mask_kem: bytes = b""
    transport_kem: bytes = b""

    def verify_form(self, hybrid: bool) -> None:
        """Raise IdentityError unless the keys are those of a round that is hybrid, or is not."""
        size = KEM_KEY_BYTES if hybrid else 0
        if {len(self.mask_kem), len(self.transport_kem)} != {size}:
            kind = "hybrid" if hybrid else "not hybrid"
            raise IdentityError(
                f"Expected ML-KEM keys of {size} bytes, since the round is {kind}, got others."
            )
        for public in (self.mask, self.transport):
            if int.from_bytes(public, "little") >= _FIELD:  # X25519 would take it for another key
                raise IdentityError("Expected an X25519 key below 2^255 - 19, got another form of one.")

    def verify(self, hybrid: bool) -> None:
        """Raise IdentityError unless each key is one that gives secrets nobody can predict."""
        self.verify_form(hybrid)
        for public in (self.mask, self.transport):
            _exchange(_PROBE, public)  # whether a secret is zero depends on the public key alone
        for public in (self.mask_kem, self.transport_kem):
            if hybrid:
                _kem_public(public)

    def parts(self) -> tuple[bytes, ...]:
        """All keys, to be told apart where one stands twice."""
        return tuple(key for key in (self.mask, self.transport, self.mask_kem, self.transport_kem) if key)


@dataclass(frozen=True)
class Binding:
    """What every key of a round is bound to: a key derived under one binding is useless under another.

    Attributes:
        session: 16 random bytes that the server drew for a run.
        round: Number of the round in the session.
        roster: Hash of the offer, of all signed adverts and of the beacon.
        context: Hash of the application bytes that all hold alike (the model).
        config: Digest of the round's schema.
    """

    session: bytes
    round: int
    roster: bytes
    context: bytes
    config: bytes

    def associated(self, sender: str, receiver: str) -> bytes:
        """What a box says beside its content: the round, from whom it is and for whom."""
        number = self.round.to_bytes(8, "little")
        return length_prefixed(self.session, number, sender.encode(), receiver.encode())

    def info(self, purpose: str, names: Sequence[str], publics: Sequence[bytes]) -> bytes:
        """HKDF's info: protocol, purpose, round, both parties in the order given, roster, context, config."""
        parties = length_prefixed(*(name.encode() for name in names), *publics)
        return b"".join((length_prefixed(PROTOCOL, purpose.encode()), self._first, parties, self._last))

    @cached_property
    def _first(self) -> bytes:
        return length_prefixed(self.session, self.round.to_bytes(8, "little"))

    @cached_property
    def _last(self) -> bytes:
        return length_prefixed(self.roster, self.context, self.config)


class MaskKey(Secret):
    """The key pair behind a client's pair masks in one round.

    Guarantees:
        - Both sides of a pair derive the same mask key, and under any other binding another one.
        - All of it follows from `seed`, so that shares of the seed give back every pair mask.
        - A peer's key that would give a predictable secret (low order) is refused.

    Args:
        seed: 32 bytes from the operating system's generator, or what shares gave back.
        hybrid: Whether the round is.
    """

    __slots__ = ("_kem", "_private", "kem_public", "public", "seed")

    def __init__(self, seed: bytes, hybrid: bool) -> None:
        self.seed = seed
        self._private = X25519PrivateKey.from_private_bytes(_derived(seed, "mask key", KEY_BYTES))
        self.public: bytes = self._private.public_key().public_bytes_raw()
        self._kem: MLKEM768PrivateKey | None = None
        self.kem_public = b""
        if hybrid:
            self._kem = MLKEM768PrivateKey.from_seed_bytes(_derived(seed, "mask kem", _KEM_SEED_BYTES))
            self.kem_public = self._kem.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, hybrid: bool) -> MaskKey:
        """A fresh one from the operating system's randomness."""
        return cls(secrets.token_bytes(SEED_BYTES), hybrid)

    def contribution(self, peer: str) -> bytes:
        """What this client adds to the secret of its pair with `peer` in a hybrid round."""
        return _derived(self.seed, "contribution", SEED_BYTES, peer)

    def seal_contribution(self, name: str, peer: str, peer_keys: PublicKeys, binding: Binding) -> bytes:
        """The contribution, for the holder of the peer's mask key alone; 1136 bytes."""
        secret, ciphertext = _kem_public(peer_keys.mask_kem).encapsulate()
        info = binding.info("contribution", (name, peer), (self.kem_public, peer_keys.mask_kem, ciphertext))
        key = AESGCM(hkdf(secret, info, BOX_KEY_BYTES))
        return ciphertext + key.encrypt(_NONCE, self.contribution(peer), binding.associated(name, peer))

    def open_contribution(
        self, name: str, peer: str, peer_keys: PublicKeys, binding: Binding, sealed: bytes
    ) -> bytes:
        """What `peer` contributes; raises InvalidTag if it was not sealed for this key and this pair."""
        assert self._kem is not None  # noqa: S101  # our invariant: asked for in hybrid rounds only
        ciphertext, box = sealed[:KEM_CIPHERTEXT_BYTES], sealed[KEM_CIPHERTEXT_BYTES:]
        secret = self._kem.decapsulate(ciphertext)
        info = binding.info("contribution", (peer, name), (peer_keys.mask_kem, self.kem_public, ciphertext))
        key = AESGCM(hkdf(secret, info, BOX_KEY_BYTES))
        return key.decrypt(_NONCE, box, binding.associated(peer, name))

    def exchange(self, peer_public: bytes) -> bytes:
        """The X25519 secret with a peer; raises IdentityError where it would be predictable."""
        return _exchange(self._private, peer_public)


def pair_mask_key(
    secret: bytes,
    mine: tuple[str, PublicKeys, bytes],
    peers: tuple[str, PublicKeys, bytes],
    binding: Binding,
    length: int,
) -> bytes:
    """Key of the mask of a pair, the same whoever of the two (or of those who put shares together) asks.

    Args:
        secret: The pair's X25519 secret.
        mine: Id, public keys and contribution (empty unless hybrid) of one side.
        peers: Those of the other.
        binding: The round.
        length: Bytes wanted.

    Returns:
        The key, secret.
    """
    # Sorted by id, so that both sides derive the same.
    (first, first_keys, first_part), (second, second_keys, second_part) = sorted(
        (mine, peers), key=lambda side: side[0]
    )
    publics = (first_keys.mask, second_keys.mask, first_keys.mask_kem, second_keys.mask_kem)
    info = binding.info("pair mask", (first, second), publics)
    return hkdf(secret + first_part + second_part, info, length)


def self_mask_key(seed: bytes, name: str, keys: PublicKeys, binding: Binding, length: int) -> bytes:
    """Key of the mask that a client puts on alone, which comes off by shares of `seed` if it survives."""
    return hkdf(seed, binding.info("self mask", (name,), (keys.mask,)), length)


class TransportKey(Secret):
    """The key pair that seals and opens boxes in one round; never shared out.

    Guarantees:
        - A box opens for the one receiver, from the one sender, under the one binding that it was sealed
          under; each key of AES-GCM seals one box.
    """

    __slots__ = ("_kem", "_private", "_secrets", "keys")

    def __init__(self, hybrid: bool) -> None:
        self._private = X25519PrivateKey.generate()
        self._kem = MLKEM768PrivateKey.generate() if hybrid else None
        kem_public = b"" if self._kem is None else self._kem.public_key().public_bytes_raw()
        self.keys: tuple[bytes, bytes] = (self._private.public_key().public_bytes_raw(), kem_public)
        self._secrets: dict[str, bytes] = {}

    def seal(
        self, name: str, peer: str, peer_keys: PublicKeys, binding: Binding, plain: bytes
    ) -> tuple[bytes, bytes]:
        """A box for `peer`, with its ML-KEM ciphertext before it in a hybrid round; and its receipt.

        The receipt is 16 bytes that nobody but the two can know, and the receiver only once it has the box.
        """
        shared = self._secrets[peer] = _exchange(self._private, peer_keys.transport)
        secret, ciphertext = b"", b""
        if self._kem is not None:
            secret, ciphertext = _kem_public(peer_keys.transport_kem).encapsulate()
        publics = (*self.keys, peer_keys.transport, peer_keys.transport_kem, ciphertext)
        info = binding.info("share box", (name, peer), publics)
        key, receipt = _box_key(shared + secret, info)
        return ciphertext + key.encrypt(_NONCE, plain, binding.associated(name, peer)), receipt

    def open(
        self, name: str, peer: str, peer_keys: PublicKeys, binding: Binding, box: bytes
    ) -> tuple[bytes, bytes]:
        """What `peer` sealed for this client, and the receipt; raises InvalidTag for anything else."""
        shared = self._secrets.get(peer) or _exchange(self._private, peer_keys.transport)
        secret, ciphertext = b"", b""
        if self._kem is not None:
            ciphertext, box = box[:KEM_CIPHERTEXT_BYTES], box[KEM_CIPHERTEXT_BYTES:]
            try:
                secret = self._kem.decapsulate(ciphertext)
            except ValueError:
                raise InvalidTag from None
        publics = (peer_keys.transport, peer_keys.transport_kem, *self.keys, ciphertext)
        info = binding.info("share box", (peer, name), publics)
        key, receipt = _box_key(shared + secret, info)
        return key.decrypt(_NONCE, box, binding.associated(peer, name)), receipt


def _box_key(secret: bytes, info: bytes) -> tuple[AESGCM, bytes]:
    """Key and receipt of a box."""
    derived = hkdf(secret, info, BOX_KEY_BYTES + RECEIPT_BYTES)
    return AESGCM(derived[:BOX_KEY_BYTES]), derived[BOX_KEY_BYTES:]


_PROBE: Final = X25519PrivateKey.generate()
"""A key that is used for nothing but to see whether public keys have low order."""


def _derived(seed: bytes, purpose: str, length: int, *more: str) -> bytes:
    parts = (text.encode() for text in (purpose, *more))
    return hkdf(seed, length_prefixed(PROTOCOL, *parts), length)


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    """X25519 (RFC 7748); raises IdentityError where the secret would be all zeros."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise IdentityError("The peer's ephemeral key has low order and gives no secret.") from None


def _kem_public(public: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(public)
    except ValueError:
        raise IdentityError(
            f"Expected an ML-KEM-768 key of {KEM_KEY_BYTES} bytes since the round is hybrid, got none or one "
            "that is not valid."
        ) from None
