"""Messages that a signed but hostile party could send: refused with an error of ours, and nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import secagg
from privopt.checkpoint import dump_state, load_state
from privopt.federation.client import Client
from privopt.federation.federation import Federation
from privopt.federation.messages import Begin, Clear, Masking, Ready, Release, Stopped, sealed, unverified
from privopt.federation.server import Server
from tests.privopt.federated import STAGES, federation, last_sent, quadratics

ALLOWED = (ValueError, secagg.SecAggError)


def client_state(client: Client) -> tuple[bytes, bytes]:
    """What must not change: all that a later round depends on, in memory and on disk."""
    kept = {
        "optimizer": client.optimizer.get_state(),
        "base": client._base,
        "pending": client._pending,
        "sessions": client._sessions,
        "round": client._round,
        "advert stands": client._secure is not None,
    }
    register = client.home.folder / "register"
    return dump_state(kept), (client.home.folder / "state-test.safetensors").read_bytes() + (
        register.read_bytes() if register.exists() else b""
    )


def server_state(server: Server) -> Any:
    state = server.get_state()
    missing = server._secure.missing if server._secure is not None else ()
    return dump_state(state), repr(server._report), missing, server.missing, sorted(server._clear)


def tree(value: Any) -> bytes:
    header = json.dumps({"format": "privopt-state-1", "tree": value})
    return safetensors.numpy.save({}, metadata={"privopt": header})


NOT_A_NUMBER = float("nan")
BAD_BEGINS: dict[str, Callable[[Begin], dict[str, Any]]] = {
    "no weights": lambda b: {"weights": dump_state({"x": 1})},
    "weights that are no mapping": lambda b: {"weights": tree([1])},
    "weights that are a number": lambda b: {"weights": tree({"weights": 5})},
    "weights of another model": lambda b: {"weights": _other_weights()},
    "nested deep": lambda b: {"weights": tree(_nested(400))},
    "aux that is a number": lambda b: {"aux": tree(5)},
    "aux of no kind": lambda b: {"aux": dump_state({"scaffold": ["nothing", {}]})},
    "aux of other fields": lambda b: {"aux": dump_state({"scaffold": ["scaffold-state", {"x": 1}]})},
    "aux that is no array": lambda b: {"aux": dump_state({"scaffold": ["scaffold-state", {"control": "x"}]})},
    "aux of another module": lambda b: {"aux": dump_state({"other": load_state(b.aux)["scaffold"]})},
    "no offer": lambda b: {"offer": None},
    "a damaged offer": lambda b: {"offer": bytes(b.offer or b"")[:-1]},
    "an empty offer": lambda b: {"offer": b""},
    "the offer of another round": lambda b: {"round": b.round + 1},
    "another session": lambda b: {"session": bytes(16)},
    "another run": lambda b: {"run": "other"},
    "an old round": lambda b: {"round": 1, "session": bytes(16)},
}


def _nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def _other_weights() -> bytes:
    problem = next(iter(quadratics(1, size=3).values()))
    return dump_state({"weights": problem.weights})


@pytest.mark.parametrize("what", BAD_BEGINS)
def test_a_bad_first_message_changes_nothing_at_the_client(tmp_path: Path, what: str) -> None:
    found = federation(tmp_path)
    list(found.run(2))
    client, key = found.clients["c0"], found.server._identity
    begin = found.server.begin()
    opened = unverified(begin)
    assert isinstance(opened, Begin)
    before = client_state(client)
    with pytest.raises(ALLOWED):
        client.handle(sealed(replace(opened, **BAD_BEGINS[what](opened)), key))
    assert client_state(client) == before
    answer = client.handle(begin)
    assert isinstance(unverified(answer or b""), Ready), "the right one is still answered"


def test_a_bad_first_message_leaves_an_advert_standing(tmp_path: Path) -> None:
    found = federation(tmp_path)
    begin = found.server.begin()
    found._ask(found.clients, found.server.opening, {})
    client = found.clients["c0"]
    opened = replace(unverified(begin), session=bytes(16), round=1)
    with pytest.raises(ALLOWED):
        client.handle(sealed(opened, found.server._identity))
    roster = found.server.advance()["c0"]
    assert isinstance(unverified(client.handle(roster) or b""), Masking)
    assert last_sent(client) == "shares"


def test_a_model_that_has_diverged_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    found = federation(tmp_path)
    found.server.weights.coefs["w"][0] = np.inf
    answer = unverified(found.clients["c0"].handle(found.server.begin()) or b"")
    assert isinstance(answer, Stopped)
    assert answer.reason == "refused"


def test_an_offer_that_no_lane_can_hold_is_refused_before_training(tmp_path: Path) -> None:
    found = federation(tmp_path, weighting="samples", most_weight=2**40, masks=False)
    client = found.clients["c0"]
    schema = client.schema
    identity = found.server._identity
    secure = secagg.Client(
        client.home.identity(),
        client._roster,
        schema,
        register=secagg.MemoryRegister(),
        policy=secagg.Policy(),
    )
    from secagg.messages import Offer, seal

    offer = Offer(
        session=bytes(16),
        round=1,
        sender="",
        schema=schema.to_bytes(),
        capacity=2**16,
        min_clients=5,
        threshold_fraction=1.0,
        degree=0,
        cipher="AES-128",
        hybrid=False,
    )
    with pytest.raises(secagg.SchemaError, match="bits a lane"):
        secure.verify(seal(identity, offer)[0])


# ---- a hostile client ------------------------------------------------------------------------------------


def opened_round(folder: Path, **options: Any) -> tuple[Federation, dict[str, bytes]]:
    found = federation(folder, **options)
    begin = found.server.begin()
    answers = {name: client.handle(begin) for name, client in found.clients.items()}
    return found, {name: answer for name, answer in answers.items() if answer is not None}


def test_a_client_that_passes_on_anothers_advert_changes_nothing(tmp_path: Path) -> None:
    found, answers = opened_round(tmp_path)
    stolen = replace(unverified(answers["c0"]), advert=unverified(answers["c1"]).advert)  # type: ignore[union-attr]
    before = server_state(found.server)
    with pytest.raises(secagg.MessageError):
        found.server.receive(sealed(stolen, found.clients["c0"].home.identity(), "c0"))
    assert server_state(found.server) == before
    assert found.server.receive(answers["c1"]) == "c1"


def test_a_stages_message_under_anothers_name_or_altered_is_refused_by_both_sides(tmp_path: Path) -> None:
    """It has no signature but that of `secagg` inside: names and bytes are bound by that one."""
    refused = set()

    def refuses(call: Callable[[bytes], object], data: dict[str, Any], state: Callable[[], object]) -> None:
        before = state()
        with pytest.raises(ALLOWED):
            call(msgspec.msgpack.encode(data))
        assert state() == before

    def transport(client: Client, message: bytes) -> bytes | None:
        server = found.server
        if isinstance(unverified(message), Masking):
            good, own = msgspec.msgpack.decode(message), lambda: client_state(client)
            refuses(client.handle, {**good, "sender": "c1"}, own)
            refuses(client.handle, {**good, "body": altered(good["body"], 40)}, own)
            refuses(client.handle, {**good, "body": altered(good["body"], -1)}, own)
        answer = client.handle(message)
        good, state = msgspec.msgpack.decode(answer or b""), lambda: server_state(server)
        for name in ("", "nobody", "c3" if client.id != "c3" else "c4"):
            refuses(server.receive, {**good, "sender": name}, state)
        if isinstance(unverified(answer or b""), Masking):
            refuses(server.receive, {**good, "body": altered(good["body"], 40)}, state)
            refuses(server.receive, {**good, "body": altered(good["body"], -1)}, state)
        else:
            refuses(server.receive, {**good, "signature": b""}, state)
        refused.add(server.stage)
        return answer

    def altered(body: bytes, place: int) -> bytes:
        changed = bytearray(body)
        changed[place] ^= 1
        return bytes(changed)

    found = federation(tmp_path, transport=transport)
    assert found.run_round().status == "ok"
    assert refused == set(STAGES)


BAD_RELEASES: dict[str, dict[str, Any]] = {
    "not JSON": {"event": {"a": msgspec.msgpack.Ext(5, b"x")}},
    "keys that are no text": {"event": {"a": {b"\xff": {(1, 2): 3}}}},
    "too long": {"event": {"a": "x" * 2**21}},
    "a rate of NaN": {"sample_rate": NOT_A_NUMBER},
    "an infinite norm": {"clip_norm": float("inf")},
}


@pytest.mark.parametrize("what", BAD_RELEASES)
def test_releases_that_no_record_can_hold_are_refused(tmp_path: Path, what: str) -> None:
    found, answers = opened_round(tmp_path)
    good = Release({"type": "x"}, 1, "poisson", 0.1, 1.0, 1.0, 7)
    before = server_state(found.server)
    ready = replace(unverified(answers["c0"]), releases=[replace(good, **BAD_RELEASES[what])])
    with pytest.raises(ALLOWED):
        found.server.receive(sealed(ready, found.clients["c0"].home.identity(), "c0"))
    assert server_state(found.server) == before
    assert found.server.receive(answers["c0"]) == "c0"
    msgspec.json.encode(found.server._report.clients["c0"].releases)


def test_a_client_answers_once_and_gives_a_reason_that_exists(tmp_path: Path) -> None:
    found, _ = opened_round(tmp_path)
    key = found.clients["c0"].home.identity()
    stopped = Stopped(found.server._session, 1, "budget", [], None)
    with pytest.raises(ValueError, match="none"):
        found.server.receive(sealed(replace(stopped, reason="ok"), key, "c0"))
    with pytest.raises(ValueError, match="none"):
        found.server.receive(sealed(replace(stopped, epsilon=NOT_A_NUMBER), key, "c0"))
    found.server.receive(sealed(stopped, key, "c0"))
    with pytest.raises(ValueError, match="got a second"):
        found.server.receive(sealed(stopped, key, "c0"))


@pytest.mark.parametrize("masks", [False, True])
def test_answers_of_another_run_are_refused(tmp_path: Path, masks: bool) -> None:
    """The same homes, and so the same keys, in two runs: round 1 of the one is no round 1 of the other."""
    runs = [federation(tmp_path / "homes", masks=masks) for _ in range(2)]
    for run in runs:
        run.server.begin()
    old = {name: client.handle(runs[0].server.opening(name)) for name, client in runs[0].clients.items()}
    before = server_state(runs[1].server)
    stopped = sealed(
        Stopped(runs[0].server._session, 1, "budget", [], None), runs[0].clients["c0"].home.identity(), "c0"
    )
    for answer in (old["c0"], stopped):
        assert answer is not None
        with pytest.raises(ALLOWED, match="another run"):
            runs[1].server.receive(answer)
    assert server_state(runs[1].server) == before


def _altered(name: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda values: dump_state({**values, name: value})


BAD_VALUES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "no state": lambda values: b"zz",
    "no mapping": lambda values: tree([1]),
    "another shape": _altered("update", np.zeros(3)),
    "text": _altered("update", "x"),
    "NaN": _altered("update", np.full(13, np.nan)),
    "an infinite change": _altered("scaffold.delta", np.full(13, np.inf)),
    "a huge weight": _altered("weight", 10**30),
    "a negative weight": _altered("weight", -4),
    "a fraction": _altered("weight", 0.5),
    "an extra field": _altered("extra", 1),
    "a missing field": lambda values: dump_state({k: v for k, v in values.items() if k != "weight"}),
}


@pytest.mark.parametrize("what", BAD_VALUES)
def test_values_in_clear_that_the_schema_does_not_allow_cost_one_client_not_the_round(
    tmp_path: Path, what: str
) -> None:
    found, answers = opened_round(tmp_path, masks=False)
    key = found.clients["c0"].home.identity()
    clear = unverified(answers["c0"])
    assert isinstance(clear, Clear)
    before = server_state(found.server)
    with pytest.raises(ALLOWED):
        found.server.receive(
            sealed(replace(clear, values=BAD_VALUES[what](load_state(clear.values))), key, "c0")
        )
    assert server_state(found.server) == before
    for name in ("c1", "c2", "c3", "c4"):
        found.server.receive(answers[name])
    assert found.server.finish().status == "ok"
    assert found.server.accepted == {"c0": 0, "c1": 1, "c2": 1, "c3": 1, "c4": 1}


def test_finite_values_that_add_up_to_none_abort_the_round(tmp_path: Path) -> None:
    found, answers = opened_round(tmp_path, masks=False)
    for name, answer in answers.items():
        clear = unverified(answer)
        assert isinstance(clear, Clear)
        huge = {**load_state(clear.values), "scaffold.delta": np.full(13, 1.5e308)}
        found.server.receive(
            sealed(replace(clear, values=dump_state(huge)), found.clients[name].home.identity(), name)
        )
    before = dump_state(found.server.get_state())
    with pytest.warns(RuntimeWarning, match="overflow"), pytest.raises(secagg.RoundAborted, match="scaffold"):
        found.server.finish()
    assert dump_state(found.server.get_state()) == before


def test_an_answer_damaged_on_its_way_costs_one_client_not_the_run(tmp_path: Path) -> None:
    def transport(client: Client, message: bytes) -> bytes | None:
        answer = client.handle(message)
        return answer if client.id != "c1" or answer is None else answer[:-1]

    found = federation(tmp_path, quadratics(6), transport=transport)
    report = found.run_round()
    assert report.status == "ok"
    assert (report.clients["c1"].status, report.clients["c1"].dropped) == ("dropped", "advert")


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, dict[str, bytes]]:
    return opened_round(tmp_path_factory.mktemp("fuzz"))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_fuzzed_bytes_raise_errors_of_ours_alone_and_change_nothing(
    masked: tuple[Federation, dict[str, bytes]], data: st.DataObject
) -> None:
    """Bytes that are signed: whoever holds a key of the roster can send any."""
    from privopt.federation import messages

    found, answers = masked
    to_server = data.draw(st.booleans())
    good = (
        answers["c0"]
        if to_server
        else sealed(_begin(found, data.draw(st.binary(min_size=16, max_size=16))), found.server._identity)
    )
    body = bytearray(msgspec.msgpack.decode(good)["body"])
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body) - 1))
        piece = data.draw(st.binary(max_size=3) | st.just(b"\x91" * 2000) | st.just(b"\xff\xff\xff\xff"))
        body[where : where + data.draw(st.integers(0, 3))] = piece
        body = body or bytearray(b"\x00")
    name = "c0" if to_server else ""
    key = found.clients["c0"].home.identity() if to_server else found.server._identity
    signature = key.sign(messages._signed(name, bytes(body)))
    message = msgspec.msgpack.encode({"sender": name, "body": bytes(body), "signature": signature})
    client = found.clients["c0"]
    before = server_state(found.server) if to_server else client_state(client)
    try:
        if to_server:
            found.server.receive(message)
        else:
            client.handle(message)
    except ALLOWED:
        after = server_state(found.server) if to_server else client_state(client)
        assert after == before
    else:
        # A change that means nothing (an epsilon, say) may pass: undo it for the next example.
        found.server._answered.discard("c0")


def _begin(found: Federation, session: bytes) -> Begin:
    state = found.server.get_state()
    return Begin(
        run="test",
        session=session,
        round=2,
        steps=4,
        weights=dump_state({"weights": found.server.weights}),
        aux=dump_state({}),
        accepted=state["accepted"],
        recorded=state["recorded"],
        offer=b"not an offer",
    )
