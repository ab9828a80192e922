"""R4: a server that gives one client a model from which it learns, and the others one that is dead."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from secagg import Client, EncodingError, RoundAborted
from secagg import client as client_module
from secagg.ephemeral import Binding, TransportKey
from tests.secagg.threats.attacker import Attacker, assert_is_sum, secret_values

LIVE, DEAD = struct.pack("<d", 1.0), struct.pack("<d", -1e9)


def gradient(model: bytes, data: list[float]) -> list[float]:
    """Of a layer of rectified linear units: nothing where the bias keeps all of them off."""
    (bias,) = struct.unpack("<d", model)
    return [value if value + bias > 0 else 0.0 for value in data]


def unbound(binding: Binding) -> Binding:
    return replace(binding, context=b"")


class Unbound(Client):
    """Derives its keys without the hash of the model."""

    def _binding(self, state):
        return unbound(super()._binding(state))


class AlsoUnbound(Attacker):
    def binding(self, seen):
        return unbound(super().binding(seen))


def two_models(parties: Attacker, data) -> tuple[dict, dict]:
    """An honest-looking round in which only c0 has something to say; the sum is its own values."""
    offer = parties.offer()
    for name in parties.names:
        parties.advertise(offer, [name], context=LIVE if name == "c0" else DEAD)
    parties.share()
    parties.deliver()
    sent = {
        name: {"x": gradient(LIVE if name == "c0" else DEAD, each["x"]), "n": each["n"]}
        for name, each in data.items()
    }
    parties.submit(sent)
    for name in parties.names:
        parties.ask(name, parties.names)
    for name in parties.names:
        parties.unmask(name, parties.names)
    return parties.learn(parties.names), sent


def data_of(parties):
    data = secret_values(parties.names)
    for each in data.values():
        each["x"][1] = 0.5
    return data


def test_a_dead_model_for_the_others_reads_one_client_where_nobody_compares(monkeypatch):
    monkeypatch.setattr(client_module, "verify_alike", lambda *_: None)
    parties = AlsoUnbound(4, client=Unbound)
    data = data_of(parties)
    found, sent = two_models(parties, data)
    assert sent["c1"]["x"] == [0.0, 0.0]
    quantum = parties.schema["x"].quantum
    assert abs(found["x"] - data["c0"]["x"]).max() <= 4 * quantum * (1 + 1e-9)


def test_boxes_do_not_open_between_clients_with_different_models(monkeypatch):
    """The second line: even where nobody compares, keys are derived from the model's hash."""
    monkeypatch.setattr(client_module, "verify_alike", lambda *_: None)
    parties = Attacker(4)
    with pytest.raises(RoundAborted, match=r"the shares of \['c1', 'c2', 'c3'\] for 'c0' do not open"):
        two_models(parties, data_of(parties))


def test_masks_do_not_cancel_between_clients_with_different_models(monkeypatch):
    """The third: where boxes open too, the zero lane says that nothing can be read."""
    monkeypatch.setattr(client_module, "verify_alike", lambda *_: None)
    for call in ("seal", "open"):
        bound = getattr(TransportKey, call)
        monkeypatch.setattr(
            TransportKey,
            call,
            lambda key, name, peer, keys, binding, data, bound=bound: bound(
                key, name, peer, keys, unbound(binding), data
            ),
        )
    parties = Attacker(4)
    with pytest.raises(EncodingError, match="The zero lane of 4 clients is not zero: masks did not cancel"):
        two_models(parties, data_of(parties))


def test_a_client_refuses_a_roster_of_others_with_another_model():
    parties = Attacker(4)
    message = r"clients differ where all must be alike \(the context: \['c1', 'c2', 'c3'\]\)"
    with pytest.raises(RoundAborted, match=message) as info:
        two_models(parties, data_of(parties))
    assert info.value.blame == ("c1", "c2", "c3")


def test_one_model_for_all_goes_through():
    parties = Attacker(4)
    values = secret_values(parties.names)
    parties.advertise(parties.offer(), context=LIVE)
    parties.share()
    parties.deliver()
    parties.submit(values)
    for name in parties.names:
        parties.ask(name, parties.names)
    for name in parties.names:
        parties.unmask(name, parties.names)
    assert_is_sum(parties.learn(parties.names), values.values())
