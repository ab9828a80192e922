"""R7: a vector that comes after its client was declared dropped, when its mask key is known already."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import EncodingError, MessageError
from secagg.layout import COUNT_WORD, ZERO_WORD
from secagg.sharing import MASK_SEED, SELF_SEED, RoundSecrets
from tests.secagg.parties import make_parties, ready, submit
from tests.secagg.threats.attacker import SCHEMA, THREE, Attacker, assert_is_sum, secret_values


def late(parties: Attacker, values) -> dict:
    """c0 is slow. The others agree that it dropped and give its mask key back; then its vector comes."""
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    others = parties.names[1:]
    parties.submit(values, others)
    for name in others:
        parties.ask(name, others)
    for name in others:
        parties.unmask(name, others)
    parties.submit(values, ["c0"])
    return parties.learn(["c0"])


def test_a_late_vector_is_read_where_pair_masks_are_all_that_hides_it(monkeypatch):
    double = RoundSecrets.masks

    def single(self):
        masks = double(self)
        masks._masks = masks._masks[1:]
        return masks

    monkeypatch.setattr(RoundSecrets, "masks", single)
    parties = Attacker(4, policy=THREE)
    values = secret_values(parties.names)
    assert_is_sum(late(parties, values), [values["c0"]])


def test_a_late_vector_stays_under_its_self_mask():
    parties = Attacker(4, policy=THREE)
    with pytest.raises(EncodingError, match="The zero lane of 1 clients is not zero: masks did not cancel"):
        late(parties, secret_values(parties.names))
    assert parties.secret("c0", MASK_SEED) is not None, "every pair mask was taken off"
    assert parties.secret("c0", SELF_SEED) is None
    words = parties.words(["c0"])
    assert words[ZERO_WORD] > 2**32, "uniform words are small with probability 2^-32"
    assert np.unique(words).size == words.size
    assert words[COUNT_WORD] > 2**32


def test_the_honest_server_refuses_a_late_vector():
    parties = make_parties(4, SCHEMA, policy=THREE)
    ready(parties)
    values = secret_values(parties.names())
    slow = parties.clients[0]
    vector = slow.submit(values["c0"])
    submit(parties, values)
    messages = parties.server.advance()
    assert "c0" not in messages
    with pytest.raises(MessageError, match="none of type Masked is expected while collecting signatures"):
        parties.server.receive(vector)
