"""A walk through everything that holds a secret: when it is forgotten, and that nothing ever shows it.

The first part follows each secret of a round and asks, after each stage, whether anything that the parties
still hold leads to it. The second part reads what could end up in a log: reprs, errors, pickles, messages.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import io
import logging
import pickle
import pkgutil
import traceback
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import secagg
from secagg import (
    Client,
    ClientPhase,
    EncodingError,
    Identity,
    MessageError,
    Policy,
    RoundAborted,
    SecAggError,
    ServerPhase,
    shamir,
)
from secagg.ephemeral import Binding, MaskKey, PublicKeys, TransportKey
from secagg.keys import Secret
from secagg.masks import Mask, Masks, MaskStream
from secagg.messages import Delivery, Unmask, open_sealed
from secagg.sharing import RoundSecrets
from tests.secagg.parties import Parties, make_parties
from tests.secagg.test_client import BOX, SCHEMA, altered, reach, reopened

VALUES = {"x": [0.123456, -0.654321, 0.777777], "n": 424242}
HYBRID = Policy(min_clients=3, allow_three=True, hybrid=True)
STAGES = [
    ClientPhase.IDLE,
    ClientPhase.ADVERTISED,
    ClientPhase.SHARED,
    ClientPhase.READY,
    ClientPhase.SUBMITTED,
    ClientPhase.SIGNED,
]
in_each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
both_kinds = pytest.mark.parametrize("hybrid", [False, True], ids=["x25519", "hybrid"])


def some_parties(hybrid: bool = False) -> Parties:
    return make_parties(4, SCHEMA, policy=HYBRID) if hybrid else make_parties(4, SCHEMA)


# Every secret of a round, by what it is.


def secrets_of(client: Client) -> dict[str, list[bytes]]:
    """What a client holds now."""
    found: dict[str, list[bytes]] = {}
    own = None if client._round is None else client._round.secrets
    if own is None:
        return found
    if own._seed is not None:
        found["self seed"] = [own._seed]
    if own._mask_key is not None:
        found["mask seed"] = [own._mask_key.seed]
        found["mask key"] = private_bytes(own._mask_key)
    if own._transport is not None:
        found["transport key"] = private_bytes(own._transport)
        found["transport secrets"] = list(own._transport._secrets.values())
    if own._pair_keys is not None:
        agreed = client.phase is ClientPhase.SHARED
        found["pair secrets" if agreed else "pair mask keys"] = list(own._pair_keys.values())
        found["contributions"] = list(own._own_contributions.values())
    if own._shares is not None:
        found["shares"] = [share.tobytes() for pair in own._shares.values() for share in pair]
    return {what: each for what, each in found.items() if each}


def private_bytes(key: MaskKey | TransportKey) -> list[bytes]:
    found = [key._private.private_bytes_raw()]
    return found if key._kem is None else [*found, key._kem.private_bytes_raw()]


def disguised(data: bytes) -> bytes:
    """So that what the test remembers is not itself what it looks for."""
    return bytes(byte ^ 0xA5 for byte in data)


class Recorder:
    """All secrets that were seen, disguised, by what they are."""

    def __init__(self) -> None:
        self.seen: dict[str, set[bytes]] = {}

    def look(self, client: Client) -> None:
        for what, each in secrets_of(client).items():
            self.seen.setdefault(what, set()).update(map(disguised, each))

    def found_in(self, blobs: list[bytes]) -> set[str]:
        """Which kinds of secrets stand in these bytes."""
        everything = b"\0".join(blobs)
        return {
            what
            for what, each in self.seen.items()
            if any(disguised(secret) in everything for secret in each)
        }


# Everything that an object leads to.

_NOT_OURS = (types.ModuleType, type, types.BuiltinFunctionType, types.CodeType)


def reachable(*roots: Any) -> Iterator[Any]:
    """Every object that these hold, directly or not; not through modules and classes."""
    waiting, seen = list(roots), set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, _NOT_OURS):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, types.FunctionType):  # not the module that it was written in
            waiting += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__]
        elif isinstance(thing, np.ndarray):
            waiting.append(thing.base)
        elif isinstance(thing, memoryview):
            waiting.append(thing.obj)
        else:
            waiting += gc.get_referents(thing)


def contents(things: Iterator[Any]) -> list[bytes]:
    """The bytes in bytes, arrays, views, buffers and private keys among these objects, and in all texts."""
    found = []
    for thing in things:
        if issubclass(type(thing), (bytes, bytearray)):
            found.append(bytes(thing))
        elif issubclass(type(thing), np.ndarray):
            found.append(np.ndarray.tobytes(thing))
        elif issubclass(type(thing), memoryview):
            with contextlib.suppress(ValueError):  # a view that was released leads nowhere
                found.append(thing.tobytes())
        elif issubclass(type(thing), io.BytesIO):
            with contextlib.suppress(ValueError):  # a closed one holds nothing
                found.append(thing.getvalue())
        elif issubclass(type(thing), str):
            found.append(thing.encode("utf-8", "surrogatepass"))
        elif hasattr(type(thing), "private_bytes_raw"):
            found.append(thing.private_bytes_raw())
    return found


def in_the_process() -> list[bytes]:
    """The bytes in everything that any container of this process refers to."""
    containers = gc.get_objects()
    referred: dict[int, Any] = {}
    for container in containers:
        for thing in gc.get_referents(container):
            referred[id(thing)] = thing
    return contents(iter([*containers, *referred.values()]))


HELD = {
    # Which secrets a client needs after each stage, and so may hold: the table of `secagg.sharing`.
    ClientPhase.ADVERTISED: {"self seed", "mask seed", "mask key", "transport key"},
    ClientPhase.SHARED: {"self seed", "transport key", "transport secrets", "pair secrets", "shares"},
    ClientPhase.READY: {"self seed", "pair mask keys", "shares"},
    ClientPhase.SUBMITTED: {"shares"},
    ClientPhase.SIGNED: {"shares"},
}
HELD_IN_HYBRID_ROUNDS = {
    **HELD,
    # A peer's sealed contribution comes with its box, so the key that opens it stays one stage longer.
    ClientPhase.SHARED: HELD[ClientPhase.SHARED] | {"mask seed", "mask key", "contributions"},
}


def steps(parties: Parties, round: int = 1) -> Iterator[ClientPhase]:
    """A round, stage by stage; yields the phase that the clients are in, IDLE at the end."""
    server, clients = parties.server, parties.clients
    messages = dict.fromkeys(parties.names(), server.open(round))
    while True:
        answers = [client.receive(messages[client.name]) for client in clients]
        yield clients[0].phase
        if clients[0].phase is ClientPhase.READY:
            answers = [client.submit(VALUES) for client in clients]
            yield clients[0].phase
        for answer in answers:
            assert answer is not None
            server.receive(answer)
        del answer, answers, messages
        if server.phase is ServerPhase.UNMASKING:
            return
        messages = server.advance()


@both_kinds
def test_each_secret_is_forgotten_as_soon_as_the_protocol_can_do_without(hybrid: bool) -> None:
    parties, recorder = some_parties(hybrid), Recorder()
    held = HELD_IN_HYBRID_ROUNDS if hybrid else HELD
    walked = []
    for phase in steps(parties):
        for client in parties.clients:
            recorder.look(client)
        gc.collect()
        walked.append(phase)
        for client in parties.clients:
            found = recorder.found_in(contents(reachable(client)))
            assert found == held.get(phase, set()), (phase, client)
    assert walked == [*STAGES[1:], ClientPhase.IDLE]
    assert recorder.seen.keys() == set().union(*held.values()), (
        "every kind was seen, so the walk looked for it"
    )
    parties.server.result()


def test_a_client_keeps_none_of_the_shares_that_it_dealt_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all the shares of its own secrets it would still hold the seeds that it has forgotten."""
    dealt = []
    split = shamir.split

    def recording(*args: Any) -> Any:
        shares = split(*args)
        dealt.append([disguised(row.astype("<u4").tobytes()) for row in shares.reshape(-1, shamir.LIMBS)])
        return shares

    monkeypatch.setattr("secagg.shamir.split", recording)
    parties = some_parties()
    reach(parties, ClientPhase.SHARED)
    gc.collect()
    everything = b"\0".join(contents(reachable(parties.clients[1])))
    kept = [place for place, share in enumerate(dealt[1]) if disguised(share) in everything]
    assert kept == [2, 3], "of 4 holders the second: its own two shares"


