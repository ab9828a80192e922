"""Server: the state machine that opens rounds, adds masked vectors up, and decodes their sum.

    stage           call                    comes in, goes out                      phase after
    0 offer         open(round)             → Offer, to all clients                 ADVERTS
    1 advertise     receive(bytes)          ← Advert, one a client                  ADVERTS
    2 roster        advance()               → RosterMessage, to who advertised      SHARES (sparse: BEACON)
                    draw_graph(beacon)      (sparse graph only)                     SHARES
    3 shares        receive(bytes)          ← Shares, one a client (BEACON, too)    SHARES
                    advance()               → Delivery, to each its own             VECTORS
    4 vector        receive(bytes)          ← Masked, one a client                  VECTORS
                    advance()               → Survivors, to whose vector came       CONSISTENCY
    5 consistency   receive(bytes)          ← Consistency, one a survivor           CONSISTENCY
                    advance()               → Agreement, to each its own            UNMASKING
    6 unmask        receive(bytes)          ← Unmask, one a survivor                UNMASKING
                    result()                                                        IDLE

`advance` may be called when nobody is missing or waiting has become pointless: who has not answered by then
has dropped, and an answer that comes later is refused. It keeps one running sum, never a client's vector.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from bisect import bisect_left
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .cohort import (
    Statement,
    adverts_of,
    bind_beacon,
    hash_context,
    hash_roster,
    hash_survivors,
    public_keys,
    verify_alike,
)
from .encoding import Encoding, Words
from .ephemeral import RECEIPT_BYTES, Binding
from .errors import (
    CohortError,
    EncodingError,
    IdentityError,
    MessageError,
    PhaseError,
    PolicyError,
    RoundAborted,
    RoundReused,
    SecAggError,
    named,
)
from .exchange import Table, exchange, table
from .graph import COMPLETE_UP_TO, Graph, draw
from .guard import Guard, one_at_a_time
from .keys import Identity, Roster, hash_parts
from .masks import verify_threads
from .messages import (
    MAX_ADVERT_BYTES,
    MAX_ROUND,
    Advert,
    Agreement,
    Consistency,
    Delivery,
    Masked,
    Message,
    Offer,
    Opened,
    RosterMessage,
    Shares,
    Survivors,
    Unmask,
    open_sealed,
    seal,
    signature_of,
    to_bits,
)
from .policy import Policy
from .reductions import Declared
from .schema import Schema
from .sharing import box_bytes
from .spool import Spool
from .unmasking import Unmasking


class ServerPhase(Enum):
    """Where a server stands."""

    IDLE = "idle"
    ADVERTS = "collecting adverts"
    BEACON = "waiting for the beacon"
    SHARES = "collecting shares"
    VECTORS = "collecting masked vectors"
    CONSISTENCY = "collecting signatures of the survivors"
    UNMASKING = "collecting shares to unmask"


@dataclass(frozen=True, eq=False)
class Result:
    """What a round released.

    Attributes:
        round: Number of the round.
        values: Reduced values by masked field: float64 or int64 arrays, Python numbers for scalars.
        survivors: Ids of the clients in the sum, sorted.
        dropped: Ids of the clients that advertised and are not in the sum, sorted.
        faulty: Ids of clients whose shares were found wrong, sorted (only as many are looked at as it takes);
            the sum is right in spite of them. (Or the clients whose secrets these were dealt them wrong ones:
            nobody can tell the two apart.)
        clipped: Values that were clipped, over all clients, by real-valued field.
        bounds: Next bounds by adaptive field; the server's next offer proposes them.
        public: Values of `public` fields, by field and client.
        transcript: Hash of the offer, all adverts, the survivors and their masked vectors.
    """

    round: int
    values: dict[str, Any]
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    faulty: tuple[str, ...]
    clipped: dict[str, int]
    bounds: dict[str, float]
    public: dict[str, dict[str, Declared]]
    transcript: bytes

    def __repr__(self) -> str:
        fields = ", ".join(self.values)
        return (
            f"Result(round={self.round}, {len(self.survivors)} survivors, {len(self.dropped)} dropped, "
            f"{len(self.faulty)} faulty, fields: {fields}, clipped={sum(self.clipped.values())})"
        )


@dataclass(slots=True)
class _Round:
    """All that the server knows of the round under way."""

    offer: Offer
    offer_digest: bytes
    context: bytes
    schema: Schema
    encoding: Encoding
    adverts: dict[str, Opened] = field(default_factory=dict)
    sealed: dict[str, bytes] = field(default_factory=dict)
    roster: bytes = b""
    graph: Graph = field(default_factory=lambda: Graph.complete([]))
    early: dict[str, bytes] = field(default_factory=dict)
    boxes: Table = field(default_factory=lambda: table(Graph.complete([]), 1))
    seeds: dict[str, bytes] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    senders: dict[str, int] = field(default_factory=dict)
    receipts: dict[str, bytes] = field(default_factory=dict)
    total: Words = field(default_factory=lambda: np.zeros(0, np.uint64))
    spools: dict[str, Spool] = field(default_factory=dict)
    vectors: dict[str, bytes] = field(default_factory=dict)
    survivors: bytes = b""
    agreed: bytes = b""
    signatures: dict[str, bytes] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    unmasking: Unmasking | None = None

    @property
    def number(self) -> int:
        """Number of the round."""
        return self.offer.round

    def forget_parts(self) -> None:
        """Let vectors go that did not come whole."""
        for spool in self.spools.values():
            spool.close()
        self.spools = {}

    @property
    def threshold(self) -> int:
        """Shares that give a secret back, as the offer says."""
        return self.graph.threshold(self.offer.threshold_fraction)


class Server:
    """The party that adds masked vectors up; trusted with nothing but the declared sums.

    Guarantees:
        - `result` is the sum of exactly the survivors, or an error; with honest parties and whatever drops,
          delays and losses it is exact (the zero lane and the count lane say so).
        - A message that is refused changes no state.
        - Memory is one running sum, one message, and what is short of each client: its adverts, its boxes
          until they are delivered, its shares; never its vector.

    Args:
        identity: The server's signing key; its public key must be the one that `roster` names.
        roster: Pinned public keys of the server and of all clients.
        schema: The fields, with the bounds of the next round where they adapt (`Schema.with_bounds`).
        policy: Limits of the rounds to open.
        session: 16 bytes that name the run; drawn afresh by default. Give the old ones to go on after a stop.
        degree: Neighbours of a client in cohorts of more than 32, even, with a beacon (`draw_graph`), as
            `secagg.graph.plan` gives it; 0 makes all the others neighbours.
        scratch: Folder for what does not fit in memory: the running sum, and vectors that come in parts until
            they are whole (masked both). By default the sum is in memory, and parts are with the system's
            temporary files.

    Raises:
        IdentityError: If `identity` is not the server of `roster`.
        PolicyError: If the roster has fewer clients than the policy's smallest cohort, or more than its
            largest.
        SchemaError: If a lane would need more than 64 bits for that many clients.

    Example:
        >>> from secagg import Client, ClientPhase, Identity, MemoryRegister, Roster, Schema
        >>> from secagg import averaged, counted
        >>> schema = Schema(update=averaged(1.0, weight="n", shape=(2,)), n=counted())
        >>> people = [Identity.generate(f"c{i}") for i in range(5)]
        >>> boss = Identity.generate("server")
        >>> roster = Roster(boss.public_key, {p.name: p.public_key for p in people})
        >>> server = Server(boss, roster, schema)
        >>> clients = [Client(p, roster, schema, register=MemoryRegister()) for p in people]
        >>> offer = server.open(1)
        >>> answers = [client.receive(offer) for client in clients]
        >>> while server.phase is not ServerPhase.UNMASKING:
        ...     for answer in answers:
        ...         _ = server.receive(answer)
        ...     messages, answers = server.advance(), []
        ...     for client in clients:
        ...         answer = client.receive(messages[client.name])
        ...         if client.phase is ClientPhase.READY:
        ...             answer = client.submit(update=[1.0, -1.0], n=10)
        ...         answers.append(answer)
        >>> for answer in answers:
        ...     _ = server.receive(answer)
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
        degree: int = 0,
        scratch: str | Path | None = None,
    ) -> None:
        if identity.public_key != roster.server:
            raise IdentityError("Expected the identity of the roster's server, got another.")
        self._guard = Guard()
        self._identity = identity
        self._roster = roster
        self._schema = schema
        self._policy = Policy() if policy is None else policy
        if session is not None and (not isinstance(session, bytes) or len(session) != 16):
            got = f"{len(session)} bytes" if isinstance(session, bytes) else type(session).__name__
            raise ValueError(f"Expected a session of 16 bytes, got {got}. Leave it out to draw one.")
        self._session = secrets.token_bytes(16) if session is None else session
        size = len(roster.clients)
        if not self._policy.min_clients <= size <= self._policy.max_clients:
            raise PolicyError(
                f"Expected a roster of {self._policy.min_clients}..{self._policy.max_clients} clients as the "
                f"policy says, got {size}. Find more clients, or lower min_clients where all of them agree."
            )
        Encoding(schema, size)  # Overflow shows now, not when a round opens.
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0 or degree % 2:
            raise ValueError(f"Expected degree to be an even number of neighbours, or 0, got {degree!r}.")
        self._degree = degree
        if degree and not self._policy.sparse:
            raise PolicyError(
                f"Expected a policy with sparse=True for degree={degree}: the server's stands for what all "
                "agree to. Take Plan.policy()."
            )
        self._scratch = None if scratch is None else Path(scratch)
        if self._scratch is not None and not self._scratch.is_dir():
            raise ValueError(f"Expected scratch= to be a folder, got {str(self._scratch)!r}.")
        if not degree:
            everybody = Graph.complete(roster.clients)
            self._policy.verify_graph(None, everybody, everybody.threshold(self._policy.threshold_fraction))
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
    def round(self) -> int | None:
        """Number of the round under way; None where there is none."""
        return None if self._round is None else self._round.number

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
        state = self._round
        match self._phase:
            case _ if state is None:
                return ()
            case ServerPhase.ADVERTS:
                return tuple(sorted(self._roster.clients.keys() - state.adverts.keys()))
            case ServerPhase.BEACON:
                return tuple(sorted(state.adverts.keys() - state.early.keys()))
            case ServerPhase.SHARES:
                return tuple(sorted(state.adverts.keys() - state.seeds.keys()))
            case ServerPhase.VECTORS:
                return tuple(sorted(state.shared - state.vectors.keys()))
            case ServerPhase.CONSISTENCY:
                return tuple(sorted(state.vectors.keys() - state.signatures.keys()))
            case ServerPhase.UNMASKING if state.unmasking is not None:
                return tuple(sorted(state.asked - state.unmasking.answered))
            case _:
                return ()

    @property
    def enough(self) -> bool:
        """Whether this stage can end well now, although somebody may still be missing."""
        state = self._round
        if state is None or self._phase is ServerPhase.BEACON:
            return False
        if state.unmasking is not None:
            return not state.unmasking.lacking()
        heard: dict[ServerPhase, Mapping[str, Any]] = {
            ServerPhase.ADVERTS: state.adverts,
            ServerPhase.SHARES: state.seeds,
            ServerPhase.VECTORS: state.vectors,
            ServerPhase.CONSISTENCY: state.signatures,
        }
        left = heard[self._phase]
        return len(left) >= self._fewest(state) and not self._stranded(state, left)

    def _fewest(self, state: _Round) -> int:
        """Fewest clients that a stage must leave.

        The smallest cohort counts those in the sum; of them, as many must go on as the threshold says.
        """
        complete = state.graph.names and not state.graph.degree
        fewest = state.threshold if complete else 1
        if self._phase is ServerPhase.CONSISTENCY:
            return fewest
        return max(self._policy.min_clients, fewest)

    @one_at_a_time
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
            TypeError: If `context` is not bytes.
        """
        if self._phase is not ServerPhase.IDLE:
            raise PhaseError(
                f"Expected no round under way to open round {round}, this server is {self._phase.value}. "
                "Finish with result() or abort()."
            )
        if isinstance(round, bool) or not isinstance(round, int) or not 0 <= round < MAX_ROUND:
            raise ValueError(f"Expected round to be an integer in 0..{MAX_ROUND - 1}, got {round!r}.")
        if not isinstance(context, (bytes, bytearray, memoryview)):
            raise TypeError(f"Expected context as bytes, got {type(context).__name__}.")
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
            threshold_fraction=float(self._policy.threshold_fraction),
            degree=self._degree,
            cipher=self._policy.cipher,
            hybrid=self._policy.hybrid,
        )
        sealed, digest = seal(self._identity, offer)
        self._round = _Round(
            offer=offer,
            offer_digest=digest,
            context=hash_context(self._session, round, bytes(context)),
            schema=self._schema,
            encoding=Encoding(self._schema, capacity),
        )
        self._last = round
        self._phase = ServerPhase.ADVERTS
        return sealed

    @one_at_a_time
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
        return self._take(state, message, sender)

    def _take(self, state: _Round, message: bytes, sender: str | None) -> str:
        opened = open_sealed(message, _FROM_CLIENTS, self._roster.clients, self._largest_message(state))
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
        where = f"in round {state.number}"
        match header, self._phase:
            case Advert(), ServerPhase.ADVERTS:
                self._take_advert(state, header, opened, bytes(message))
            case Shares(), ServerPhase.BEACON if name in state.adverts:
                if name in state.early:
                    raise MessageError(f"Refused the shares of {name!r} {where}: it sent one before.", name)
                state.early[name] = bytes(message)  # it has the beacon sooner than this server
            case Shares(), ServerPhase.SHARES:
                self._verify_known(state, header, "shares", state.adverts, state.seeds)
                self._take_shares(state, header, opened.tail)
            case Masked(), ServerPhase.VECTORS:
                self._verify_known(state, header, "vector", state.shared, state.vectors)
                self._take_vector(state, header, opened)
            case Consistency(), ServerPhase.CONSISTENCY:
                self._verify_known(state, header, "signature", state.vectors, state.signatures)
                self._take_signature(state, header, message)
            case Unmask(), ServerPhase.UNMASKING if state.unmasking is not None:
                self._verify_known(state, header, "shares", state.asked, state.unmasking.answered)
                self._take_unmask(state, state.unmasking, header, opened.tail)
            case _:
                raise MessageError(
                    f"Refused a message of {name!r} {where}: none of type {type(header).__name__} is "
                    f"expected while {self._phase.value}.",
                    name,
                )
        return name

    def _largest_message(self, state: _Round) -> int:
        match self._phase:
            case ServerPhase.BEACON:
                tail = box_bytes(state.offer.hybrid) * (state.offer.degree + 1)
            case ServerPhase.SHARES:
                tail = box_bytes(state.offer.hybrid) * len(state.graph.names)
            case ServerPhase.UNMASKING:
                tail = 36 * len(state.graph.names)
            case ServerPhase.VECTORS:
                tail = 8 * state.encoding.words + RECEIPT_BYTES * len(state.graph.names)
            case _:
                tail = 0
        return max(MAX_ADVERT_BYTES, tail + 2**12)

    def _verify_known(
        self, state: _Round, header: Any, what: str, senders: Container[str], heard: Container[str]
    ) -> None:
        """What stages 3 to 6 share: one message a client of this round, about this roster."""
        name = header.sender
        where = f"Refused the {what} of {name!r} in round {state.number}"
        if name not in senders:
            raise MessageError(f"{where}: it is not, or no longer, in this round.", name)
        if name in heard:
            raise MessageError(f"{where}: it sent one before.", name)
        if header.roster != state.roster:
            raise MessageError(f"{where}: it is for another roster or beacon.", name)

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
            public_keys(advert).verify(state.offer.hybrid)
        except IdentityError as error:
            raise MessageError(f"{where}: {error}", name) from None
        # Without its tail-less view of the caller's buffer: only the header is needed on.
        state.adverts[name] = Opened(opened.message, memoryview(b""), opened.digest)
        state.sealed[name] = sealed

    @one_at_a_time
    def advance(self) -> dict[str, bytes]:
        """End the stage under way and begin the next: who has not answered has dropped.

        Returns:
            The messages to send, by client.

        Raises:
            PhaseError: If nothing is being collected, or only `draw_graph` or `result` can follow.
            CohortError: If too few answered; the round is over, `.blame` names who did not.
            PolicyError: If the cohort or its graph are weaker than this server's policy; the round is over.
            RoundAborted: If clients differ from the server or among themselves where all must be alike; the
                round is over, `.blame` names them.
            OSError: If the folder `scratch` has no room for the sum; make some, and call again.
        """
        state, phase = self._round, self._phase
        ends = {
            ServerPhase.ADVERTS: self._end_adverts,
            ServerPhase.SHARES: self._end_shares,
            ServerPhase.VECTORS: self._end_vectors,
            ServerPhase.CONSISTENCY: self._end_consistency,
        }
        if state is None or phase not in ends:
            waiting = {ServerPhase.BEACON: "draw_graph() with the beacon", ServerPhase.UNMASKING: "result()"}
            follows = waiting.get(phase, "open()")
            raise PhaseError(
                f"Expected a stage that advance() can end, this server is {phase.value!r}. Call {follows}."
            )
        try:
            return ends[phase](state)
        except SecAggError:
            self._drop()
            raise

    def _verify_left(self, state: _Round, left: Collection[str], stage: str) -> None:
        fewest = self._fewest(state)
        if len(left) < fewest:
            missing = self.missing
            rules = (
                [] if self._phase is ServerPhase.CONSISTENCY else [f"min_clients={self._policy.min_clients}"]
            )
            rules += [f"threshold={state.threshold}"] if state.graph.names else []
            rule = ", ".join(rules)
            raise CohortError(
                f"Round {state.number} has {len(left)} clients after {stage}, expected at least {fewest} "
                f"({rule}). Missing: {named(missing)}. Open the next round when more are there.",
                missing,
            )

    def _end_adverts(self, state: _Round) -> dict[str, bytes]:
        """Stage 2: whoever advertised is the cohort."""
        self._verify_left(state, state.adverts, "advertising")
        adverts = adverts_of(state.adverts)
        if wrong := [name for name, advert in adverts.items() if advert.context != state.context]:
            raise RoundAborted(
                f"Round {state.number}: {wrong} hold another context than the server. Send them the "
                "server's, and open the next round.",
                wrong,
            )
        verify_alike(state.number, state.schema, adverts)
        state.roster = hash_roster(state.offer_digest, state.adverts)
        message = RosterMessage(
            *self._header(state), adverts=[state.sealed[name] for name in sorted(state.sealed)]
        )
        state.sealed = {}
        if state.offer.degree and len(adverts) > COMPLETE_UP_TO:
            self._phase = ServerPhase.BEACON
        else:
            self._begin_shares(state, Graph.complete(adverts))
        return dict.fromkeys(adverts, seal(self._identity, message)[0])

    @one_at_a_time
    def draw_graph(self, beacon: bytes) -> None:
        """Draw a sparse graph's neighbourhoods; the same bytes as every client's caller hands in.

        Shares of clients that had the beacon sooner were kept, and are taken now.

        Raises:
            PhaseError: If no roster waits for a beacon.
            ValueError: If the beacon has fewer than 16 bytes.
            PolicyError: If the graph is weaker than this server's policy; the round is over.
        """
        state = self._expect(ServerPhase.BEACON, "draw_graph")
        roster = bind_beacon(state.roster, beacon)
        state.roster = roster
        try:
            self._begin_shares(state, draw(state.adverts, state.offer.degree, roster))
        except BaseException:
            self._drop()
            raise
        early, state.early = state.early, {}
        for message in early.values():
            with contextlib.suppress(MessageError):  # of another beacon: that client has dropped
                self._take(state, message, None)

    def _begin_shares(self, state: _Round, graph: Graph) -> None:
        state.graph = graph
        self._policy.verify_graph(state.number, graph, state.threshold)
        state.boxes = table(graph, box_bytes(state.offer.hybrid))
        self._phase = ServerPhase.SHARES

    def _header(self, state: _Round) -> tuple[bytes, int, str]:
        return self._session, state.number, ""

    def _take_shares(self, state: _Round, shares: Shares, boxes: memoryview) -> None:
        """Stage 3: boxes that this server cannot open."""
        name = shares.sender
        neighbours = state.boxes.shape[1]
        if boxes.nbytes != neighbours * state.boxes.itemsize:
            raise MessageError(
                f"Refused the shares of {name!r} in round {state.number}: expected {neighbours} boxes, got "
                f"{boxes.nbytes} bytes.",
                name,
            )
        state.boxes[bisect_left(state.graph.names, name)] = np.frombuffer(boxes, state.boxes.dtype)
        state.seeds[name] = shares.seed

    def _end_shares(self, state: _Round) -> dict[str, bytes]:
        """Stage 3: to each client the boxes that its neighbours sealed for it."""
        self._verify_left(state, state.seeds, "sharing")
        state.total = self._zeros(state.encoding.words)  # first: on a full disk nothing has changed
        state.shared = frozenset(state.seeds)
        delivered = {}
        for name, there, boxes in exchange(state.graph, state.boxes, state.shared):
            state.senders[name] = int(np.count_nonzero(there))
            present = np.packbits(there, bitorder="little").tobytes()
            message = Delivery(*self._header(state), roster=state.roster, present=present)
            delivered[name] = seal(self._identity, message, boxes)[0]
        if not state.offer.hybrid:  # A hybrid round's boxes also hold what unmasking needs.
            state.boxes = table(Graph.complete([]), 1)
        self._phase = ServerPhase.VECTORS
        return delivered

    def _zeros(self, words: int) -> Words:
        if self._scratch is None:
            return np.zeros(words, np.uint64)
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            if hasattr(os, "posix_fallocate"):
                # Else a disk that becomes full is found when a page is written, and the process is killed.
                os.posix_fallocate(file.fileno(), 0, 8 * words)
            return np.memmap(file, np.uint64, "w+", shape=(words,))  # zeros; it outlives its name

    def _box(self, state: _Round, sender: str, receiver: str) -> bytes:
        place = bisect_left(state.graph.holders(sender), receiver)
        place -= sender < receiver  # it sealed none for itself
        box: bytes = state.boxes[bisect_left(state.graph.names, sender), place].tobytes()
        return box

    def _take_vector(self, state: _Round, masked: Masked, opened: Opened) -> None:
        """Stage 4: into the running sum, once the whole of it is there."""
        name, size = masked.sender, opened.tail.nbytes
        spool = state.spools.get(name)
        start = 0 if spool is None else spool.words
        if masked.start != start or size % 8 or not 0 < size <= 8 * (state.encoding.words - start):
            raise MessageError(
                f"Refused the vector of {name!r} in round {state.number}: expected words from {start} on, "
                f"{state.encoding.words} in all, got {size} bytes from word {masked.start} on.",
                name,
            )
        receipts = RECEIPT_BYTES * state.senders[name] if masked.start == 0 else 0
        if len(masked.receipts) != receipts:
            raise MessageError(
                f"Refused the vector of {name!r} in round {state.number}: expected {receipts} bytes of "
                f"receipts, got {len(masked.receipts)}.",
                name,
            )
        if size == 8 * state.encoding.words:
            np.add(state.total, np.frombuffer(opened.tail, "<u8"), out=state.total)
            state.vectors[name] = opened.digest
            state.receipts[name] = masked.receipts
            return
        if spool is None:
            spool = Spool(self._scratch)
        spool.append(opened.tail, opened.digest)
        state.spools[name] = spool
        state.receipts.setdefault(name, masked.receipts)
        if spool.words == state.encoding.words:
            state.vectors[name] = spool.pour(state.total)
            del state.spools[name]

    def _end_vectors(self, state: _Round) -> dict[str, bytes]:
        """Stage 5: the survivors are those whose vectors came."""
        self._verify_left(state, state.vectors, "submitting")
        state.forget_parts()
        survivors = frozenset(state.vectors)
        self._policy.verify_survivors(
            state.number, len(survivors), len(state.graph.names), state.offer.min_clients
        )
        self._verify_neighbourhoods(state, survivors)
        state.survivors = to_bits(state.graph.names, survivors)
        state.agreed = hash_survivors(state.roster, state.survivors)
        message = Survivors(*self._header(state), roster=state.roster, survivors=state.survivors)
        self._phase = ServerPhase.CONSISTENCY
        return dict.fromkeys(sorted(survivors), seal(self._identity, message)[0])

    def _stranded(self, state: _Round, left: Collection[str]) -> list[str]:
        """Clients whose masks are in the sum, and of whose holders too few are left to take them off."""
        if not state.graph.degree or self._phase not in (ServerPhase.VECTORS, ServerPhase.CONSISTENCY):
            return []
        near = zip(
            state.graph.names,
            state.graph.count_near(state.vectors).tolist(),
            state.graph.count_near(left).tolist(),
            strict=True,
        )
        return [
            name
            for name, survivors, there in near
            if name in state.shared and survivors and there < state.threshold
        ]

    def _verify_neighbourhoods(self, state: _Round, left: Collection[str]) -> None:
        """In a sparse graph enough clients in all are not always enough around each."""
        if few := self._stranded(state, left):
            raise CohortError(
                f"Round {state.number}: fewer than threshold={state.threshold} of the holders of "
                f"{len(few)} clients are left, so their masks stay on. Missing: {named(self.missing)}. Open "
                "the next round.",
                self.missing,
            )

    def _take_signature(self, state: _Round, consistency: Consistency, message: bytes) -> None:
        """Stage 5."""
        name = consistency.sender
        if consistency.survivors != state.agreed:
            raise MessageError(
                f"Refused the signature of {name!r} in round {state.number}: it is for another set of "
                "survivors.",
                name,
            )
        state.signatures[name] = signature_of(message)

    def _end_consistency(self, state: _Round) -> dict[str, bytes]:
        """Stage 6: to each signer the signatures of its neighbourhood."""
        self._verify_left(state, state.signatures, "signing")
        self._verify_neighbourhoods(state, state.signatures)
        receipts = self._receipts(state)
        # In the complete graph all holders are the same ones: once is enough.
        shown = None if state.graph.degree else self._shown(state, state.graph.names)
        agreements = {}
        for name in sorted(state.signatures):
            near = shown or self._shown(state, state.graph.holders(name))
            if near is None:
                continue  # It could not go on.
            signers, signatures = near
            message = Agreement(*self._header(state), roster=state.roster, signers=signers)
            agreements[name] = seal(self._identity, message, signatures + receipts[name])[0]
        state.asked = frozenset(agreements)
        adverts = adverts_of(state.adverts)
        state.unmasking = Unmasking(
            state.graph,
            state.threshold,
            state.shared,
            frozenset(state.vectors),
            {name: public_keys(advert) for name, advert in adverts.items()},
            state.seeds,
            Binding(self._session, state.number, state.roster, state.context, state.schema.digest),
            state.offer.cipher,
            state.offer.hybrid,
            lambda sender, receiver: self._box(state, sender, receiver),
        )
        self._phase = ServerPhase.UNMASKING
        return agreements

    def _shown(self, state: _Round, holders: tuple[str, ...]) -> tuple[bytes, bytes] | None:
        """Which of a client's holders signed, as many as it takes, and their signatures; None if too few."""
        signers = [peer for peer in holders if peer in state.signatures][: state.threshold]
        if len(signers) < state.threshold:
            return None
        return to_bits(holders, signers), b"".join(state.signatures[peer] for peer in signers)

    def _receipts(self, state: _Round) -> dict[str, bytes]:
        """For each survivor the receipts of its surviving neighbours, by their ids."""
        given = table(state.graph, RECEIPT_BYTES)
        near = state.graph.neighbour_places()
        shared = np.array([name in state.shared for name in state.graph.names])
        for name in state.vectors:
            place = bisect_left(state.graph.names, name)
            given[place, shared[near[place]]] = np.frombuffer(state.receipts[name], given.dtype)
        return {name: receipts for name, _, receipts in exchange(state.graph, given, state.vectors)}

    def _take_unmask(self, state: _Round, unmasking: Unmasking, unmask: Unmask, shares: memoryview) -> None:
        """Stage 6: one share of each peer."""
        name = unmask.sender
        wrong = (
            "they are for another set of survivors"
            if unmask.survivors != state.agreed
            else unmasking.take(name, shares)
        )
        if wrong:
            raise MessageError(f"Refused the shares of {name!r} in round {state.number}: {wrong}.", name)

    @one_at_a_time
    def result(self, *, out: Mapping[str, NDArray[Any]] | None = None, threads: int = 1) -> Result:
        """End the round: take the masks off, check the sum, decode it, and adopt the next adaptive bounds.

        Call it when `enough` is true or waiting has become pointless.

        Args:
            out: Arrays that receive some fields' results (see `Encoding.decode`); for results that do not fit
                in memory, `numpy.memmap`.
            threads: Threads that take masks off.

        Returns:
            What the round released.

        Raises:
            PhaseError: If no shares to unmask are being collected.
            EncodingError: If an array of `out` cannot hold its result; the round goes on.
            ValueError: If `threads` is no positive integer; the round goes on.
            CohortError: If too few shares came (`.blame` names who is missing); the round is over and nothing
                of it is released.
            RoundAborted: If shares do not give a secret back (`.blame` names whose), or masks did not cancel;
                the round is over and nothing of it is released.
        """
        state = self._expect(ServerPhase.UNMASKING, "result")
        verify_threads(threads)
        held = {} if out is None else dict(out)
        state.encoding.verify_out(held)
        unmasking, missing = state.unmasking, self.missing
        assert unmasking is not None  # noqa: S101  # our invariant: made when the phase began
        self._drop()  # Whatever happens below, nothing further can enter this sum.
        if lacking := unmasking.lacking():
            fewest = min(lacking.values())
            raise CohortError(
                f"Round {state.number} has {fewest} shares of a client's secret, threshold is "
                f"{state.threshold}; its sum stays masked and nothing is released. Missing: "
                f"{named(missing)}. Open the next round.",
                missing,
            )
        unmasking.remove(state.total, threads)
        survivors = tuple(sorted(state.vectors))
        try:
            reduced = state.encoding.decode(state.total, len(survivors), held)
        except EncodingError as error:
            raise RoundAborted(f"Round {state.number}: {error} Nothing is released.") from error
        self._schema = self._schema.with_bounds(reduced.bounds)
        return Result(
            round=state.number,
            values=reduced.values,
            survivors=survivors,
            dropped=tuple(sorted(state.adverts.keys() - state.vectors.keys())),
            faulty=tuple(sorted(unmasking.faulty)),
            clipped=reduced.clipped,
            bounds=reduced.bounds,
            public=_published(adverts_of(state.adverts)),
            transcript=hash_parts("transcript", state.agreed, *(state.vectors[name] for name in survivors)),
        )

    @one_at_a_time
    def abort(self) -> None:
        """Give up the round under way, if any; the next one may be opened."""
        self._drop()

    def _drop(self) -> None:
        if self._round is not None:
            self._round.forget_parts()
        self._round = None
        self._phase = ServerPhase.IDLE

    def _expect(self, phase: ServerPhase, call: str) -> _Round:
        if self._round is None or self._phase is not phase:
            raise PhaseError(
                f"Expected phase {phase.value!r} for {call}(), this server is {self._phase.value!r}."
            )
        return self._round


_FROM_CLIENTS: Final[tuple[type[Message], ...]] = (Advert, Shares, Masked, Consistency, Unmask)


def _published(adverts: Mapping[str, Advert]) -> dict[str, dict[str, Declared]]:
    published: dict[str, dict[str, Declared]] = {}
    for name in sorted(adverts):
        for subject, value in Statement.of(adverts[name]).public.items():
            published.setdefault(subject, {})[name] = value
    return published
