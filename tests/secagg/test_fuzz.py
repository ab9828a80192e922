"""Fuzzing, in short: hostile bytes raise what is documented, change nothing and take nothing."""

from __future__ import annotations

import pytest

from secagg import Client, ClientPhase, Roster, Schema, SchemaError
from secagg.messages import KINDS
from tests.secagg import fuzzing
from tests.secagg.fuzzing import Found, fuzz


def assert_covered(report: fuzzing.Report, at_least: int) -> None:
    """Every kind gets past the signature check, every target is met, and what comes out is of every sort."""
    assert set(report.kinds) == {kind.__name__ for kind in KINDS}
    assert min(report.kinds.values()) >= at_least
    assert len(report.targets) == 11
    outcomes = {
        "accepted",
        "MessageError",
        "SchemaError",
        "RoundAborted",
        "IdentityError",
        "ValueError",
        "TypeError",
    }
    assert outcomes <= set(report.outcomes)
    assert sum(report.outcomes.values()) == report.inputs
    assert report.most_bytes < 2**24


def test_a_few_thousand_hostile_inputs_raise_only_what_is_documented():
    assert_covered(fuzz(5_000, seed=1), 5)


@pytest.mark.slow
def test_twenty_thousand_hostile_inputs_raise_only_what_is_documented():
    assert_covered(fuzz(20_000, seed=2), 50)


def test_an_error_that_is_not_documented_is_found(monkeypatch):
    """Power: a decoder that lets one error of its libraries through."""
    strict = Schema.from_bytes.__func__

    def careless(cls, data):
        try:
            return strict(cls, data)
        except SchemaError as error:
            raise (KeyError() if len(data) % 7 == 0 else error) from None

    monkeypatch.setattr(Schema, "from_bytes", classmethod(careless))
    with pytest.raises(Found, match="raised KeyError at"):
        fuzz(3_000, seed=3)


def test_a_refused_message_that_changes_a_machine_is_found(monkeypatch):
    accept = Client._accept_delivery

    def early(self, state, message, boxes):
        self._phase = ClientPhase.READY
        accept(self, state, message, boxes)

    monkeypatch.setattr(Client, "_accept_delivery", early)
    with pytest.raises(Found, match="a refused message changed its state"):
        fuzz(3_000, seed=4)


def test_an_input_that_takes_memory_is_found(monkeypatch):
    monkeypatch.setattr(fuzzing, "MEASURED", 0.5)
    read = Roster.from_json.__func__

    def greedy(cls, text):
        bytes(2**25)
        return read(cls, text)

    monkeypatch.setattr(Roster, "from_json", classmethod(greedy))
    with pytest.raises(Found, match=r"Roster.from_json took \d+ s, 3\d MiB"):
        fuzz(2_000, seed=5)
