"""A server's module that shares something else with each client: `{client id: AuxVar}` in a federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from privopt import AuxVar, Optimizer, OptiModule, Vector, counted, public, state, summed
from privopt.checkpoint import dump_state, load_state
from privopt.federation.federation import Federation
from privopt.federation.messages import Begin, sealed, unverified
from privopt.federation.settings import Selection
from privopt.testing import check_plugin
from tests.privopt.federated import Quadratic, federation, quadratics

LRATE, STEPS, ROUNDS = 0.1, 4, 3


class PaceReport(AuxVar):
    """What a client of the method below sends."""

    name = "tests-pace-report"
    steps: int = counted()
    last: Vector = summed(bound=4.0)


class Pace(AuxVar):
    """What the server tells each client: what to multiply its gradients by, and what to add to them."""

    name = "tests-pace"
    factor: float = public()
    shift: Vector = public()


class PaceClient(OptiModule):
    """The clients' half of a method as a third party would write it."""

    name = "tests-pace-client"
    aux_name = "pace"
    aux_var = PaceReport
    aux_per_client = True
    steps: int = state(0)
    factor: float = state(1.0)
    shift: Vector = state(0.0)
    last: Vector = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        self.steps += 1
        self.last = gradients.copy()
        return self.factor * gradients + self.shift

    def collect_aux_var(self) -> PaceReport:
        return PaceReport(steps=self.steps, last=self.last)

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, Pace):
            raise TypeError(f"Expected a Pace from the server, got {type(aux_var).__name__}.")
        self.factor, self.shift = aux_var.factor, aux_var.shift


class CommonPaceClient(PaceClient):
    """The same without consent to be told something else than the others."""

    name = "tests-common-pace-client"
    aux_per_client = False


class PaceServer(OptiModule):
    """The server's half: a pace for each client of the roster, from the second round on."""

    name = "tests-pace-server"
    aux_name = "pace"
    zero: Vector | None = state(None)
    _clients = tuple[str, ...]()

    def on_roster(self, clients: Sequence[str]) -> None:
        self._clients = tuple(clients)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, PaceReport):
            raise TypeError(f"Expected a combined PaceReport, got {type(aux_var).__name__}.")
        self.zero = 0.0 * aux_var.last

    def collect_aux_var(self) -> Mapping[str, AuxVar] | None:
        if self.zero is None:
            return None
        return {name: Pace(factor=factor(name), shift=self.zero + shift(name)) for name in self._clients}


def factor(client: str) -> float:
    return 0.5 + 0.25 * int(client[1:])


def shift(client: str) -> float:
    return 0.01 * int(client[1:])


def build(
    folder: Path, server: OptiModule | None = None, client: str = "tests-pace-client", **options: Any
) -> Federation:
    return federation(
        folder,
        client=lambda: Optimizer(LRATE, modules=[client]),
        server=Optimizer(1.0, modules=[server or PaceServer()]),
        steps=STEPS,
        sample_rate=1.0,
        **options,
    )


def averaged_by_hand(problems: Mapping[str, Quadratic]) -> npt.NDArray[np.float64]:
    """The server's weights after all rounds: the mean of gradient descent on each quadratic, written out."""
    w = np.zeros(12)
    for number in range(ROUNDS):
        ends = []
        for name, problem in problems.items():
            own = w.copy()
            f, s = (factor(name), shift(name)) if number else (1.0, 0.0)
            for _ in range(STEPS):
                own -= LRATE * (f * problem.scale**2 * (own - problem.points.mean(axis=0)) + s)
            ends.append(own)
        w = np.mean(ends, axis=0)
    return w


@pytest.mark.parametrize(("masks", "precision"), [(False, 1e-12), (True, 1e-3)])
def test_each_client_trains_with_what_the_server_shares_with_it_alone(
    tmp_path: Path, masks: bool, precision: float
) -> None:
    problems = quadratics()
    found = build(tmp_path, problems=problems, masks=masks)
    assert [report.status for report in found.run(ROUNDS)] == ["ok"] * ROUNDS
    np.testing.assert_allclose(found.server.weights.coefs["w"], averaged_by_hand(problems), atol=precision)
    for name, client in found.clients.items():
        module = client.optimizer.modules[0]
        assert isinstance(module, PaceClient)
        assert module.factor == factor(name)


def test_a_clients_message_holds_its_own_part_and_nobody_elses(tmp_path: Path) -> None:
    found = build(tmp_path)
    found.run_round()
    found.server.begin()
    messages = {}
    for name in found.clients:
        message = unverified(found.server.opening(name))
        assert isinstance(message, Begin)
        assert message.own_names == ("pace",)
        assert load_state(message.aux) == {}
        assert load_state(message.own or b"")["pace"][1]["factor"] == factor(name)
        messages[name] = message
    contexts = {message.context() for message in messages.values()}
    assert len(contexts) == 1, "masks bind what all are told alike"
    first = messages["c0"]
    assert replace(first, own_names=()).context() not in contexts, "and which parts are not alike"


def test_without_parts_of_their_own_all_clients_get_one_message(tmp_path: Path) -> None:
    found = build(tmp_path)
    data = found.server.begin()
    assert all(found.server.opening(name) is data for name in found.clients)
    assert found.server._report.bytes_down == len(data) * len(found.clients)
    for nobody in ("c9", ""):
        with pytest.raises(ValueError, match=f"an open round asks, got '{nobody}'"):
            found.server.opening(nobody)
    found.server.abort("enough")
    with pytest.raises(ValueError, match="an open round asks, got 'c0'"):
        found.server.opening("c0")


