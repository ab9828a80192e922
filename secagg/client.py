"""Client: the state machine of one participant; bytes in, bytes out, no I/O but the register it is given.

    stage           comes in                goes out            phase after
    0 offer         Offer                   (1) Advert          ADVERTISED
    2 roster        RosterMessage           (3) Shares          SHARED      (complete graph)
                                            nothing             ROSTERED    (sparse graph)
                    draw_graph(beacon)      (3) Shares          SHARED
    3 delivery      Delivery                nothing             READY
    4 vector        submit(values)          Masked              SUBMITTED
    5 survivors     Survivors               Consistency         SIGNED
    6 agreement     Agreement               Unmask              IDLE

A message is refused (MessageError) where it is not one that the server signed for this stage; nothing changes
then. What the server did sign is checked against this client's own view and policy; where it does not hold,
the round is given up: its secrets are dropped and nothing more of it is sent. So it is, too, where what the
server signed says that the round goes on without this client: a roster or survivors that lack it, or any
message of a later stage. (Bonawitz et al. 2017, Fig. 4, with the consistency check of the malicious variant
always on.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeAlias

from .blocks import Rounding
from .cohort import Statement, adverts_of, bind_beacon, hash_roster, hash_survivors, public_keys, verify_alike
from .encoding import Encoding, Words
from .ephemeral import RECEIPT_BYTES, Binding
from .errors import (
    CohortError,
    EncodingError,
    IdentityError,
    MessageError,
    PhaseError,
    RoundAborted,
    RoundReused,
    SchemaError,
)
from .graph import COMPLETE_UP_TO, Graph, draw
from .guard import Guard, one_at_a_time
from .keys import Identity, Roster, Secret
from .masks import KeystreamRounding, Masks, MaskStream
from .messages import (
    MAX_ADVERT_BYTES,
    MAX_CLIENTS,
    MAX_OFFER_BYTES,
    SIGNATURE_BYTES,
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
    from_bits,
    is_signed,
    open_sealed,
    seal,
)
from .policy import Policy
from .reductions import Declared
from .register import Register
from .schema import Schema
from .sharing import RoundSecrets, box_bytes

# Rounding keeps a sum unbiased; masks keep it secret. No secrecy rests on these draws.
RoundingFactory: TypeAlias = Callable[[bytes, int], Rounding]


class ClientPhase(Enum):
    """Where a client stands."""

    IDLE = "idle"
    ADVERTISED = "advertised"
    ROSTERED = "waiting for the beacon"
    SHARED = "shared"
    READY = "ready"
    SUBMITTED = "submitted"
    SIGNED = "signed"


_FROM_SERVER: Final[tuple[type[Message], ...]] = (RosterMessage, Delivery, Survivors, Agreement)
"""What a server sends a client in a round, in this order; each only to clients that answered the last."""
_AWAITED: Final[dict[ClientPhase, tuple[type[Message], ...]]] = {
    ClientPhase.ADVERTISED: (RosterMessage,),
    ClientPhase.SHARED: (Delivery,),
    ClientPhase.SUBMITTED: (Survivors,),
    ClientPhase.SIGNED: (Agreement,),
}
_SHOWN: Final = 3
"""Fields that an error describes."""
_LATER: Final = {
    ClientPhase.IDLE: (),
    ClientPhase.ADVERTISED: _FROM_SERVER[1:],
    ClientPhase.ROSTERED: _FROM_SERVER[1:],
    ClientPhase.SHARED: _FROM_SERVER[2:],
    ClientPhase.READY: _FROM_SERVER[2:],
    ClientPhase.SUBMITTED: _FROM_SERVER[3:],
    ClientPhase.SIGNED: (),
}
"""What it sends only when it hears no answer to this phase's stage any more."""


@dataclass(slots=True, repr=False)
class _Round(Secret):
    """All that a client knows of the round it is in; dropped as one."""

    session: bytes
    number: int
    offer: Offer
    offer_digest: bytes
    advert_digest: bytes
    statement: Statement
    schema: Schema
    encoding: Encoding
    secrets: RoundSecrets | None
    adverts: dict[str, Advert] = field(default_factory=dict)
    roster: bytes = b""
    graph: Graph = field(default_factory=lambda: Graph.complete([]))
    words: Words | None = None
    survivors: tuple[str, ...] = ()
    agreed: bytes = b""

    @property
    def threshold(self) -> int:
        """Shares that give a secret back, as the offer says."""
        return self.graph.threshold(self.offer.threshold_fraction)