@both_kinds
def test_after_a_round_nothing_in_the_process_leads_to_a_secret_of_it(hybrid: bool) -> None:
    parties, recorder = some_parties(hybrid), Recorder()
    for _ in steps(parties):
        for client in parties.clients:
            recorder.look(client)
    result = parties.server.result()
    assert result.values["n"] == 4 * 424242
    gc.collect()
    assert recorder.found_in(in_the_process()) == set()
    marker = [disguised(next(iter(recorder.seen["self seed"])))]
    assert recorder.found_in(in_the_process()) == {"self seed"}, "the walk would have found it"
    del marker


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        (stage, how)
        for stage in STAGES[1:]
        for how in ("abort", "next offer", "given up")
        if (stage, how) != (ClientPhase.READY, "given up")  # nothing comes from the server then
    ],
    ids=lambda value: value.name if isinstance(value, ClientPhase) else value,
)
def test_a_round_that_ends_early_takes_its_secrets_with_it(stage: ClientPhase, how: str) -> None:
    parties, recorder = some_parties(), Recorder()
    messages = reach(parties, stage)
    client = parties.clients[0]
    recorder.look(client)
    assert recorder.seen.keys() == HELD[stage]
    parties.server.abort()
    if how == "abort":
        client.abort()
    elif how == "next offer":
        client.receive(parties.server.open(7))
    else:
        with pytest.raises(SecAggError):
            end_badly(client, messages["c0"])
        assert client.phase is ClientPhase.IDLE
    gc.collect()
    assert recorder.found_in(contents(reachable(client, parties.server))) == set()


