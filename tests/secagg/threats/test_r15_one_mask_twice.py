"""R15: two vectors under one mask differ by what they hide."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import Client, ClientPhase, Encoding, MemoryRegister, PhaseError, RoundReused
from secagg.masks import Mask, Masks
from secagg.sharing import RoundSecrets
from tests.secagg.threats.attacker import SCHEMA, Attacker, assert_is_sum, secret_values


class Repeating(Client):
    """Masks as often as it is asked."""

    def _take_masks(self, state):
        masks = super()._take_masks(state)
        self._phase = ClientPhase.READY
        return masks


def reusable(monkeypatch):
    made = RoundSecrets.masks

    def again(self):
        pairs, seed = self._pair_keys, self._seed
        found = made(self)
        self._pair_keys, self._seed = pairs, seed
        return found

    monkeypatch.setattr(RoundSecrets, "masks", again)


NOTHING = {"x": [0.0, 0.0], "n": 0}


def two_vectors(parties: Attacker, values) -> dict:
    """c0 is asked again, say since its message got lost; meanwhile it holds nothing any more."""
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    for each in (values["c0"], NOTHING):
        parties.take_vector(parties.clients["c0"].submit(each))
    one, two = (np.frombuffer(opened.tail, "<u8") for opened in parties.now.vectors["c0"])
    encoding = Encoding(SCHEMA, 4)
    known = encoding.encode(NOTHING, np.random.default_rng(0))
    return encoding.decode(one - two + known, 1).values


def test_two_vectors_under_one_mask_give_the_difference(monkeypatch):
    reusable(monkeypatch)
    parties = Attacker(4, client=Repeating)
    values = secret_values(parties.names)
    assert_is_sum(two_vectors(parties, values), [values["c0"]])


def test_a_second_vector_is_refused():
    parties = Attacker(4)
    with pytest.raises(RoundReused, match=r"^Round 1 was already submitted; wait for the next offer\.$"):
        two_vectors(parties, secret_values(parties.names))


def test_a_vector_in_parts_uses_the_mask_up_and_so_does_one_that_stops_half_way():
    for stop_early in (True, False):
        parties = Attacker(4)
        values = secret_values(parties.names)["c0"]
        parties.advertise(parties.offer())
        parties.share()
        parties.deliver()
        client = parties.clients["c0"]
        parts = client.submit_parts(values, part_words=2)
        assert next(parts)
        if stop_early:
            parts.close()
        for again in (client.submit, client.submit_parts):
            with pytest.raises(RoundReused, match="Round 1 was already submitted"):
                again(values)
        if stop_early:
            assert client.phase is ClientPhase.IDLE


def test_parts_of_a_round_that_is_over_are_masked_no_more():
    parties = Attacker(4)
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    client = parties.clients["c0"]
    parts = client.submit_parts(secret_values(parties.names)["c0"], part_words=2)
    assert next(parts)
    client.receive(parties.offer(2))
    with pytest.raises(PhaseError, match="Expected round 1 to send a part of, it is over"):
        next(parts)
    assert client.phase is ClientPhase.ADVERTISED, "and the new round is unharmed"


def test_masks_are_applied_once_whoever_holds_them():
    masks = Masks([Mask(bytes(16), 1)])
    first, second = np.zeros(4, np.uint64), np.zeros(4, np.uint64)
    masks.apply(first)
    for use in (lambda: masks.apply(second), masks.stream):
        with pytest.raises(RoundReused, match="already used for one vector; a second would reveal both"):
            use()
    assert first.any()
    assert not second.any()


def test_what_a_client_prepared_is_masked_once():
    parties = Attacker(4)
    values = secret_values(parties.names)["c0"]
    parties.advertise(parties.offer())
    client = parties.clients["c0"]
    client.prepare(values)
    parties.share()
    parties.deliver()
    assert client.submit()
    for call in (client.submit, lambda: client.submit(values)):
        with pytest.raises(RoundReused, match="Round 1 was already submitted"):
            call()
    with pytest.raises(PhaseError, match="Expected a round under way to prepare, this client is submitted"):
        client.prepare(values)
    assert isinstance(client._register, MemoryRegister)