def test_what_is_sent_to_each_is_counted(tmp_path: Path) -> None:
    found = build(tmp_path, masks=False)
    found.run_round()
    sent = 0
    deliver = found._transport

    def counting(client: Any, data: bytes) -> bytes | None:
        nonlocal sent
        sent += len(data)
        return deliver(client, data)

    found._transport = counting
    assert found.run_round().bytes_down == sent


class Sharing(PaceServer, register=False):
    """A server's half that shares what a test says."""

    name = "tests-pace-server"

    def __init__(self, shared: Any) -> None:
        super().__init__()
        self._shared = shared

    def collect_aux_var(self) -> Any:
        return self._shared


SHARED: dict[str, Any] = {"factor": 2.0, "shift": quadratics()["c0"].weights.full_like(0.0)}
PACE = Pace(**SHARED)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "a client is missing": (
        dict.fromkeys(("c0", "c1", "c3"), PACE),
        ValueError,
        r"'pace' for each client that the round asks, got none for \['c2', 'c4'\]",
    ),
    "a client is unknown": (
        dict.fromkeys(("c0", "c1", "c2", "c3", "c4", "c17"), PACE),
        ValueError,
        "client ids of the roster from 'pace' on the server, got also 'c17'",
    ),
    "a key is no name": ({0: PACE}, ValueError, "from 'pace' on the server, got also 0"),
    "a value is no AuxVar": (
        {name: PACE if name != "c3" else 1.5 for name in ("c0", "c1", "c2", "c3", "c4")},
        TypeError,
        "'pace' for client 'c3', got float",
    ),
    "no mapping": ([PACE], TypeError, "one for each client by its id, from 'pace' on the server, got list"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("masks", [False, True])
def test_a_mapping_that_does_not_fit_the_round_is_refused_before_it_opens(
    tmp_path: Path, what: str, masks: bool
) -> None:
    shared, error, words = BAD[what]
    module = Sharing(shared)
    found = build(tmp_path, server=module, masks=masks)
    before = dump_state(found.server.get_state())
    with pytest.raises(error, match=words):
        found.run_round()
    assert dump_state(found.server.get_state()) == before
    module._shared = dict.fromkeys(found.clients, PACE)
    assert found.run_round().status == "ok", "the round can still be opened"


def test_a_mapping_need_not_name_clients_that_the_round_does_not_ask(tmp_path: Path) -> None:
    found = build(
        tmp_path, server=Sharing({"c0": PACE, "c1": PACE}), masks=False, selection=Selection("uniform", 2)
    )
    found.server.begin(["c0", "c1"])
    found.server.abort("seen enough")
    with pytest.raises(ValueError, match=r"got none for \['c2'\]"):
        found.server.begin(["c0", "c2"])


@pytest.mark.parametrize("half", [PaceClient, PaceServer])
def test_the_contract_suite_takes_both_halves(half: type[OptiModule]) -> None:
    assert check_plugin(half, frameworks=["numpy"], executors=["exact"], examples=3) > 10


# ---- what a client accepts ---------------------------------------------------------------------------------


def test_under_masks_a_client_is_told_what_all_are_told_unless_its_module_allows_otherwise(
    tmp_path: Path,
) -> None:
    clear = build(tmp_path / "clear", client="tests-common-pace-client", masks=False)
    assert [report.status for report in clear.run(2)] == ["ok", "ok"]
    masked = build(tmp_path / "masked", client="tests-common-pace-client")
    masked.run_round()
    with pytest.raises(ValueError, match=r"from \['pace'\].*declare aux_per_client = True"):
        masked.run_round()


def test_a_client_refuses_from_any_server_what_its_module_does_not_allow(tmp_path: Path) -> None:
    found = federation(tmp_path)  # Scaffold
    list(found.run(2))
    client = found.clients["c0"]
    begin = found.server.begin()
    message = unverified(begin)
    assert isinstance(message, Begin)
    hostile = replace(message, aux=dump_state({}), own=message.aux, own_names=("scaffold",))
    before = dump_state(client.optimizer.get_state()), dict(client._sessions), client._round
    with pytest.raises(ValueError, match=r"all clients of a masked round from \['scaffold'\]"):
        client.handle(sealed(hostile, found.server._identity))
    assert (dump_state(client.optimizer.get_state()), client._sessions, client._round) == before
    assert client.handle(begin), "the right one is still answered"


CHANGES: dict[str, dict[str, Any]] = {
    "the part is missing": {"own": None},
    "the part is not announced": {"own_names": ()},
    "another part is announced": {"own_names": ("pace", "scaffold")},
    "the part is damaged": {"own": b"\x00"},
    "the part is for no module": {
        "own": dump_state({"x": ["tests-pace", SHARED]}),
        "own_names": ("x",),
    },
    "the part is common, too": {"aux": dump_state({"pace": ["tests-pace", SHARED]})},
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("masks", [False, True])
def test_a_client_refuses_a_message_whose_own_part_is_not_as_announced(
    tmp_path: Path, what: str, masks: bool
) -> None:
    found = build(tmp_path, masks=masks)
    found.run_round()
    client, server = found.clients["c1"], found.server
    server.begin()
    whole = server.opening("c1")
    message = unverified(whole)
    before = dump_state(client.optimizer.get_state()), dict(client._sessions), client._round
    with pytest.raises(ValueError, match="Expected"):
        client.handle(sealed(replace(message, **CHANGES[what]), server._identity))
    assert (dump_state(client.optimizer.get_state()), client._sessions, client._round) == before
    assert client.handle(whole), "the right one is still answered"


def test_who_sends_the_common_message_is_told_where_the_own_parts_are(tmp_path: Path) -> None:
    found = build(tmp_path)
    found.run_round()
    common = found.server.begin()
    with pytest.raises(
        ValueError, match=r"for 'c2' alone of \['pace'\], got \[\]. Send it what Server.opening\('c2'\)"
    ):
        found.clients["c2"].handle(common)