LEFT_BEHIND = [(phase, 1) for phase in STAGES[1:]] + [(ClientPhase.SHARED, 2), (ClientPhase.SUBMITTED, 2)]
"""The phase in which a client's answers begin to be lost, and how many stages later it sees the others'."""


@pytest.mark.parametrize(("phase", "stages"), LEFT_BEHIND, ids=str)
def test_who_was_left_behind_forgets_when_it_sees_what_the_others_are_sent(
    phase: ClientPhase, stages: int
) -> None:
    """Its answer came too late or not at all; what the server sent to c1 says that the round goes on."""
    parties, recorder = make_parties(5, SCHEMA), Recorder()
    client, server = parties.clients[0], parties.server
    behind, messages = 0, dict.fromkeys(parties.names(), server.open(1))
    while behind < stages:
        answers = {}
        for each in parties.clients:
            if each is not client or not behind:
                answers[each.name] = each.receive(messages[each.name])
                if each.phase is ClientPhase.READY and (each is not client or phase is not ClientPhase.READY):
                    answers[each.name] = each.submit(VALUES)
        if behind or client.phase is phase:
            behind += 1
            answers.pop("c0", None)
        recorder.look(client)
        for answer in answers.values():
            assert answer is not None
            server.receive(answer)
        messages = server.advance()
    assert client.phase is phase
    assert recorder.seen.keys() >= HELD[phase]
    with pytest.raises(RoundAborted):
        client.receive(messages["c1"])
    assert client.phase is ClientPhase.IDLE
    del answers, messages, answer
    gc.collect()
    assert recorder.found_in(contents(reachable(client, server))) == set()


