"""A data holder in a run: bytes in, bytes out; its samples, keys and ledger stay here: floor 6."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import dp
import secagg

from ..aggregators import Aggregator, Mean
from ..auxvar import AuxVar
from ..checkpoint import dump_state, load_state
from ..optimizer import Optimizer
from ..registry import AUX_VARS
from ..vector import Vector
from .home import Home
from .messages import Begin, Clear, Masking, Message, Ready, Release, Stopped, opened, sealed
from .pairs import verify_allowed
from .privacy import Privacy
from .problem import Problem
from .schema import round_schema

__all__ = ["Client", "LostAdvert"]

LOSS_CHUNK = 1024


class LostAdvert(secagg.PhaseError, ValueError):  # noqa: N818 - it names what happened
    """A message of a masked round whose advert this client does not hold: it was restarted in between."""


class Client:
    """Trains on its own samples and sends what the round's schema declares, masked or in clear.

    One message at a time goes through `handle`. A round is a transaction: the optimizer's state
    before and after it is on disk before anything is sent, and which of the two counts is known from what
    the server says it accepted. So a round that failed, or a process that was killed, leaves the optimizer
    where the last accepted round left it, while the ledger keeps what was spent.

    Args:
        client_id: Id in the roster.
        home: The client's own folder.
        problem: Its model and samples.
        optimizer: Its optimizer, with the client's half of paired modules.
        run: Id of the run.
        seed: Public seed of batches (without DP) and of the encoder's rounding.
        sample_rate: Share of the samples in an expected batch.
        privacy: Local DP; None trains without.
        steps: Gradient steps that it takes in a round; a round of any other number is refused.
        seconds: Time after which it takes no further step of a round; None where steps alone count.
        roster: Pinned public keys of the server and of all clients.
        masks: Policy of the masked rounds; None where values travel in clear.
        disclose: Names of un-noised metrics that may leave (``"loss"``).
        aggregator: How updates become one: what is put into the round's vector.
        most_weight: Largest number of samples of any client, public, where samples weigh.
        most_steps: Most steps of any client in a round; `steps` by default.
        bits: Precision of one value of the update, under masks.
        bound: Bound on an entry of the update, or the text ``"adaptive"``.

    Attributes:
        error: Why it failed in, or refused, the last round, in one line; None where it did not. It stays
            here: the server is told that it did, and no more.
    """

    def __init__(
        self,
        client_id: str,
        *,
        home: Home,
        problem: Problem,
        optimizer: Optimizer,
        run: str,
        steps: int,
        seconds: float | None = None,
        roster: secagg.Roster,
        seed: int = 0,
        sample_rate: float = 1.0,
        privacy: Privacy | None = None,
        masks: secagg.Policy | None = None,
        disclose: tuple[str, ...] = (),
        aggregator: Aggregator | None = None,
        most_weight: int = 1_000_000,
        most_steps: int | None = None,
        bits: int = 16,
        bound: float | str = "adaptive",
    ) -> None:
        raw = [m.name for m in optimizer.modules if m.needs_raw_gradients]
        if privacy is not None and raw:
            raise ValueError(f"Expected modules that take noised gradients in a private run, got {raw}.")
        if privacy is not None and seconds is not None:
            raise ValueError(
                f"Expected a number of steps known before the round, got seconds={seconds}: what a round may "
                "release is reserved before it starts. Give steps, or train without privacy."
            )
        self.id = client_id
        self.home = home
        self.problem = problem
        optimizer.verify(problem.weights.layout)
        self.optimizer = optimizer
        self.run = run
        self.privacy = privacy
        self.aggregator = aggregator or Mean()
        most_steps = steps if most_steps is None else most_steps
        weight = self.aggregator.count(problem.num_samples, steps)
        optimizer.on_weighting(weight, self.aggregator.most(most_weight, most_steps))
        self.schema = round_schema(
            optimizer,
            problem.weights.layout,
            aggregator=self.aggregator,
            most_weight=most_weight,
            most_steps=most_steps,
            bits=bits,
            bound=bound,
            loss=privacy is None or "loss" in disclose,
        )
        self._seed = seed
        self._sample_rate = sample_rate
        self._masks = masks
        self._roster = roster
        self._steps, self._seconds = steps, seconds
        self._clock = time.monotonic
        self._identity = home.identity()
        self._register = home.register()  # kept: a fresh one reads all rounds that ever were
        self._sessions: dict[str, int] = {}
        self._secure: secagg.Client | None = None
        self._round = 0
        self.error: str | None = None
        self._pending: dict[str, Any] | None = None
        self._base: dict[str, Any] = optimizer.get_state()
        kept = home.read_state(run)
        if kept is not None:
            self._round, self._base, self._pending = kept["round"], kept["base"], kept["pending"]
            self._sessions = kept["sessions"]

    def __repr__(self) -> str:
        return f"Client({self.id!r}, run={self.run!r}, round={self._round})"

    def handle(self, data: bytes) -> bytes | None:
        """Take one message of the server and answer it.

        Returns:
            The answer, or None where there is none.

        Raises:
            ValueError: If the bytes are no message of the server that this client expects now; nothing
                changes then, and nothing is spent. `LostAdvert` where it was restarted within the round.
            secagg.SecAggError: If the masked round fails; what was spent stays spent.
        """
        _, message = opened(data, {"": self._roster.server})
        if isinstance(message, Begin):
            return self._begin(message)
        if isinstance(message, Masking):
            return self._go_on(message)
        raise ValueError(f"Expected a message for a client, got {type(message).__name__.lower()!r}.")

    def _sealed(self, message: Message) -> bytes:
        return sealed(message, self._identity, self.id)

    # ---- a round ----------------------------------------------------------------------------------------

    def _begin(self, message: Begin) -> bytes:
        if message.run != self.run:
            raise ValueError(f"Expected a round of run {self.run!r}, got one of {message.run!r}.")
        session = message.session.hex()
        if message.round < self._round or message.round <= self._sessions.get(session, 0):
            raise ValueError(
                f"Expected a round that is new to client {self.id!r}, got round {message.round}."
            )
        if (self._masks is None) != (message.offer is None):
            given = "no offer of masks" if message.offer is None else "an offer of masks"
            raise ValueError(f"Expected values to travel as the client's policy says, got {given}.")
        self._verify_ledger(message.recorded.get(self.id, 0))
        self._verify_state(message.accepted.get(self.id, 0))
        weights, aux = self._read(message)
        # Before anything is spent: what the round asks for is checked, and it can never be asked again.
        refusal, secure = self._open(message, weights)
        self._secure = secure
        self.error = refusal
        self._settle(message.accepted.get(self.id, 0))
        self._sessions[session] = message.round
        self._write()
        if refusal is not None:
            return self._stopped(message, "refused")
        try:
            values = self._train(message, weights, aux)
        except dp.PrivacyBudgetExceeded:
            return self._stopped(message, "budget")
        if not np.all(np.isfinite(values["update"])):
            return self._failed(message, "Expected a finite update, got NaN or infinity in it.")
        if message.offer is None:
            self._keep(message.round)
            state = dump_state(values)
            return self._sealed(
                Clear(message.session, message.round, state, self._releases(message), self._epsilon())
            )
        try:
            return self._advertise(message, values)
        except secagg.EncodingError as error:  # what a plug-in sends is not what it declares
            return self._failed(message, str(error))

    def _failed(self, message: Begin, error: str) -> bytes:
        """No sum can hold what it has to send; what it spent is told all the same."""
        self._secure, self.error = None, error.partition("\n")[0]
        return self._stopped(message, "failed")

    def _verify_ledger(self, recorded: int) -> None:
        """Refuse to go on from a ledger older than what it told the server: it would under-count."""
        if self.privacy is None or recorded == 0:
            return
        known = {release.ledger_sequence for release in self.privacy.releases(recorded - 1)}
        if recorded not in known:
            raise ValueError(
                f"Expected record {recorded} in the ledger of {self.id!r}, which the server was told of, "
                "got a ledger without it. Bring back the ledger that this run was begun with."
            )

    def _verify_state(self, accepted: int) -> None:
        """Refuse to go on from a state older than what the server has summed: the two would not fit again."""
        if accepted > self._round and any(self._base.values()):
            raise ValueError(
                f"Expected the state of {self.id!r} after round {accepted}, which the server took, got that "
                f"of round {self._round}. Bring back state-{self.run}.safetensors in its home, or leave the "
                "client out of the run."
            )

    def _read(self, message: Begin) -> tuple[Vector, dict[str, AuxVar]]:
        """The model and the server's auxiliary variables; ValueError if they are not for this client."""
        weights = load_state(message.weights).get("weights")
        if not isinstance(weights, Vector):
            raise ValueError(  # noqa: TRY004 - bytes of the wrong kind are a wrong value
                "Expected the model's weights in a round's first message, got something else."
            )
        aux = _read_aux(load_state(message.aux))
        own = {} if message.own is None else _read_aux(load_state(message.own))
        if sorted(own) != sorted(message.own_names) or aux.keys() & own.keys():
            raise ValueError(
                f"Expected auxiliary variables for {self.id!r} alone of {sorted(message.own_names)}, got "
                f"{sorted(own)}. Send it what Server.opening({self.id!r}) gives."
            )
        aux |= own
        owners = {module.aux_name: module for module in self.optimizer.modules}
        if unknown := sorted(aux.keys() - owners.keys()):
            raise ValueError(f"Expected auxiliary variables of this client's modules, got also {unknown}.")
        if self._masks is not None:
            verify_allowed(own, (name for name in own if owners[name].aux_per_client))
        like = self.problem.weights
        return weights.to(like), {name: _placed(value, like) for name, value in aux.items()}

    def _open(self, message: Begin, weights: Vector) -> tuple[str | None, secagg.Client | None]:
        """Why this client takes no part in the round, None where it does; and its masks."""
        # Noise on the gradients of a model that has diverged would be spent for nothing.
        asked, agreed = (message.steps_of(self.id), message.seconds), (self._steps, self._seconds)
        if asked != agreed:
            return f"Expected (steps, seconds) of a round as agreed, {agreed}, got {asked}.", None
        if not np.all(np.isfinite(weights.flatten())):
            return "Expected a finite model, got NaN or infinity in its weights.", None
        if message.offer is None or self._masks is None:
            return None, None
        secure = secagg.Client(
            self._identity,
            self._roster,
            self.schema,
            policy=self._masks,
            register=self._register,
            rounding=self._rounding,
        )
        try:
            offered = secure.verify(message.offer)
        except (secagg.PolicyError, secagg.SchemaError) as error:
            return str(error).partition("\n")[0], None
        if offered != (message.session, message.round):
            raise ValueError(f"Expected the offer of round {message.round}, got another round's.")
        return None, secure

    def _settle(self, accepted: int) -> None:
        """Put the optimizer where the last round that counted left it."""
        took = self._pending is not None and accepted == self._round
        self.optimizer.set_state(self._pending if took and self._pending is not None else self._base)
        self.optimizer.end_round(took)
        self._base, self._pending = self.optimizer.get_state(), None

    def _train(self, message: Begin, weights: Vector, aux: Mapping[str, AuxVar]) -> dict[str, Any]:
        problem, optimizer = self.problem, self.optimizer
        problem.weights.assign(weights)
        start = problem.weights.copy()
        try:
            optimizer.process_aux_var(aux)
        except TypeError as error:  # not what this module's counterpart sends
            raise ValueError(f"Round {message.round}: {error}") from error
        optimizer.start_round()
        losses: list[float] = []
        steps = self._steps
        if self.privacy is None:
            steps, ends = 0, math.inf if self._seconds is None else self._clock() + self._seconds
            batches = np.random.Generator(np.random.Philox(key=self._key("batches", message.round)))
            while steps < self._steps and (steps == 0 or self._clock() < ends):
                gradient, loss = problem.gradient(self._batch(batches), int(batches.integers(2**63)))
                losses.append(loss)
                optimizer.step(gradient, problem.weights)
                steps += 1
        else:
            reservation = self.privacy.reserve(steps)
            if "metrics.loss" in self.schema:
                # Disclosed as it is, without noise: over all samples, so that it says nothing of batches.
                losses.append(self._loss())
            for step in range(steps):
                noised = problem.noised_gradient(self.privacy.draw(reservation, step))
                optimizer.step(noised, problem.weights)
            self.privacy.ledger.commit(reservation)
        update = (problem.weights - start).flatten()
        values = self.aggregator.contribution(update, problem.num_samples, steps)
        if "metrics.loss" in self.schema:
            values["metrics.loss"] = float(np.mean(losses)) if losses else 0.0
        for name, collected in optimizer.collect_aux_var(problem.weights).items():
            values |= {f"{name}.{field}": value for field, value in collected.to_values().items()}
        # Values in clear are all sent, so what is `local` must not be among them.
        private = {name for name, reduction in self.schema.items() if reduction.kind == "local"}
        return {name: value for name, value in values.items() if name not in private}

    def _keep(self, number: int) -> None:
        """Before anything is sent: whoever restarts this client must be able to tell both outcomes apart."""
        self._round, self._pending = number, self.optimizer.get_state()
        self._write()

    def _write(self) -> None:
        state = {
            "round": self._round,
            "base": self._base,
            "pending": self._pending,
            "sessions": self._sessions,
        }
        self.home.write_state(self.run, state)

    def _loss(self) -> float:
        """Mean loss over all samples at the present weights, in parts that fit in memory."""
        n = self.problem.num_samples
        parts = [np.arange(low, min(low + LOSS_CHUNK, n)) for low in range(0, n, LOSS_CHUNK)]
        return math.fsum(self.problem.gradient(part)[1] * len(part) for part in parts) / max(1, n)

    def _batch(self, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        included = generator.random(self.problem.num_samples) < self._sample_rate
        return np.flatnonzero(included).astype(np.int64)

    def _advertise(self, message: Begin, values: dict[str, Any]) -> bytes:
        assert self._secure is not None  # noqa: S101 - established in _open
        assert message.offer is not None  # noqa: S101 - established in _begin
        declared = {name: values.pop(name) for name in self.schema.declared if name in values}
        advert = self._secure.receive(message.offer, context=message.context(), declared=declared)
        assert advert is not None  # noqa: S101 - an offer is answered
        carried = self._secure.prepare(values)
        if self.aggregator.is_mean and carried["weight"]:
            sent = self.problem.weights.unflatten(np.asarray(carried["update"]))
            self.optimizer.on_update_sent(sent)
        self.optimizer.on_aux_vars_sent(
            {
                name: cls.from_values(_fields_of(name, {**declared, **carried}), self.problem.weights)
                for name, cls in self.optimizer.aux_vars().items()
            }
        )
        self._keep(message.round)
        return self._sealed(
            Ready(message.session, message.round, advert, self._releases(message), self._epsilon())
        )

    def _go_on(self, message: Masking) -> bytes:
        """One more stage of the masked round; the prepared vector goes once shares were delivered."""
        secure = self._secure
        if secure is None or message.round != self._round:
            raise LostAdvert(
                f"Expected no message of masked round {message.round} now: no advert of it stands. A client "
                "that was started again has dropped out of the round, and joins the next."
            )
        answer = secure.receive(message.payload)
        if secure.phase is secagg.ClientPhase.READY:
            answer = secure.submit()
        assert answer is not None  # noqa: S101 - in a complete graph every stage is answered
        return self._sealed(Masking(message.round, answer))

    def _stopped(self, message: Begin, reason: Literal["budget", "refused", "failed"]) -> bytes:
        return self._sealed(
            Stopped(message.session, message.round, reason, self._releases(message), self._epsilon())
        )

    def _releases(self, message: Begin) -> list[Release]:
        """What the server has not recorded yet: this round's, and those of a round that a crash cut short."""
        return [] if self.privacy is None else self.privacy.releases(message.recorded.get(self.id, 0))

    def _epsilon(self) -> float | None:
        if self.privacy is None:
            return None
        spent = self.privacy.spent()
        return spent if math.isfinite(spent) else None

    # ---- replayable, public randomness: nothing private rests on it ---------------------------------------

    def _key(self, purpose: str, number: int) -> int:
        text = f"{self._seed}/{self.id}/{purpose}/{number}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:16], "little")

    def _rounding(self, session: bytes, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self._key("rounding", number)))


def _read_aux(state: Mapping[str, Any]) -> dict[str, AuxVar]:
    """The server's auxiliary variables: a class is looked up by its declared name, nothing is imported."""
    found = {}
    try:
        for name, (kind, fields) in state.items():
            cls: type[AuxVar] = AUX_VARS.find(kind)
            found[name] = cls(**fields)
            if not all(isinstance(getattr(found[name], field), Vector) for field in cls._vectors):
                raise ValueError(f"Expected arrays like the model in {name!r}.")
    except TypeError as error:
        raise ValueError("Expected the server's auxiliary variables, got something else.") from error
    return found


def _fields_of(aux_name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one aux-var, by field."""
    prefix = f"{aux_name}."
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _placed(aux_var: AuxVar, like: Vector) -> AuxVar:
    """The same with every Vector where the model's weights are."""
    for name, value in vars(aux_var).items():
        if isinstance(value, Vector):
            setattr(aux_var, name, value.to(like))
    return aux_var
