"""The server of a run: hands out the model, takes one sum a round, steps on it: floor 6.

With masks on, all that it ever holds of a client is what `secagg` sends (an advert, sealed boxes, a masked
vector, shares of one secret) and what the client's ledger says it released.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np

import secagg

from ..aggregators import Aggregator, Mean
from ..auxvar import AuxVar
from ..checkpoint import dump_state, load_state
from ..optimizer import Optimizer
from ..step import uninterrupted
from ..vector import Vector
from .messages import Begin, Clear, Masking, Ready, Stopped, opened, sealed
from .pairs import verify_allowed
from .reports import ClientReport, RoundReport, recordable
from .schema import round_schema

__all__ = ["Server"]

_STAGES = {
    secagg.ServerPhase.ADVERTS: "advert",
    secagg.ServerPhase.SHARES: "shares",
    secagg.ServerPhase.VECTORS: "vector",
    secagg.ServerPhase.CONSISTENCY: "consistency",
    secagg.ServerPhase.UNMASKING: "unmask",
}


class Server:
    """One round at a time: `begin` (and `opening`), then `receive` and `advance` by turns, `finish`.

    A stage may be ended by `advance` (the last one by `finish`) when nobody is `missing`, or when waiting has
    become pointless and `enough` have answered. Who has not answered by then has dropped out of the round,
    which goes on; an answer that comes later is refused and changes nothing.

    Args:
        identity: Signs offers; its public key is in the roster.
        roster: Pinned public keys of all.
        weights: The model; stepped in place.
        optimizer: The server's optimizer, with the server's half of paired modules.
        client_optimizer: An optimizer like the clients', for what its modules declare; never stepped.
        run: Id of the run.
        steps: Gradient steps of a client in a round, or those of each by id.
        seconds: As in `Client`.
        masks: Policy of the masked rounds; None where values travel in clear.
        aggregator: As in `Client`.
        most_weight: As in `Client`.
        total_weight: What all clients of the roster together count as, for methods that need to know which
            share of it takes part in a round; by default their number where all count 1.
        bits: As in `Client`.
        bound: As in `Client`.
        loss: Whether clients send their training loss.
    """

    def __init__(
        self,
        identity: secagg.Identity,
        roster: secagg.Roster,
        weights: Vector,
        optimizer: Optimizer,
        client_optimizer: Optimizer,
        *,
        run: str,
        steps: int | Mapping[str, int],
        masks: secagg.Policy | None,
        seconds: float | None = None,
        aggregator: Aggregator | None = None,
        most_weight: int = 1_000_000,
        total_weight: int | None = None,
        bits: int = 16,
        bound: float | str = "adaptive",
        loss: bool = False,
    ) -> None:
        self.aggregator = aggregator or Mean()
        optimizer.verify_clients(client_optimizer, self.aggregator)
        self.weights = weights
        optimizer.verify(weights.layout)
        self.optimizer = optimizer
        self.run = run
        self.steps = steps
        self.seconds = seconds
        most_steps = steps if isinstance(steps, int) else max(steps.values())
        most = self.aggregator.most(most_weight, most_steps)
        for each in (optimizer, client_optimizer):
            each.on_weighting(most, most)
        optimizer.on_roster(sorted(roster.clients))
        everybody = len(roster.clients) if most == 1 else None
        self._total_weight = everybody if total_weight is None else total_weight
        self.schema = round_schema(
            client_optimizer,
            weights.layout,
            aggregator=self.aggregator,
            most_weight=most_weight,
            most_steps=most_steps,
            bits=bits,
            bound=bound,
            loss=loss,
        )
        self.round = 0
        self.accepted: dict[str, int] = dict.fromkeys(roster.clients, 0)
        self.recorded: dict[str, int] = dict.fromkeys(roster.clients, 0)
        self._aux_classes = client_optimizer.aux_vars()
        self._aux_per_client = {
            m.aux_name for m in client_optimizer.modules if m.aux_name and m.aux_per_client
        }
        self._identity = identity
        self._roster = roster
        self._masks = masks
        self._session = secrets.token_bytes(16)
        self._secure = self._masked_rounds({})
        self._clear: dict[str, dict[str, Any]] = {}
        self._asked: frozenset[str] = frozenset()
        self._answered: set[str] = set()
        self._report = RoundReport(0)
        self._begun: Begin | None = None
        self._opening = b""
        self._own: dict[str, dict[str, AuxVar]] = {}

    def __repr__(self) -> str:
        return f"Server(run={self.run!r}, round={self.round})"

    @property
    def roster_keys(self) -> secagg.Roster:
        """The pinned public keys of all participants."""
        return self._roster

    def _masked_rounds(self, bounds: Mapping[str, float]) -> secagg.Server | None:
        """The masked rounds of this process: a session of their own, so that no round's keys come twice."""
        if self._masks is None:
            return None
        schema = self.schema.with_bounds(bounds) if bounds else self.schema
        return secagg.Server(self._identity, self._roster, schema, policy=self._masks, session=self._session)

    # ---- a round ----------------------------------------------------------------------------------------

    def begin(self, asked: Collection[str] | None = None) -> bytes:
        """Open the next round; returns the message for every client that is asked.

        Where a module shares something else with each client, the message is not whole: `opening` gives each
        client its own. (It gives what this returns where there is nothing of the kind.)

        Args:
            asked: Ids of the clients that may take part; all of the roster by default.

        Raises:
            ValueError: If one is not in the roster, or there is none; or if what a module shares with each
                client leaves one out, names one that is not in the roster, or may not differ under masks.
            TypeError: If what a module shares is no AuxVar.
            secagg.PhaseError: If a round is open; it stays as it is.
        """
        if self._begun is not None:
            raise secagg.PhaseError(
                f"Expected no round under way, got round {self._report.round} in stage {self.stage!r}. End "
                "it with finish() or abort()."
            )
        number = self.round + 1
        asked = frozenset(self._roster.clients if asked is None else asked)
        if not asked or not asked <= self._roster.clients.keys():
            raise ValueError(f"Expected clients of the roster to ask, got {sorted(asked)}.")
        common, own = self._shared(asked)
        idle = {name: ClientReport("idle") for name in self._roster.clients if name not in asked}
        clients = {name: idle.get(name) or ClientReport() for name in self._roster.clients}
        self._asked, self._report = asked, RoundReport(number, clients=clients)
        self._clear, self._answered = {}, set()
        message = Begin(
            run=self.run,
            session=self._session,
            round=number,
            steps=self.steps if isinstance(self.steps, int) else dict(self.steps),
            weights=dump_state({"weights": self.weights}),
            aux=_packed(common),
            accepted=dict(self.accepted),
            recorded=dict(self.recorded),
            offer=None,
            seconds=self.seconds,
            own_names=tuple(sorted({name for values in own.values() for name in values})),
        )
        if self._secure is not None:
            self._report.bounds = self._secure.schema.adaptive_bounds()
            offer = self._secure.open(number, context=message.context())
            message = msgspec.structs.replace(message, offer=offer)
        data = sealed(message, self._identity)
        self._begun, self._own, self._opening = message, own, data
        if not message.own_names:
            self._report.bytes_down += len(data) * len(asked)
        return data

    def opening(self, client: str) -> bytes:
        """The message that `begin` opened the round with, for one client, with what is for it alone.

        Raises:
            ValueError: If no round is open, or this one does not ask the client.
        """
        if self._begun is None or client not in self._asked:
            raise ValueError(f"Expected a client that an open round asks, got {client!r}.")
        if not self._begun.own_names:
            return self._opening
        whole = msgspec.structs.replace(self._begun, own=_packed(self._own[client]))
        data = sealed(whole, self._identity)
        self._report.bytes_down += len(data)
        return data

    def _shared(self, asked: Collection[str]) -> tuple[dict[str, AuxVar], dict[str, dict[str, AuxVar]]]:
        """What the modules share: with all clients by aux_name, and with each by its id and aux_name."""
        common: dict[str, AuxVar] = {}
        own: dict[str, dict[str, AuxVar]] = {client: {} for client in asked}
        for name, value in self.optimizer.collect_aux_var().items():
            if isinstance(value, AuxVar):
                common[name] = value
                continue
            if not isinstance(value, Mapping):
                raise TypeError(
                    f"Expected an AuxVar, or one for each client by its id, from {name!r} on the server, got "
                    f"{type(value).__name__}."
                )
            if unknown := sorted(map(repr, value.keys() - self._roster.clients.keys())):
                raise ValueError(
                    f"Expected client ids of the roster from {name!r} on the server, got also "
                    f"{', '.join(unknown)}."
                )
            if missing := sorted(own.keys() - value.keys()):
                raise ValueError(
                    f"Expected an AuxVar of {name!r} for each client that the round asks, got none for "
                    f"{missing}."
                )
            for client in own:
                if not isinstance(value[client], AuxVar):
                    raise TypeError(
                        f"Expected an AuxVar of {name!r} for client {client!r}, got "
                        f"{type(value[client]).__name__}."
                    )
                own[client][name] = value[client]
            if self._secure is not None:
                verify_allowed([name], self._aux_per_client)
        return common, own

    def receive(self, data: bytes) -> str:
        """Take one client's answer; returns the client's id.

        Raises:
            ValueError: If it is no answer that this round expects.
            secagg.SecAggError: If the masked round refuses what it carries, or values in clear are not those
                of the schema. Nothing changes then, nor after any other error.
        """
        client, message = opened(data, self._roster.clients)
        if isinstance(message, Begin) or self._begun is None or message.round != self._report.round:
            raise ValueError(f"Expected an answer in round {self._report.round}, got something else.")
        if isinstance(message, Masking):
            # An advert comes with what its client released, in a Ready.
            if self._secure is None or self._secure.phase is secagg.ServerPhase.ADVERTS:
                raise ValueError(f"Expected no message of a masked round of {client!r} now.")
            self._secure.receive(message.payload, sender=client)
        elif message.session != self._session:
            raise ValueError(
                f"Expected an answer of {client!r} in this session, got one of another run, or of before a "
                "restart."
            )
        else:
            self._take_answer(client, message)
        self._report.bytes_up += len(data)
        return client

    def _take_answer(self, client: str, message: Ready | Clear | Stopped) -> None:
        """One of these a client and round; all of it is checked before any of it counts."""
        if client not in self._asked:
            raise ValueError(f"Expected no answer of {client!r}, which round {message.round} did not ask.")
        if client in self._answered:
            raise ValueError(f"Expected one answer of {client!r} a round, got a second.")
        if self._secure is not None and self._secure.phase is not secagg.ServerPhase.ADVERTS:
            raise ValueError(f"Expected the answer of {client!r} before its stage was closed.")
        releases = recordable(client, message.releases)
        status = "waiting"  # until it is known what of it counts
        if isinstance(message, Ready):
            if self._secure is None:
                raise ValueError("Expected values in clear in this run, got an advert of a masked round.")
            self._secure.receive(message.advert, sender=client)
        elif isinstance(message, Clear):
            if self._secure is not None:
                raise ValueError("Expected masked values in this run, got values in clear.")
            self._clear[client] = self._verified_values(message.values)
        else:
            status = "stopped" if message.reason == "budget" else message.reason
        self._answered.add(client)
        report = self._report.clients[client]
        report.status, report.epsilon, report.releases = status, message.epsilon, releases

    def _verified_values(self, data: bytes) -> dict[str, Any]:
        """Values in clear that a masked vector could carry as well, but for their bounds."""
        values = load_state(data)
        declared = self.schema.declared
        if missing := sorted(declared.keys() - values.keys()):
            raise ValueError(f"Expected values of the fields {sorted(declared)}, got none of {missing}.")
        carried = {name: value for name, value in values.items() if name not in declared}
        secagg.Encoding(self.schema, 1).encode(carried, np.random.default_rng(0))
        return values

    @property
    def report(self) -> RoundReport:
        """The round under way, or the last one."""
        return self._report

    @property
    def stage(self) -> str | None:
        """What is being collected, as `ClientReport.dropped` names it; None while no round is open."""
        if self._begun is None:
            return None
        return "values" if self._secure is None else _STAGES.get(self._secure.phase)

    @property
    def missing(self) -> tuple[str, ...]:
        """Clients that are still to be heard in this stage, sorted."""
        if self._begun is None:
            return ()
        heard = self._asked - self._answered
        if self._secure is None or self._secure.phase is secagg.ServerPhase.ADVERTS:
            return tuple(sorted(heard))
        return self._secure.missing

    @property
    def enough(self) -> bool:
        """Whether this stage can end well now, although somebody may still be missing."""
        return bool(self._clear) if self._secure is None else self._secure.enough

    def advance(self) -> dict[str, bytes]:
        """End the stage under way: who is missing has dropped.

        Returns:
            The next stage's messages by client; none where `finish` is to be called.

        Raises:
            secagg.RoundAborted: If too few clients are left, or they hold different models; call `abort`.
        """
        secure = self._secure
        if secure is None or secure.phase is secagg.ServerPhase.UNMASKING:
            return {}
        self._drop_missing()
        try:
            messages = secure.advance()
        except secagg.PolicyError as error:
            raise secagg.RoundAborted(str(error)) from error
        number, signed = self._report.round, dict[bytes, bytes]()
        for payload in messages.values():  # many of them are one and the same
            if payload not in signed:
                signed[payload] = sealed(Masking(number, payload), self._identity)
        answers = {name: signed[payload] for name, payload in messages.items()}
        self._report.bytes_down += sum(map(len, answers.values()))
        return answers

    def _drop_missing(self) -> None:
        """Note of who is missing at which stage that was."""
        for name in self.missing:
            client = self._report.clients[name]
            client.status, client.dropped = "dropped", self.stage

    def finish(self) -> RoundReport:
        """Take the sum, step on it, and close the round.

        Raises:
            secagg.RoundAborted: If too few clients of the masked round are left, or nobody answered. Nothing
                was released then and the model stands; call `abort`.
            secagg.PhaseError: If no round is open, or not at its end; it stays as it is.
        """
        report = self._report
        if self._begun is None:
            raise secagg.PhaseError("Expected an open round whose result to take, got none. Call begin().")
        if self.stage in ("values", "unmask"):
            self._drop_missing()
        if self._secure is not None:
            result = self._secure.result()
            values, survivors = dict(result.values), tuple(sorted(result.survivors))
            for field, told in result.public.items():  # who dropped later told it, too
                values[field] = tuple(told[name] for name in survivors)
            report.clipped, report.faulty = dict(result.clipped), result.faulty
        else:
            if not self._clear:
                raise secagg.CohortError("Expected at least one client's values, got none.")
            survivors = tuple(sorted(self._clear))
            try:
                values = secagg.reduce_clear(self.schema, [self._clear[name] for name in survivors])
            except ValueError as error:  # clients differ where all must be alike
                raise secagg.RoundAborted(str(error)) from error
            # Under masks a hash of what is the same is all that comes. A plug-in reads None either way.
            values = {name: value for name, value in values.items() if self.schema[name].kind != "same"}
        with uninterrupted():  # the model that moved, and who is told that it did, are one thing
            self._step(values)
            for name in survivors:
                # One that vanished after its vector came is in the sum like any other.
                self.accepted[name], report.clients[name].status = report.round, "ok"
            loss = values.get("metrics.loss")
            report.loss = None if loss is None else float(loss)
            return self._close()

    def abort(self, reason: str) -> RoundReport:
        """Drop the open round, if one is: the model stands, the next round may begin."""
        if self._begun is None:
            return self._report  # an interrupt may come when the last one has just been closed
        if self._secure is not None:
            self._secure.abort()
        self._report.status, self._report.reason = "aborted", reason
        for client in self._report.clients.values():
            if client.status == "waiting":
                client.status = "aborted"
        return self._close()

    def _close(self) -> RoundReport:
        self._clear = {}
        self._begun, self._own, self._opening = None, {}, b""
        self.round = self._report.round
        for name, client in self._report.clients.items():
            sequences = [release["ledger_sequence"] for release in client.releases]
            self.recorded[name] = max([self.recorded[name], *sequences])
        return self._report

    def _step(self, values: Mapping[str, Any]) -> None:
        if not values["weight"]:
            raise secagg.RoundAborted("Expected a positive total weight, got 0: nobody has samples.")
        self._verify_finite(values)
        combined: dict[str, AuxVar] = {}
        for name, cls in self._aux_classes.items():
            prefix = f"{name}."
            fields = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
            combined[name] = cls.from_values(fields, self.weights)
        update = self.aggregator.combine(values)
        state, weights = self.optimizer.get_state(), self.weights.copy()
        try:
            if self._total_weight:
                self.optimizer.on_participation(values["weight"] / self._total_weight)
            self.optimizer.start_round()
            self.optimizer.process_aux_var(combined)
            # The update is the negative of a gradient: rate 1 and no module give plain averaging.
            self.optimizer.step(self.weights.unflatten(-update), self.weights)
            self.optimizer.end_round(accepted=True)
        except BaseException:
            # The clients will be told that the round did not count, and go back themselves.
            self.optimizer.set_state(state)
            self.weights.assign(weights)
            raise

    def _verify_finite(self, values: Mapping[str, Any]) -> None:
        """In clear, finite values may add up to none; under masks no lane can."""
        for name, reduction in self.schema.masked.items():
            # A mean of an aux-var may be NaN: where its own weights are all zero.
            checked = name == "update" or reduction.kind == "summed"
            if checked and not np.all(np.isfinite(values[name])):
                raise secagg.RoundAborted(f"Expected finite sums, got NaN or infinity in {name!r}.")

    # ---- stop and resume ----------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {
            "round": self.round,
            "weights": self.weights.copy(),
            "optimizer": self.optimizer.get_state(),
            "accepted": dict(self.accepted),
            "recorded": dict(self.recorded),
            "bounds": {} if self._secure is None else self._secure.schema.adaptive_bounds(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `get_state`: rounds that it does not know, and an open one, never were."""
        self._clear, self._answered, self._asked = {}, set(), frozenset()
        self._begun, self._own, self._opening = None, {}, b""
        self.optimizer.set_state(state["optimizer"])
        self.weights.assign(state["weights"])
        self.round = state["round"]
        self.accepted, self.recorded = dict(state["accepted"]), dict(state["recorded"])
        # Round numbers of this session may come again, so it is over.
        self._session = secrets.token_bytes(16)
        self._secure = self._masked_rounds(state["bounds"])


def _packed(aux_vars: Mapping[str, AuxVar]) -> bytes:
    """Auxiliary variables as they travel: the declared name of each one's class, and its fields."""
    return dump_state({name: [value.name, _fields(vars(value))] for name, value in aux_vars.items()})


def _fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not name.startswith("_")}