def test_the_server_forgets_what_shares_gave_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It puts self seeds and a dropped client's mask seed together; none of them stays."""
    parties, recorder = make_parties(5, SCHEMA), Recorder()
    for phase in steps_without(parties, "c4"):
        for client in parties.clients:
            recorder.look(client)
        if phase is ClientPhase.SIGNED:
            break
    shares = [share for client in parties.clients for share in secrets_of(client).get("shares", [])]
    assert shares
    del shares
    messages = parties.server.advance()
    for client in parties.clients[:4]:
        parties.server.receive(client.receive(messages[client.name]) or b"")
    del messages
    gc.collect()
    assert recorder.found_in(contents(reachable(parties.server))) == {"shares"}, "one a peer and holder"
    assert parties.server.result().values["n"] == 4 * 424242
    gc.collect()
    assert recorder.found_in(contents(reachable(parties.server, *parties.clients[:4]))) == set()
    assert recorder.found_in(in_the_process()) <= {"shares"}, "c4 waits for the survivors, and holds its own"


def steps_without(parties: Parties, gone: str) -> Iterator[ClientPhase]:
    """As `steps`, up to the signatures, without the vector of one client."""
    server = parties.server
    messages = dict.fromkeys(parties.names(), server.open(1))
    while True:
        for client in parties.clients:
            if client.name in messages:
                answer = client.receive(messages[client.name])
                if client.phase is ClientPhase.READY:
                    answer = client.submit(VALUES)
                if client.phase is not ClientPhase.SUBMITTED or client.name != gone:
                    server.receive(answer or b"")
        yield parties.clients[0].phase
        messages = server.advance()


# What could end up in a log.


def all_secrets(parties: Parties) -> list[bytes]:
    """Every long-lived and ephemeral secret that is alive."""
    found = [p._private.private_bytes_raw() for p in [parties.boss, *parties.people]]
    for client in parties.clients:
        for each in secrets_of(client).values():
            found += each
    return found


