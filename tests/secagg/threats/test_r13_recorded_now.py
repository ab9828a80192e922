"""R13: a round that is recorded today, by somebody who will break X25519.

The break is played by handing over every X25519 private key of the round.
"""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag

from secagg import Encoding, EncodingError, Policy, PolicyError, shamir
from secagg.ephemeral import KEM_CIPHERTEXT_BYTES, MaskKey, TransportKey, pair_mask_key
from secagg.masks import Mask, add_masks
from secagg.sharing import CONTRIBUTION_BYTES, SELF_SEED
from tests.secagg.threats.attacker import Attacker, assert_is_sum, secret_values


class Recorder(Attacker):
    """Sees the messages of a round that everybody runs as they should, and later all X25519 keys."""

    def record(self, values, hybrid: bool) -> None:
        self.advertise(self.offer(hybrid=hybrid))
        every = {name: client._round.secrets for name, client in self.clients.items()}
        self.mask = {name: secrets._mask_key._private for name, secrets in every.items()}
        self.transport = {name: secrets._transport._private for name, secrets in every.items()}
        self.share()
        self.deliver()
        self.submit(values)

    def broken_transport(self, name: str) -> TransportKey:
        """A transport key of which only the X25519 half is known."""
        key = TransportKey(False)
        key._private = self.transport[name]
        keys = self.now.publics[name]
        key.keys = (keys.transport, keys.transport_kem)
        return key

    def open_all(self, victim: str) -> int:
        """The victim's boxes, with the X25519 half of their keys; returns how many opened."""
        opened, binding, publics = 0, self.binding(self.now), self.now.publics
        for name in self.names:
            if name == victim:
                continue
            box = self.box(victim, name)
            if self.now.offer.hybrid:
                box = box[CONTRIBUTION_BYTES + KEM_CIPHERTEXT_BYTES :]
            try:
                key = self.broken_transport(name)
                plain, _ = key.open(name, victim, publics[victim], binding, box)
            except InvalidTag:
                continue
            self.take_shares(name, victim, np.frombuffer(plain, "<u4").reshape(2, shamir.LIMBS))
            opened += 1
        return opened

    def without_pair_masks(self, victim: str, which: list[str]) -> np.ndarray:
        """The victim's words less the self mask, if known, and the pair masks as X25519 alone gives them."""
        self.now.delivered[victim] = (victim,)
        words, publics = self.words([victim]), self.now.publics
        for peer in which:
            shared = self.mask[victim].exchange(self.mask[peer].public_key())
            sides = (victim, publics[victim], b""), (peer, publics[peer], b"")
            key = pair_mask_key(shared, *sides, self.binding(self.now), 16)
            add_masks(words, [Mask(key, -1 if victim < peer else 1)])
        return words


def decoded(parties: Recorder, words) -> dict:
    return Encoding(parties.schema, len(parties.names)).decode(words, 1).values


def test_a_recorded_round_is_read_by_whoever_breaks_x25519():
    parties = Recorder(4)
    values = secret_values(parties.names)
    parties.record(values, hybrid=False)
    assert parties.open_all("c0") == 3
    assert_is_sum(decoded(parties, parties.without_pair_masks("c0", parties.names[1:])), [values["c0"]])


def test_a_recorded_hybrid_round_is_not():
    parties = Recorder(4)
    parties.record(secret_values(parties.names), hybrid=True)
    assert parties.open_all("c0") == 0
    assert parties.secret("c0", SELF_SEED) is None
    words = parties.without_pair_masks("c0", parties.names[1:])
    with pytest.raises(EncodingError, match="The zero lane of 1 clients is not zero"):
        decoded(parties, words)


def test_pair_masks_of_a_hybrid_round_hold_without_the_self_mask_too():
    """Each half by itself: even with the self-mask seed given away, X25519 does not give the pair masks."""
    for hybrid in (False, True):
        parties = Recorder(4)
        values = secret_values(parties.names)
        parties.advertise(parties.offer(hybrid=hybrid))
        secrets = {name: client._round.secrets for name, client in parties.clients.items()}
        parties.mask = {name: each._mask_key._private for name, each in secrets.items()}
        parties.now.seeds["c0", SELF_SEED] = secrets["c0"]._seed
        parties.share()
        parties.deliver()
        parties.submit(values)
        words = parties.without_pair_masks("c0", parties.names[1:])
        if hybrid:
            with pytest.raises(EncodingError, match="The zero lane of 1 clients is not zero"):
                decoded(parties, words)
        else:
            assert_is_sum(decoded(parties, words), [values["c0"]])


def test_a_client_that_insists_on_hybrid_keys_refuses_an_offer_without():
    parties = Attacker(4, policy=Policy(min_clients=4, colluders=0, hybrid=True))
    with pytest.raises(PolicyError, match="hybrid=False, X25519 with ML-KEM-768 wanted"):
        parties.advertise(parties.offer())
    parties.advertise(parties.offer(hybrid=True))
    keys = parties.now.publics["c0"]
    assert isinstance(parties.clients["c0"]._round.secrets._mask_key, MaskKey)
    assert len(keys.mask_kem) == len(keys.transport_kem) == 1184
