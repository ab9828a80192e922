"""Server: the state machine that opens rounds, adds masked vectors up, and decodes their sum.

    stage           call                    comes in, goes out              phase after
    0 offer         open(round)             → Offer, to all clients         ADVERTS
    1 advertise     receive(bytes)          ← Advert, one a client          ADVERTS
    2 roster        close_adverts()         → RosterMessage, to all         VECTORS
    4 vector        receive(bytes)          ← Masked, one a client          VECTORS
                    result()                                                IDLE

Stages 3 (shares), 5 (consistency) and 6 (unmask), which recover from dropouts, come between: 3 after the
roster, 5 and 6 before `result`, which until then needs the vector of every client of the roster. It keeps one
running sum, never a client's vector.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from .cohort import Statement, adverts_of, hash_context, hash_roster, verify_alike
from .encoding import Encoding, Words
from .errors import (
    CohortError,
    EncodingError,
    IdentityError,
    MessageError,
    PhaseError,
    PolicyError,
    RoundAborted,
    RoundReused,
)
from .keys import Identity, Roster, hash_parts, verify_ephemeral
from .messages import (
    MAX_ADVERT_BYTES,
    MAX_ROUND,
    Advert,
    Masked,
    Message,
    Offer,
    Opened,
    RosterMessage,
    open_sealed,
    seal,
)
from .policy import Policy
from .reductions import Declared
from .schema import Schema

# Every client of the roster must survive until stages 3, 5 and 6 recover dropouts.
THRESHOLD_FRACTION = 1.0


class ServerPhase(Enum):
    """Where a server stands."""

    IDLE = "idle"
    ADVERTS = "collecting adverts"
    VECTORS = "collecting masked vectors"


@dataclass(frozen=True)
class Result:
    """What a round released.

    Attributes:
        round: Number of the round.
        values: Reduced values by masked field: float64 or int64 arrays, Python numbers for scalars.
        survivors: Ids of the clients in the sum, sorted.
        clipped: Values that were clipped, over all clients, by real-valued field.
        bounds: Next bounds by adaptive field; the server's next offer proposes them.
        public: Values of `public` fields, by field and client.
        transcript: Hash of the offer, all adverts and all masked vectors.
    """

    round: int
    values: dict[str, Any]
    survivors: tuple[str, ...]
    clipped: dict[str, int]
    bounds: dict[str, float]
    public: dict[str, dict[str, Declared]]
    transcript: bytes


@dataclass(slots=True)
class _Round:
    number: int
    context: bytes
    schema: Schema
    encoding: Encoding
    offer_digest: bytes
    adverts: dict[str, Opened]
    sealed: dict[str, bytes]
    roster: bytes
    total: Words
    vectors: dict[str, bytes]


class Server:
    """The party that adds masked vectors up; trusted with nothing but the declared sums.

    Guarantees:
        - `result` is the sum of exactly the clients of the roster, or an error; with honest parties it is
          exact (the zero lane and the count lane say so).
        - A message that is refused changes no state.
        - Memory is one running sum and one message, whatever the number of clients.

    Args:
        identity: The server's signing key; its public key must be the one that `roster` names.
        roster: Pinned public keys of the server and of all clients.
        schema: The fields, with the bounds of the next round where they adapt (`Schema.with_bounds`).
        policy: Limits of the rounds to open.
        session: 16 bytes that name the run; drawn afresh by default. Give the old ones to go on after a stop.

    Raises:
        IdentityError: If `identity` is not the server of `roster`.
        PolicyError: If the roster has fewer clients than the policy's smallest cohort, or more than its
            largest.
        SchemaError: If a lane would need more than 64 bits for that many clients.

    Example:
        >>> from secagg import Client, Identity, MemoryRegister, Policy, Roster, Schema, averaged, counted
        >>> schema = Schema(update=averaged(1.0, weight="n", shape=(2,)), n=counted())
        >>> people = [Identity.generate(f"c{i}") for i in range(5)]
        >>> boss = Identity.generate("server")
        >>> roster = Roster(boss.public_key, {p.name: p.public_key for p in people})
        >>> server = Server(boss, roster, schema)
        >>> clients = [Client(p, roster, schema, register=MemoryRegister()) for p in people]
        >>> offer = server.open(1)
        >>> for client in clients:
        ...     _ = server.receive(client.receive(offer))
        >>> everyone = server.close_adverts()
        >>> for client in clients:
        ...     client.receive(everyone)
        ...     _ = server.receive(client.submit(update=[1.0, -1.0], n=10))
        >>> result = server.result()
        >>> result.values["update"].tolist(), result.values["n"]
        ([1.0, -1.0], 50)
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        schema: Schema,
        *,
        policy: Policy | None = None,
        session: bytes | None = None,
    ) -> None:
        if identity.public_key != roster.server:
            raise IdentityError("Expected the identity of the roster's server, got another.")
        self._identity = identity
        self._roster = roster
        self._schema = schema
        self._policy = Policy() if policy is None else policy
        self._session = secrets.token_bytes(16) if session is None else bytes(session)
        if len(self._session) != 16:
            raise ValueError(f"Expected a session of 16 bytes, got {len(self._session)}.")
        size = len(roster.clients)
        if not self._policy.min_clients <= size <= self._policy.max_clients:
            raise PolicyError(
                f"Expected a roster of {self._policy.min_clients}..{self._policy.max_clients} clients as the "
                f"policy says, got {size}. Find more clients, or lower min_clients where all of them agree."
            )
        Encoding(schema, size)  # Overflow shows now, not when a round opens.
        self._last = -1
        self._round: _Round | None = None
        self._phase = ServerPhase.IDLE

    def __repr__(self) -> str:
        where = "" if self._round is None else f", round={self._round.number}, missing={len(self.missing)}"
        return f"Server(phase={self._phase.value}{where})"

    @property
    def phase(self) -> ServerPhase:
        """Where this server stands."""
        return self._phase

    @property
    def session(self) -> bytes:
        """The 16 bytes that name the run; public."""
        return self._session

    @property
    def schema(self) -> Schema:
        """The fields, with the bounds that the next offer proposes."""
        return self._schema

    @property
    def missing(self) -> tuple[str, ...]:
        """Clients that are still to be heard in this phase, sorted."""
        if self._round is None:
            return ()
        if self._phase is ServerPhase.ADVERTS:
            return tuple(sorted(self._roster.clients.keys() - self._round.adverts.keys()))
        return tuple(sorted(self._round.adverts.keys() - self._round.vectors.keys()))

    def open(self, round: int, *, context: bytes = b"") -> bytes:
        """Open a round.

        Args:
            round: Its number, larger than any before in this session.
            context: The bytes that all clients must hold alike, such as the model.

        Returns:
            The offer, to be sent to all clients.

        Raises:
            PhaseError: If a round is under way.
            RoundReused: If this or a later round was opened before.
            ValueError: If `round` is no integer in 0..2^53 - 1.
        """
        if self._phase is not ServerPhase.IDLE:
            raise PhaseError(
                f"Expected no round under way to open round {round}, this server is {self._phase.value}. "
                "Finish with result() or abort()."
            )
        if isinstance(round, bool) or not isinstance(round, int) or not 0 <= round < MAX_ROUND:
            raise ValueError(f"Expected round to be an integer in 0..{MAX_ROUND - 1}, got {round!r}.")
        if round <= self._last:
            raise RoundReused(f"Round {round} is not after round {self._last}, which was opened already.")
        capacity = len(self._roster.clients)
        offer = Offer(
            session=self._session,
            round=round,
            sender="",
            schema=self._schema.to_bytes(),
            capacity=capacity,
            min_clients=self._policy.min_clients,
            threshold_fraction=THRESHOLD_FRACTION,
            cipher=self._policy.cipher,
        )
        sealed, digest = seal(self._identity, offer)
        self._round = _Round(
            number=round,
            context=hash_context(self._session, round, bytes(context)),
            schema=self._schema,
            encoding=Encoding(self._schema, capacity),
            offer_digest=digest,
            adverts={},
            sealed={},
            roster=b"",
            total=np.zeros(0, np.uint64),
            vectors={},
        )
        self._last = round
        self._phase = ServerPhase.ADVERTS
        return sealed

    def receive(self, message: bytes, *, sender: str | None = None) -> str:
        """Take one message of a client.

        Args:
            message: Bytes as they came.
            sender: Who delivered it, where the transport knows; a message that another client signed is
                refused then. None takes it from anybody.

        Returns:
            Id of the client that sent it.

        Raises:
            MessageError: If the bytes are malformed, forged, doubled, or not expected now; `.sender` names
                the client if it signed them.
        """
        state = self._round
        if state is None:
            raise MessageError("Refused a message: no round is open.")
        kinds: tuple[type[Message], ...] = (Advert, Masked)
        longest = max(MAX_ADVERT_BYTES, 8 * state.encoding.words + 2**12)
        opened = open_sealed(message, kinds, self._roster.clients, longest)
        header = opened.message
        name = header.sender
        if sender is not None and name != sender:
            raise MessageError(
                f"Refused a message that {sender!r} delivered: expected its own signature, got that of "
                f"{name!r}.",
                name,
            )
        if (header.session, header.round) != (self._session, state.number):
            raise MessageError(
                f"Refused a message of {name!r} for round {header.round}: round {state.number} is open.", name
            )
        if isinstance(header, Advert) and self._phase is ServerPhase.ADVERTS:
            self._take_advert(state, header, opened, bytes(message))
        elif isinstance(header, Masked) and self._phase is ServerPhase.VECTORS:
            self._take_vector(state, header, opened)
        else:
            raise MessageError(
                f"Refused a message of {name!r} in round {state.number}: none of type "
                f"{type(header).__name__} is expected while {self._phase.value}.",
                name,
            )
        return name

    def _take_advert(self, state: _Round, advert: Advert, opened: Opened, sealed: bytes) -> None:
        """Stage 1."""
        name = advert.sender
        where = f"Refused the advert of {name!r} in round {state.number}"
        if name in state.adverts:
            raise MessageError(f"{where}: it sent one before.", name)
        if advert.offer != state.offer_digest:
            raise MessageError(f"{where}: it answers another offer.", name)
        if not Statement.of(advert).fits(state.schema):
            raise MessageError(f"{where}: it does not declare the fields of the schema.", name)
        try:
            verify_ephemeral(advert.mask_key)
        except IdentityError as error:
            raise MessageError(f"{where}: {error}", name) from None
        # Without its tail-less view of the caller's buffer: only the header is needed on.
        state.adverts[name] = Opened(opened.message, memoryview(b""), opened.digest)
        state.sealed[name] = sealed

    def close_adverts(self) -> bytes:
        """End the first stage: whoever advertised is the cohort.

        Returns:
            The roster message, to be sent to every client of the cohort.

        Raises:
            PhaseError: If no adverts are being collected.
            CohortError: If fewer advertised than the policy wants; the round is over, `.blame` names who did
                not.
            RoundAborted: If clients differ from the server or among themselves where all must be alike; the
                round is over, `.blame` names them.
        """
        state = self._expect(ServerPhase.ADVERTS, "close_adverts")
        if len(state.adverts) < self._policy.min_clients:
            missing = self.missing
            self.abort()
            raise CohortError(
                f"Round {state.number} has {len(state.adverts)} clients, min_clients is "
                f"{self._policy.min_clients}. Missing: {list(missing)}. Open the next round when more are "
                "there.",
                missing,
            )
        adverts = adverts_of(state.adverts)
        try:
            if wrong := [name for name, advert in adverts.items() if advert.context != state.context]:
                raise RoundAborted(
                    f"Round {state.number}: {wrong} hold another context than the server. Send them the "
                    "server's, and open the next round.",
                    wrong,
                )
            verify_alike(state.number, state.schema, adverts)
        except RoundAborted:
            self.abort()
            raise
        state.roster = hash_roster(state.offer_digest, state.adverts)
        state.total = np.zeros(state.encoding.words, np.uint64)
        message = RosterMessage(
            session=self._session,
            round=state.number,
            sender="",
            adverts=[state.sealed[name] for name in sorted(state.sealed)],
        )
        self._phase = ServerPhase.VECTORS
        return seal(self._identity, message)[0]

    def _take_vector(self, state: _Round, masked: Masked, opened: Opened) -> None:
        """Stage 4: into the running sum."""
        name = masked.sender
        where = f"Refused the vector of {name!r} in round {state.number}"
        if name not in state.adverts:
            raise MessageError(f"{where}: it is not in the roster of this round.", name)
        if name in state.vectors:
            raise MessageError(f"{where}: it sent one before.", name)
        if masked.roster != state.roster:
            raise MessageError(f"{where}: it was masked for another roster.", name)
        if opened.tail.nbytes != 8 * state.encoding.words:
            raise MessageError(
                f"{where}: expected {state.encoding.words} words, got {opened.tail.nbytes} bytes.", name
            )
        np.add(state.total, np.frombuffer(opened.tail, "<u8"), out=state.total)
        state.vectors[name] = opened.digest

    def result(self) -> Result:
        """End the round: check the sum, decode it, and adopt the next bounds of adaptive fields.

        Call it when `missing` is empty, or when waiting has become pointless.

        Returns:
            What the round released.

        Raises:
            PhaseError: If no vectors are being collected.
            RoundAborted: If a client of the roster is missing (`.blame` names it) or masks did not cancel;
                the round is over and nothing of it is released.
        """
        state = self._expect(ServerPhase.VECTORS, "result")
        missing, survivors = self.missing, tuple(sorted(state.vectors))
        self.abort()  # Whatever happens below, no further vector can enter this sum.
        if missing:
            raise RoundAborted(
                f"Round {state.number} lacks the vectors of {list(missing)}; its sum stays masked and "
                "nothing is released. Open the next round.",
                missing,
            )
        try:
            reduced = state.encoding.decode(state.total, len(survivors))
        except EncodingError as error:
            raise RoundAborted(f"Round {state.number}: {error} Nothing is released.") from error
        self._schema = self._schema.with_bounds(reduced.bounds)
        return Result(
            round=state.number,
            values=reduced.values,
            survivors=survivors,
            clipped=reduced.clipped,
            bounds=reduced.bounds,
            public=_published(adverts_of(state.adverts)),
            transcript=hash_parts("transcript", state.roster, *(state.vectors[name] for name in survivors)),
        )

    def abort(self) -> None:
        """Give up the round under way, if any; the next one may be opened."""
        self._round = None
        self._phase = ServerPhase.IDLE

    def _expect(self, phase: ServerPhase, call: str) -> _Round:
        if self._round is None or self._phase is not phase:
            raise PhaseError(
                f"Expected phase {phase.value!r} for {call}(), this server is {self._phase.value!r}."
            )
        return self._round


def _published(adverts: Mapping[str, Advert]) -> dict[str, dict[str, Declared]]:
    published: dict[str, dict[str, Declared]] = {}
    for name in sorted(adverts):
        for field, value in Statement.of(adverts[name]).public.items():
            published.setdefault(field, {})[name] = value
    return published