def forms(secret: bytes) -> list[str]:
    """How a secret could read in a text."""
    words = np.frombuffer(secret[: len(secret) // 4 * 4], "<u4")
    return [
        secret.hex(),
        repr(secret)[2:-1],
        repr(list(secret))[1:-1],
        repr(words.tolist())[1:-1],
        str(words)[1:-1],
        str(int.from_bytes(secret, "big")),
        str(int.from_bytes(secret, "little")),
    ]


def assert_shows_none(text: str, secrets: list[bytes]) -> None:
    for secret in secrets:
        for form in forms(secret):
            assert form not in text


def test_the_check_itself_would_find_one() -> None:
    secret = bytes(range(100, 136))
    for text in [*forms(secret), repr(bytearray(secret)), repr(list(secret))]:
        with pytest.raises(AssertionError):
            assert_shows_none(f"x {text} y", [secret])


@in_each_stage
@both_kinds
def test_no_repr_of_any_object_shows_a_secret(stage: ClientPhase, hybrid: bool) -> None:
    """All objects of the package that are alive, and all that the parties lead to."""
    parties = some_parties(hybrid)
    if stage is not ClientPhase.IDLE:
        reach(parties, stage)
    secrets = all_secrets(parties)
    assert len(secrets) >= 5
    ours = [thing for thing in gc.get_objects() if str(type(thing).__module__).startswith("secagg")]
    held = [
        thing
        for thing in reachable(parties)
        if str(type(thing).__module__).startswith(("secagg", "cryptography", "tests"))
    ]
    assert len(held) > 20
    text = "\n".join(f"{thing!r} {thing!s}" for thing in [*ours, *held, parties, vars(parties)])
    assert_shows_none(text, secrets)


SECRETS: list[Any] = [
    lambda: Identity.generate("c0"),
    lambda: make_parties(3, SCHEMA).clients[0],
    lambda: Mask(bytes(16), 1),
    lambda: Masks([]),
    lambda: MaskStream([]),
    lambda: MaskKey.generate(False),
    lambda: MaskKey.generate(True),
    lambda: TransportKey(True),
    lambda: RoundSecrets("c0", False),
    lambda: in_round()._round,
    lambda: in_round()._round.secrets,
    lambda: in_unmasking()._round.unmasking,
]


def in_round() -> Any:
    parties = some_parties()
    reach(parties, ClientPhase.READY)
    return parties.clients[0]


def in_unmasking() -> Any:
    parties = some_parties()
    reach(parties, ClientPhase.SIGNED)
    return parties.server


@pytest.mark.parametrize("make", SECRETS)
def test_nothing_that_holds_a_secret_can_be_pickled_or_copied(make: Any) -> None:
    thing = make()
    assert isinstance(thing, Secret)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="holds secrets"):
            pickle.dumps(thing, protocol)
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds secrets"):
            duplicate(thing)
    assert not hasattr(thing, "__dict__") or isinstance(thing, Client)


TELLING = {
    "_given",
    "_identity",
    "_kem",
    "_mask_key",
    "_masks",
    "_pair_keys",
    "_private",
    "_secrets",
    "_seed",
    "_shares",
    "_stream",
    "_streams",
    "_transport",
    "key",
    "secrets",
    "seed",
}
"""What attributes with key material are called."""


def test_every_class_with_key_material_is_a_secret() -> None:
    """Whoever adds a class that holds some must derive it from Secret."""
    classes = {
        cls
        for _, module in all_modules()
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__.startswith("secagg")
    }
    holders = {cls for cls in classes if TELLING & set(fields_of(cls))}
    names = {cls.__name__ for cls in holders if issubclass(cls, Secret)}
    assert names >= {"Identity", "Mask", "MaskKey", "Masks", "RoundSecrets", "TransportKey", "Unmasking"}
    # A message's fields are public; the server's round holds hashes of seeds.
    public = {cls.__name__ for cls in holders - {cls for cls in holders if issubclass(cls, Secret)}}
    assert public <= {"Shares"}


def all_modules() -> Iterator[tuple[str, Any]]:
    for found in pkgutil.walk_packages(secagg.__path__, "secagg."):
        yield found.name, importlib.import_module(found.name)


def fields_of(cls: type) -> list[str]:
    return [name for base in cls.__mro__ for name in getattr(base, "__slots__", ())]


def test_a_secrets_public_face_is_its_name_and_fingerprint() -> None:
    identity = Identity.generate("clinic-0")
    assert repr(identity) == f"Identity('clinic-0', fingerprint={identity.fingerprint})"
    assert identity.public_key.hex() not in repr(identity)
    for make in SECRETS[2:]:
        thing = make()
        assert repr(thing) == f"<{type(thing).__name__}: secret>"


@in_each_stage
def test_errors_and_logs_show_neither_secrets_nor_values(
    stage: ClientPhase, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every refusal that a stage knows, with the text of its whole traceback."""
    caplog.set_level(logging.DEBUG)
    parties = some_parties()
    messages = {} if stage is ClientPhase.IDLE else reach(parties, stage)
    secrets = all_secrets(parties)
    client, server = parties.clients[0], parties.server
    message = messages.get("c0", b"x" * 500)
    spoilt = bytearray(message)
    spoilt[-1] ^= 1
    calls: list[Any] = [
        lambda: client.receive(b"x" * 500),
        lambda: client.receive(bytes(spoilt)),
        lambda: client.submit({**VALUES, "x": [np.nan, 0.123456, 0]}),
        lambda: client.submit({**VALUES, "n": -424242}),
        lambda: client.submit({**VALUES, "n": 0.123456}),
        lambda: client.submit({**VALUES, "x": [0.123456]}),
        lambda: client.submit({**VALUES, "x": "0.123456"}),
        lambda: client.submit_parts({**VALUES, "x": [np.nan, 0.123456, 0]}),
        lambda: client.draw_graph(b"x" * 16),
        lambda: server.receive(b"x" * 500),
        lambda: server.receive(message),
        lambda: server.draw_graph(b"x" * 16),
        lambda: server.open(-1) if stage is ClientPhase.IDLE else server.open(9),
        lambda: server.result(),
        lambda: end_badly(client, message),
    ]
    texts = []
    for call in calls:
        with pytest.raises((SecAggError, ValueError)) as info:
            call()
        error: BaseException | None = info.value
        while error is not None:
            texts += [str(error), repr(error), "".join(traceback.format_exception(error))]
            error = error.__cause__ or error.__context__
    printed = capfd.readouterr()
    for text in [*texts, caplog.text, printed.out, printed.err]:
        assert_shows_none(text, secrets)
        lines = [line for line in text.splitlines() if "VALUES" not in line and "lambda" not in line]
        for value in ("0.123456", "424242", "777777"):
            assert value not in "\n".join(lines)
    assert caplog.records == []


def end_badly(client: Client, message: bytes) -> None:
    """Let the client give the round up, where the server has a word to say."""
    state: Any = client._round
    if state is not None and client.phase is not ClientPhase.READY:
        client._policy = Policy(min_clients=5)
        state.agreed = bytes(32)
        if client.phase is ClientPhase.SHARED:
            state.secrets._binding = Binding(bytes(16), 1, b"", b"", b"")
    client.receive(message)


def test_a_message_holds_no_secret_and_no_plain_word() -> None:
    """Neither do all messages of a round together, but for the shares that unmask the sum."""
    parties, recorder = some_parties(), Recorder()
    sent: list[bytes] = []
    record(parties.server, "open", sent)
    record(parties.server, "advance", sent)
    for client in parties.clients:
        record(client, "receive", sent)
        record(client, "submit", sent)
    for _ in steps(parties):
        for client in parties.clients:
            recorder.look(client)
    assert len(sent) == 1 + 4 * 5 + 4 * 4
    kinds = {data[4] for data in sent}
    assert kinds == set(range(10)), "messages of every kind"
    assert recorder.found_in([data for data in sent if data[4] != 9]) == set()
    assert recorder.found_in([data for data in sent if data[4] == 9]) == {"shares"}
    encoding = secagg.Encoding(SCHEMA, 4)
    plain = encoding.encode(VALUES, np.random.default_rng([0, 1]))
    vector = next(data for data in sent if data[4] == 5)
    for word in plain:
        assert int(word).to_bytes(8, "little") not in vector[-8 * plain.size :]


def record(machine: Any, name: str, sent: list[bytes]) -> None:
    method = getattr(machine, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        made = method(*args, **kwargs)
        if isinstance(made, dict):
            sent.extend(made.values())
        elif isinstance(made, bytes):
            sent.append(made)
        return made

    setattr(machine, name, recording)


def test_a_holder_gives_one_of_the_two_shares_of_each_peer() -> None:
    parties = some_parties()
    messages = reach(parties, ClientPhase.SIGNED)
    client: Any = parties.clients[0]
    held = [(a.tobytes(), b.tobytes()) for a, b in client._round.secrets._shares.values()]
    answer = client.receive(messages["c0"])
    tail = bytes(open_sealed(answer, (Unmask,), parties.roster.clients, 10**6).tail)
    assert [(a in tail, b in tail) for a, b in held] == [(True, False)] * 4


def test_a_binding_and_public_keys_hold_public_things_only() -> None:
    assert not issubclass(Binding, Secret)
    assert not issubclass(PublicKeys, Secret)
    assert "session" in repr(Binding(bytes(16), 1, b"", b"", b""))


def test_the_two_refusals_of_a_message_and_of_a_value_are_told_apart() -> None:
    assert not issubclass(MessageError, EncodingError)


def test_an_error_that_is_kept_leads_to_no_secret_of_the_round():
    """Its traceback holds frames, and those the objects that failed."""
    parties = make_parties(4, SCHEMA)
    messages = reach(parties, ClientPhase.SHARED)
    client, secrets = parties.clients[2], parties.clients[2]._round.secrets
    mine = bytearray(reopened(parties, messages["c2"], Delivery).tail)
    mine[BOX] ^= 1  # of three boxes the second
    known = [secrets._seed, *secrets._pair_keys.values(), secrets._shares["c2"].tobytes()]
    with pytest.raises(RoundAborted) as info:
        client.receive(altered(parties, messages["c2"], Delivery, mine))
    assert info.value.blame == ("c1",)
    frames = [frame for frame, _ in traceback.walk_tb(info.value.__traceback__)][1:]  # not this one
    found = contents(reachable(*(value for frame in frames for value in frame.f_locals.values())))
    assert len(found) > 20
    assert not [each for each in known for text in found if each in text]
