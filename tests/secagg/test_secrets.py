"""A walk through everything that holds a secret: no repr, pickle, copy, error or log shows one."""

from __future__ import annotations

import copy
import importlib
import logging
import pickle
import pkgutil
import traceback

import numpy as np
import pytest

import secagg
from secagg import Client, EncodingError, Identity, MessageError, Schema, SecAggError, counted, summed
from secagg.keys import Binding, RoundKey, Secret
from secagg.masks import Mask, Masks
from tests.secagg.parties import Parties, advertise, make_parties, ready

SCHEMA = Schema(x=summed(1.0, shape=(3,)), n=counted())
VALUES = {"x": [0.123456, -0.654321, 0.777777], "n": 424242}


def all_secrets(parties: Parties) -> list[bytes]:
    """Every long-lived and ephemeral private key and mask key that is alive."""
    found = [p._private.private_bytes_raw() for p in [parties.boss, *parties.people]]
    for client in parties.clients:
        state = client._round
        if state is not None and state.key is not None:
            found.append(state.key._private.private_bytes_raw())
        if state is not None and state.masks is not None:
            found += [mask.key for mask in state.masks._masks or ()]
    return found


def forms(secret: bytes) -> list[str]:
    """How a secret could read in a text."""
    return [
        secret.hex(),
        repr(secret),
        repr(list(secret)),
        repr(bytearray(secret)),
        str(int.from_bytes(secret, "big")),
    ]


def assert_shows_none(text: str, secrets: list[bytes]) -> None:
    for secret in secrets:
        for form in forms(secret):
            assert form not in text


@pytest.fixture(params=["idle", "advertised", "ready"])
def parties(request):
    made = make_parties(4, SCHEMA)
    if request.param == "advertised":
        advertise(made)
    if request.param == "ready":
        ready(made)
    return made


def test_no_repr_shows_a_secret(parties):
    secrets = all_secrets(parties)
    assert len(secrets) >= 5
    state = parties.clients[0]._round
    things = [parties, parties.boss, parties.clients, parties.server, state, vars(parties)]
    if state is not None:
        things += [state.key, state.masks, getattr(state.masks, "_masks", None), state.statement, state.offer]
    for thing in things:
        assert_shows_none(f"{thing!r} {thing!s} {thing}", secrets)


def test_the_check_itself_would_find_one():
    secret = bytes(range(32))
    for text in forms(secret):
        with pytest.raises(AssertionError):
            assert_shows_none(f"x {text} y", [secret])


def test_nothing_that_holds_a_secret_can_be_pickled_or_copied(parties):
    state = parties.clients[0]._round
    things: list[object] = [parties.boss, parties.clients[0], Mask(bytes(16), 1), Masks([]), RoundKey()]
    things += [] if state is None else [state]
    for thing in things:
        assert isinstance(thing, Secret)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="holds secrets"):
                pickle.dumps(thing, protocol)
        for duplicate in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="holds secrets"):
                duplicate(thing)
        assert not hasattr(thing, "__dict__") or isinstance(thing, Client)


def test_every_class_with_a_private_key_is_a_secret():
    """Whoever adds a class that holds key material must derive it from Secret."""
    classes = {
        cls
        for _, module in pkgutil_modules()
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__.startswith("secagg")
    }
    holders = {cls for cls in classes if {"_private", "key", "_masks", "_identity"} & set(fields_of(cls))}
    assert {cls.__name__ for cls in holders} >= {"Identity", "RoundKey", "Mask", "Masks", "_Round"}
    for cls in holders:
        assert issubclass(cls, Secret), cls


def pkgutil_modules():
    for found in pkgutil.iter_modules(secagg.__path__, "secagg."):
        yield found.name, importlib.import_module(found.name)


def fields_of(cls):
    return [name for base in cls.__mro__ for name in getattr(base, "__slots__", ())]


def test_a_secrets_public_face_is_its_name_and_fingerprint():
    identity = Identity.generate("clinic-0")
    assert repr(identity) == f"Identity('clinic-0', fingerprint={identity.fingerprint})"
    assert identity.public_key.hex() not in repr(identity)
    assert repr(RoundKey()) == "<RoundKey: secret>"
    assert repr(Mask(bytes(16), 1)) == "<Mask: secret>"


def test_errors_and_logs_show_neither_secrets_nor_values(parties, caplog):
    caplog.set_level(logging.DEBUG)
    secrets = all_secrets(parties)
    client = parties.clients[0]
    texts = []
    for call in (
        lambda: client.receive(b"x" * 500),
        lambda: client.submit({**VALUES, "x": [np.nan, 0.123456, 0]}),
        lambda: client.submit({**VALUES, "n": -424242}),
        lambda: client.submit({**VALUES, "n": 0.123456}),
        lambda: client.submit({**VALUES, "x": [0.123456]}),
        lambda: client.submit({**VALUES, "x": "0.123456"}),
        lambda: parties.server.receive(b"x" * 500),
        lambda: parties.server.result(),
    ):
        with pytest.raises(SecAggError) as info:
            call()
        texts.append(str(info.value) + repr(info.value))
        chain = info.value.__cause__
        texts.append("".join(traceback.format_exception_only(chain)) if chain else "")
    for text in [*texts, caplog.text]:
        assert_shows_none(text, secrets)
        for value in ("0.123456", "424242", "777777"):
            assert value not in text


def test_keys_are_gone_once_the_vector_is_made():
    parties = make_parties(3, SCHEMA)
    ready(parties)
    client = parties.clients[0]
    state = client._round
    masks = state.masks
    assert state.key is None, "the ephemeral key goes when the pair keys are made"
    client.submit(VALUES)
    assert client._round is None
    assert state.masks is None
    assert masks._masks is None


def test_a_message_holds_no_secret_and_no_plain_word():
    parties = make_parties(3, SCHEMA)
    advertise(parties)
    roster = parties.server.close_adverts()
    for client in parties.clients:
        client.receive(roster)
    encoding = parties.clients[0]._round.encoding
    plain = encoding.encode(VALUES, np.random.default_rng([0, 1]))
    secrets = all_secrets(parties)
    message = parties.clients[0].submit(VALUES)
    for secret in secrets:
        assert secret not in message
        assert secret not in roster
    for word in plain:
        assert int(word).to_bytes(8, "little") not in message[-8 * plain.size :]


def test_a_binding_holds_public_things_only():
    assert not issubclass(Binding, Secret)
    assert "session" in repr(Binding(bytes(16), 1, b"", b"", b""))


def test_the_two_refusals_of_a_message_and_of_a_value_are_told_apart():
    assert not issubclass(MessageError, EncodingError)