class Client(Secret):
    """One participant of masked sums.

    Guarantees:
        - Each (session, round) is advertised and submitted at most once, ever, while `register` remembers.
        - A message that is refused changes no state. A round that turns out to be weaker than the policy or
          inconsistent is given up: its keys are dropped and nothing more of it is sent.
        - It signs one set of survivors a round, ever, and gives of each peer one share, ever: of what takes a
          survivor's self mask off, or a dropped peer's pair masks.
        - It gives shares only after as many of its own holders signed the same set as the threshold says, and
          only if all surviving neighbours prove that they have put their masks with it on.
        - Secrets of a round live in memory only: whoever restarts is out of the round that was under way.
        - No repr, pickle or error holds a key or a value.

    Args:
        identity: This client's signing key; its name and public key must stand in `roster`.
        roster: Pinned public keys of the server and of all clients.
        schema: The fields as this client knows them. An offer with any other is refused; only the bounds of
            adaptive fields may move, below their caps.
        policy: What this client insists on.
        register: Remembers the rounds that were ever used; keep it as long as the identity.
        rounding: Makes the generator of stochastic rounding for (session, round); by default a fresh one from
            the operating system's randomness. No secrecy rests on it: masks hide the words. One seeded for
            tests must be seeded differently in every round and client, or rounding errors add up.

    Raises:
        IdentityError: If `identity` is not the one that `roster` lists under its name.
        SchemaError: If `schema` is not one.
        TypeError: If `register` is none.

    Example:
        A whole round stands in the docstring of `secagg.server.Server`.

    References:
        Bonawitz et al. (2017), https://doi.org/10.1145/3133956.3133982, Figure 4.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        schema: Schema,
        *,
        policy: Policy | None = None,
        register: Register,
        rounding: RoundingFactory | None = None,
    ) -> None:
        if roster.clients.get(identity.name) != identity.public_key:
            raise IdentityError(
                f"Expected the roster to list {identity.name!r} with the public key of this identity; it "
                "does not."
            )
        if not isinstance(schema, Schema):
            raise SchemaError(f"Expected a Schema, got {type(schema).__name__}. Wrap it: Schema(fields).")
        if not callable(getattr(register, "claim", None)):
            raise TypeError(
                f"Expected a register, got {type(register).__name__}. Take FileRegister(path), or "
                "MemoryRegister() in tests."
            )
        self._guard = Guard()
        self._identity = identity
        self._roster = roster
        self._schema = schema.base()
        self._policy = Policy() if policy is None else policy
        self._register = register
        self._rounding = fresh_rounding if rounding is None else rounding
        self._phase = ClientPhase.IDLE
        self._round: _Round | None = None
        self._submitted: tuple[bytes, int] | None = None
        self._agreed: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = "" if self._round is None else f", round={self._round.number}"
        return f"Client({self._identity.name!r}, phase={self._phase.value}{where})"

    @property
    def name(self) -> str:
        """Id of this client."""
        return self._identity.name

    @property
    def phase(self) -> ClientPhase:
        """Where this client stands."""
        return self._phase

    @property
    def round(self) -> int | None:
        """Number of the round that this client is in; None where it is in none."""
        return None if self._round is None else self._round.number

    @property
    def survivors(self) -> tuple[str, ...]:
        """Ids of those whose sum this client has agreed to, sorted; empty until it has."""
        return self._agreed

    @one_at_a_time
    def receive(
        self, message: bytes, *, context: bytes = b"", declared: Mapping[str, Declared] | None = None
    ) -> bytes | None:
        """Take one message of the server, and answer it.

        An offer may come in any phase, and ends a round that was under way. After a delivery `submit` is to
        be called, and after the roster of a sparse graph `draw_graph`; there is no answer before that.

        Args:
            message: Bytes as they came.
            context: With an offer: the bytes that all clients must hold alike, such as the model that this
                client itself loaded.
            declared: With an offer: values of the `same` and `public` fields.

        Returns:
            The answer to send, or None.

        Raises:
            MessageError: If the bytes are malformed, forged, or not expected now.
            SchemaError: If the offer is for another schema.
            PolicyError: If offer, roster or survivors are weaker than this client's policy.
            RoundReused: If the offer is for a round that was used before.
            EncodingError: If `declared` does not hold the declared fields.
            RoundAborted: If the round fails for this client: `.blame` names whom it is due to, where that
                can be known. CohortError where too few clients are left. Also if the message says that the
                round goes on without it.
        """
        if not isinstance(context, (bytes, bytearray, memoryview)):
            raise TypeError(f"Expected context as bytes, got {type(context).__name__}.")
        opened = self._open(message)
        if isinstance(opened.message, Offer):
            return self._accept_offer(opened.message, opened.digest, context, declared or {})
        state = self._round
        if state is None or (opened.message.session, opened.message.round) != (state.session, state.number):
            where = "in no round" if state is None else f"in round {state.number}"
            raise MessageError(
                f"Refused a message of round {opened.message.round}: this client is {where} of its session."
            )
        if isinstance(opened.message, _LATER[self._phase]):
            phase = self._phase
            self._drop()
            raise RoundAborted(
                f"Round {state.number}: the server is past the stage of this client, which is {phase.value}: "
                "its last answer came too late, or none did. The next round is open to it."
            )
        if isinstance(opened.message, RosterMessage):
            return self._accept_roster(state, opened.message)
        if opened.message.roster != state.roster:  # type: ignore[attr-defined]  # all but those two have one
            raise MessageError(
                f"Refused a message of round {state.number}: it is about another roster or beacon."
            )
        match opened.message:
            case Delivery():
                self._accept_delivery(state, opened.message, opened.tail)
                return None
            case Survivors():
                return self._accept_survivors(state, opened.message)
            case Agreement():
                return self._accept_agreement(state, opened.message, opened.tail)
            case _:
                raise AssertionError("our invariant: one of the kinds that are expected")

    def _open(self, message: bytes) -> Opened:
        """A message of the server, of a kind that may come now."""
        try:
            return open_sealed(message, self._expected(), {"": self._roster.server}, self._largest_message())
        except MessageError as error:
            kinds: tuple[type[Message], ...] = (*_AWAITED.get(self._phase, ()), Offer)
            named = " or ".join(kind.__name__ for kind in kinds)
            # To the caller alone: it may hold another roster than it thinks, or have started anew.
            raise MessageError(
                f"{error} This client is {self._phase.value} and expects {named}, signed by the server of "
                f"its roster ({self._roster.fingerprint})."
            ) from None

    def _expected(self) -> tuple[type[Message], ...]:
        """Kinds of message that may come in this phase: an offer, this stage's and those of later ones."""
        return (Offer, *_AWAITED.get(self._phase, ()), *_LATER[self._phase])

    @one_at_a_time
    def draw_graph(self, beacon: bytes) -> bytes:
        """Go on after the roster of a sparse graph: who is whose neighbour follows from roster and beacon.

        Args:
            beacon: Public bytes that nobody could know when this client received the roster, such as a
                randomness beacon's output of a later minute; every client's caller fetches them by itself.
                Where others use different bytes the round fails, and nothing is released.

        Returns:
            The answer to send.

        Raises:
            PhaseError: If no roster waits for a beacon.
            ValueError: If the beacon has fewer than 16 bytes.
            PolicyError: If the graph is weaker than this client's policy.
            RoundAborted: If a neighbour's key is unusable.
        """
        state = self._round
        if state is None or self._phase is not ClientPhase.ROSTERED:
            raise PhaseError(
                f"Expected a roster that waits for a beacon, this client is {self._phase.value}."
            )
        bound = bind_beacon(state.roster, beacon)
        state.roster = bound
        return self._deal(state, draw(state.adverts, state.offer.degree, bound))

    def verify(self, offer: bytes) -> tuple[bytes, int]:
        """Check an offer as `receive` would, and change nothing: for work to be done before the advert.

        Args:
            offer: Bytes as they came.

        Returns:
            Session and number of the round that it opens.

        Raises:
            MessageError: If the bytes are malformed, or no offer of this server's.
            SchemaError: If the offer is for another schema, or for more clients than its lanes can hold.
            PolicyError: If it is weaker than this client's policy.
        """
        opened = open_sealed(offer, (Offer,), {"": self._roster.server}, self._largest_message())
        assert isinstance(opened.message, Offer)  # noqa: S101  # our invariant: the one kind asked for
        schema = self._verified_schema(opened.message)
        self._policy.verify_offer(opened.message)
        Encoding(schema, opened.message.capacity)
        return opened.message.session, opened.message.round

    def _largest_message(self) -> int:
        state, phase = self._round, self._phase
        if state is None:
            return MAX_OFFER_BYTES
        clients = min(len(self._roster.clients), MAX_CLIENTS)
        if phase is ClientPhase.ADVERTISED:
            return max(MAX_OFFER_BYTES, clients * (MAX_ADVERT_BYTES + 8) + 2**12)
        return max(
            MAX_OFFER_BYTES,
            clients * (box_bytes(state.offer.hybrid) + SIGNATURE_BYTES + RECEIPT_BYTES) + 2**12,
        )

    def _accept_offer(
        self, offer: Offer, digest: bytes, context: bytes, declared: Mapping[str, Declared]
    ) -> bytes:
        """Stages 0 and 1: verify everything, and claim the round before its key leaves."""
        schema = self._verified_schema(offer)
        self._policy.verify_offer(offer)
        encoding = Encoding(schema, offer.capacity)
        statement = Statement.made(schema, offer.session, offer.round, context, declared)
        secrets = RoundSecrets(self.name, offer.hybrid)
        public, public_bytes = statement.split_public()
        advert = Advert(
            session=offer.session,
            round=offer.round,
            sender=self.name,
            offer=digest,
            mask_key=secrets.public.mask,
            transport_key=secrets.public.transport,
            mask_kem=secrets.public.mask_kem,
            transport_kem=secrets.public.transport_kem,
            context=statement.context,
            same=statement.same,
            public=public,
            public_bytes=public_bytes,
        )
        sealed, advert_digest = seal(self._identity, advert)
        if len(sealed) > MAX_ADVERT_BYTES:
            raise EncodingError(
                f"Expected an advert of at most {MAX_ADVERT_BYTES} bytes, got {len(sealed)}. Declare less."
            )
        self._register.claim(offer.session, offer.round)
        self._drop()  # From here on an older round is over.
        self._agreed = ()
        self._round = _Round(
            offer.session, offer.round, offer, digest, advert_digest, statement, schema, encoding, secrets
        )
        self._phase = ClientPhase.ADVERTISED
        return sealed

    def _verified_schema(self, offer: Offer) -> Schema:
        """The offered schema, if it is this client's own but for adaptive bounds under their caps."""
        schema = Schema.from_bytes(offer.schema)
        base, mine = schema.base(), self._schema
        if base != mine:
            names = sorted(f for f in base.keys() | mine.keys() if base.get(f) != mine.get(f))
            different = [
                f"{f!r} is {base.get(f, 'missing')} there, {mine.get(f, 'missing')} here" for f in names
            ]
            what = "; ".join(different[:_SHOWN]) or "the order of fields differs"
            if len(different) > _SHOWN:
                what += f"; and {len(different) - _SHOWN} more fields"
            raise SchemaError(
                f"Round {offer.round}: expected an offer for the schema of this client, got another: {what}. "
                "Configure server and clients alike."
            )
        return schema

    def _accept_roster(self, state: _Round, message: RosterMessage) -> bytes | None:
        """Stage 2: every advert is verified against the pinned keys."""
        if len(message.adverts) > len(self._roster.clients):
            raise MessageError(
                f"Refused the roster of round {state.number}: expected at most "
                f"the {len(self._roster.clients)} clients of the pinned roster, got {len(message.adverts)}."
            )
        opened = {
            advert.message.sender: advert
            for advert in (
                open_sealed(sealed, (Advert,), self._roster.clients, MAX_ADVERT_BYTES)
                for sealed in message.adverts
            )
        }
        if list(opened) != sorted(opened) or len(opened) != len(message.adverts):
            raise MessageError(
                f"Refused the roster of round {state.number}: expected each client once, by id."
            )
        own = opened.get(self.name)
        with self._or_drop():
            if own is None or own.digest != state.advert_digest:
                raise RoundAborted(
                    f"Round {state.number}: the roster lacks this client's advert, which came too late. The "
                    "next round is open to it."
                )
            self._verify_cohort(state, opened)
        state.roster = hash_roster(state.offer_digest, opened)
        state.adverts = adverts_of(opened)
        if state.offer.degree and len(opened) > COMPLETE_UP_TO:
            self._phase = ClientPhase.ROSTERED
            return None
        return self._deal(state, Graph.complete(opened))

    def _verify_cohort(self, state: _Round, opened: Mapping[str, Opened]) -> None:
        """Enough clients, of one mind, each with its own key."""
        number = state.number
        self._policy.verify_cohort(number, len(opened), state.offer.min_clients)
        if len(opened) > state.offer.capacity:
            raise RoundAborted(
                f"Round {number}: the roster has {len(opened)} clients, the offer was for "
                f"{state.offer.capacity}."
            )
        adverts = adverts_of(opened)
        for name, advert in adverts.items():
            if (advert.session, advert.round) != (
                state.session,
                number,
            ) or advert.offer != state.offer_digest:
                raise RoundAborted(
                    f"Round {number}: {name!r} answered another offer than this client.", [name]
                )
            try:
                public_keys(advert).verify_form(state.offer.hybrid)
            except IdentityError as error:
                raise RoundAborted(f"Round {number}: {name!r}: {error}", [name]) from None
        verify_alike(number, state.schema, adverts, state.statement)

    def _deal(self, state: _Round, graph: Graph) -> bytes:
        """Stage 3: shares of both secrets, for each neighbour a box."""
        assert state.secrets is not None  # noqa: S101  # our invariant: a round under way has its secrets
        state.graph = graph
        with self._or_drop():
            self._policy.verify_graph(state.number, graph, state.threshold)
            seed, boxes = state.secrets.deal(
                graph,
                state.threshold,
                {name: public_keys(state.adverts[name]) for name in graph.holders(self.name)},
                self._binding(state),
                state.offer.cipher,
            )
        state.adverts = {}
        self._phase = ClientPhase.SHARED
        return seal(self._identity, Shares(*self._header(state), roster=state.roster, seed=seed), boxes)[0]

    def _binding(self, state: _Round) -> Binding:
        return Binding(
            state.session, state.number, state.roster, state.statement.context, state.schema.digest
        )

    def _header(self, state: _Round) -> tuple[bytes, int, str]:
        return state.session, state.number, self.name

    def _accept_delivery(self, state: _Round, message: Delivery, boxes: memoryview) -> None:
        """Stage 3: the neighbours' shares; whose box opens is in this client's part of the sum (U2)."""
        assert state.secrets is not None  # noqa: S101  # our invariant: a round under way has its secrets
        senders = from_bits(state.graph.neighbours(self.name), message.present)
        if boxes.nbytes != len(senders) * box_bytes(state.offer.hybrid):
            raise MessageError(
                f"Refused the delivery of round {state.number}: expected {len(senders)} boxes of "
                f"{box_bytes(state.offer.hybrid)} bytes, got {boxes.nbytes} bytes."
            )
        with self._or_drop():
            if len(senders) + 1 < state.threshold:
                raise CohortError(
                    f"Round {state.number}: {len(senders) + 1} of this client's holders shared their "
                    f"secrets, threshold is {state.threshold}; the sum could not be unmasked.",
                    set(state.graph.neighbours(self.name)) - set(senders),
                )
            state.secrets.accept(senders, boxes)
        self._phase = ClientPhase.READY

    def _accept_survivors(self, state: _Round, message: Survivors) -> bytes:
        """Stage 5: the one set of survivors that this client will ever sign in this round (U3)."""
        assert state.secrets is not None  # noqa: S101  # our invariant: a round under way has its secrets
        survivors = from_bits(state.graph.names, message.survivors)
        chosen, senders = frozenset(survivors), state.secrets.senders
        near = chosen & frozenset(state.graph.holders(self.name))
        with self._or_drop():
            if self.name not in chosen:
                raise RoundAborted(
                    f"Round {state.number}: the server counts {self.name!r} as dropped; its vector came too "
                    "late. The next round is open to it."
                )
            if strangers := near - senders:
                raise RoundAborted(
                    f"Round {state.number}: the server counts {sorted(strangers)} as survivors, whose shares "
                    "it never delivered to this client.",
                    strangers,
                )
            if len(near) < state.threshold:
                raise CohortError(
                    f"Round {state.number}: {len(near)} of this client's holders survived, threshold is "
                    f"{state.threshold}.",
                    senders - near,
                )
            self._policy.verify_survivors(
                state.number, len(survivors), len(state.graph.names), state.offer.min_clients
            )
        state.survivors = self._agreed = survivors
        state.agreed = hash_survivors(state.roster, message.survivors)
        self._phase = ClientPhase.SIGNED
        signed = Consistency(*self._header(state), roster=state.roster, survivors=state.agreed)
        return seal(self._identity, signed)[0]

    def _accept_agreement(self, state: _Round, message: Agreement, signatures: memoryview) -> bytes:
        """Stage 6: enough of this client's holders signed the same set; only then does a share leave."""
        assert state.secrets is not None  # noqa: S101  # our invariant: a round under way has its secrets
        signers = from_bits(state.graph.holders(self.name), message.signers)
        chosen = frozenset(state.survivors)
        near = [peer for peer in state.graph.neighbours(self.name) if peer in chosen]
        middle = len(signers) * SIGNATURE_BYTES
        if signatures.nbytes != middle + len(near) * RECEIPT_BYTES:
            raise MessageError(
                f"Refused the agreement of round {state.number}: expected {len(signers)} signatures and "
                f"{len(near)} receipts, got {signatures.nbytes} bytes."
            )
        with self._or_drop():
            self._verify_agreement(state, signers, signatures[:middle])
            if wrong := state.secrets.verify(near, signatures[middle:]):
                raise RoundAborted(
                    f"Round {state.number}: {wrong} survived without the shares that this client sealed for "
                    "them, so their vectors lack its masks. The server kept the boxes back, or they or the "
                    "server altered a receipt.",
                    wrong,
                )
        shares = state.secrets.unmask(chosen)
        header = Unmask(*self._header(state), roster=state.roster, survivors=state.agreed)
        self._drop()
        return seal(self._identity, header, shares)[0]

    def _verify_agreement(self, state: _Round, signers: tuple[str, ...], signatures: memoryview) -> None:
        where = f"Round {state.number}"
        if len(signers) < state.threshold:
            raise CohortError(
                f"{where}: {len(signers)} of this client's holders agreed on the survivors, threshold is "
                f"{state.threshold}.",
                set(state.graph.holders(self.name)) & set(state.survivors) - set(signers),
            )
        if outside := set(signers) - set(state.survivors):
            raise RoundAborted(f"{where}: {sorted(outside)} signed, but are no survivors.", outside)
        for place, signer in enumerate(signers):
            signature = bytes(signatures[place * SIGNATURE_BYTES : (place + 1) * SIGNATURE_BYTES])
            expected = Consistency(
                state.session, state.number, signer, roster=state.roster, survivors=state.agreed
            )
            if not is_signed(expected, signature, self._roster.clients[signer]):
                raise RoundAborted(
                    f"{where}: {signer!r} did not sign the survivors that the server named to this client. "
                    "The server showed clients different sets, or altered a signature.",
                    [signer],
                )

    @one_at_a_time
    def prepare(self, values: Mapping[str, Any] | None = None, /, **fields: Any) -> dict[str, Any]:
        """Encode this client's values for `submit`, and say what the sum will hold of them.

        For algorithms that must know what was really sent, such as those that send changes of a state: what
        was clipped or rounded away can go into the next round's change. Calling it again replaces the values.

        Args:
            values: Values by field, for names that are no Python identifiers.
            **fields: Further values by field.

        Returns:
            The values by masked field as the vector carries them, clipped to their bounds and rounded; NaN
            for a mean whose weight is zero, of which the vector carries nothing.

        Raises:
            PhaseError: If no round is under way.
            EncodingError: If a value is missing or cannot be encoded; names the field.
        """
        state = self._round
        if state is None or self._phase in (ClientPhase.SUBMITTED, ClientPhase.SIGNED):
            raise PhaseError(f"Expected a round under way to prepare, this client is {self._phase.value}.")
        words = state.encoding.encode(
            {**(values or {}), **fields}, self._rounding(state.session, state.number)
        )
        # One client's words are the sum of a cohort of one.
        carried = state.encoding.decode(words, 1).values
        state.words = words
        return carried

    @one_at_a_time
    def submit(self, values: Mapping[str, Any] | None = None, /, **fields: Any) -> bytes:
        """Encode, mask and sign this client's values: once per round, ever.

        Without values it sends those that were given to `prepare`. Values that cannot be encoded change
        nothing: correct them and call again. Once a vector was masked it can never be masked again, even if
        the message is never delivered.

        Args:
            values: Values by field, for names that are no Python identifiers.
            **fields: Further values by field.

        Returns:
            The message to send.

        Raises:
            RoundReused: If this round, or the last one, was already submitted.
            PhaseError: If no shares were delivered.
            EncodingError: If a value is missing or cannot be encoded; names the field.
        """
        state, given = self._ready(), {**(values or {}), **fields}
        if given or state.words is None:
            words = state.encoding.encode(given, self._rounding(state.session, state.number))
        else:
            words = state.words
        self._take_masks(state).apply(words)
        return self._masked(state, 0, words)

    @one_at_a_time
    def submit_parts(
        self, values: Mapping[str, Any] | None = None, /, *, part_words: int = 1 << 20, **fields: Any
    ) -> Iterator[bytes]:
        """Do what `submit` does for a vector that does not fit in memory: in several messages, in order.

        Values are encoded, masked and signed part by part; arrays may be `numpy.memmap`. Every value is
        verified before the first part. The round's masks belong to this vector from then on: whoever stops
        half-way has dropped out of the round.

        Args:
            values: Values by field, as `submit` takes them; they must not change until the last part.
            part_words: Words of each part but the last; 8 bytes each.
            **fields: Further values by field. (`prepare` holds a vector whole, so it goes with `submit`.)

        Returns:
            Iterator over the messages to send, in this order.

        Raises:
            RoundReused: As `submit` does.
            PhaseError: As `submit` does; and from the iterator, if the client has moved on meanwhile.
            EncodingError: As `submit` does.
        """
        state = self._ready()
        if isinstance(part_words, bool) or not isinstance(part_words, int) or part_words < 1:
            raise ValueError(f"Expected part_words to be a positive integer, got {part_words!r}.")
        given = {**(values or {}), **fields}
        words = state.encoding.stream(given, self._rounding(state.session, state.number), part_words)
        return self._parts(state, words, self._take_masks(state).stream())

    def _parts(self, state: _Round, parts: Iterator[Words], masks: MaskStream) -> Iterator[bytes]:
        start, message = 0, b""
        try:
            with masks:
                for words in parts:
                    with self._guard.one_call():
                        if self._round is not state:
                            raise PhaseError(f"Expected round {state.number} to send a part of, it is over.")
                        masks.add(words)
                        message = self._masked(state, start, words)
                    start += words.size
                    if start < state.encoding.words:
                        yield message
        except BaseException:
            with self._guard.no_other_call():
                if self._round is state:
                    self._drop()
            raise
        yield message  # the last part: who took it has the whole vector, and may let this iterator go

    def _masked(self, state: _Round, start: int, words: Words) -> bytes:
        assert state.secrets is not None  # noqa: S101  # our invariant: a round under way has its secrets
        receipts = b"" if start else state.secrets.receipts()
        header = Masked(*self._header(state), roster=state.roster, start=start, receipts=receipts)
        return seal(self._identity, header, words.astype("<u8", copy=False))[0]

    def _ready(self) -> _Round:
        """The round that a vector may be masked for; there is one for one vector only."""
        state = self._round
        if state is None or self._phase is not ClientPhase.READY:
            if self._submitted is not None and (state is None or self._submitted == self._header(state)[:2]):
                raise RoundReused(
                    f"Round {self._submitted[1]} was already submitted; wait for the next offer."
                )
            raise PhaseError(f"Expected phase ready to submit, this client is {self._phase.value}.")
        return state

    def _take_masks(self, state: _Round) -> Masks:
        """From here on the round's masks belong to one vector, whatever becomes of it."""
        assert state.secrets is not None  # noqa: S101  # our invariant: a round under way has its secrets
        self._submitted = (state.session, state.number)
        self._phase, state.words = ClientPhase.SUBMITTED, None
        return state.secrets.masks()

    @one_at_a_time
    def abort(self) -> None:
        """Give up the round under way, if any: its keys are dropped, and it can never be used again."""
        self._drop()

    def _drop(self) -> None:
        if self._round is not None:
            if self._round.secrets is not None:
                self._round.secrets.forget()  # an error's traceback may still lead to it
            self._round.secrets = self._round.words = None
        self._round = None
        self._phase = ClientPhase.IDLE

    @contextmanager
    def _or_drop(self) -> Iterator[None]:
        """Give the round up if what the block verifies does not hold."""
        try:
            yield
        except BaseException:
            self._drop()
            raise


def fresh_rounding(session: bytes, round: int) -> Rounding:
    """Draws of a fresh keystream, whatever the round; no secrecy rests on them."""
    return KeystreamRounding()
