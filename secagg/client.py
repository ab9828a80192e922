"""Client: the state machine of one participant; bytes in, bytes out, no I/O but the register it is given.

    stage           comes in                goes out            phase after
    0 offer         Offer                   (1) Advert          ADVERTISED
    2 roster        RosterMessage           nothing             READY
    4 vector        submit(values)          Masked              IDLE

Stages 3 (shares), 5 (consistency) and 6 (unmask) of Bonawitz et al. (2017) recover from dropouts. A round now
needs every client that advertised, and a pair's masks cancel without recovery. Stage 3 enters between the
roster and READY, where the keys of all peers are verified; 5 and 6 follow the vector, which then leaves the
machine waiting instead of IDLE.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np

from .cohort import Statement, adverts_of, hash_roster, verify_alike
from .encoding import Encoding, Words
from .errors import (
    EncodingError,
    IdentityError,
    MessageError,
    PhaseError,
    RoundAborted,
    RoundReused,
    SchemaError,
)
from .keys import Binding, Identity, Roster, RoundKey, Secret
from .masks import CIPHER_KEY_BYTES, Mask, Masks
from .messages import (
    MAX_ADVERT_BYTES,
    MAX_OFFER_BYTES,
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
from .register import Register
from .schema import Schema

# Rounding keeps a sum unbiased; masks keep it secret. No secrecy rests on these draws.
RoundingFactory: TypeAlias = Callable[[bytes, int], np.random.Generator]


class ClientPhase(Enum):
    """Where a client stands."""

    IDLE = "idle"
    ADVERTISED = "advertised"
    READY = "ready"


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
    key: RoundKey | None
    roster: bytes = b""
    masks: Masks | None = None
    words: Words | None = None


class Client(Secret):
    """One participant of masked sums.

    Guarantees:
        - Each (session, round) is advertised and submitted at most once, ever, while `register` remembers.
        - A message that is refused changes no state. A round that turns out to be weaker than the policy or
          inconsistent is given up: its keys are dropped and nothing of it is sent.
        - The keys of a round are dropped before the masked vector is handed out.
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
        self._identity = identity
        self._roster = roster
        self._schema = schema.base()
        self._policy = Policy() if policy is None else policy
        self._register = register
        self._rounding = fresh_rounding if rounding is None else rounding
        self._phase = ClientPhase.IDLE
        self._round: _Round | None = None
        self._submitted: tuple[bytes, int] | None = None

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

    def receive(
        self, message: bytes, *, context: bytes = b"", declared: Mapping[str, Declared] | None = None
    ) -> bytes | None:
        """Take one message of the server.

        An offer is answered with an advert; it may come in any phase, and ends a round that was under way.
        A roster is answered with nothing: if this returns, `submit` may be called.

        Args:
            message: Bytes as they came.
            context: With an offer: the bytes that all clients must hold alike, such as the model that this
                client itself loaded.
            declared: With an offer: values of the `same` and `public` fields.

        Returns:
            The advert to send, or None.

        Raises:
            MessageError: If the bytes are malformed, forged, or not expected now.
            SchemaError: If the offer is for another schema.
            PolicyError: If offer or roster are weaker than this client's policy.
            RoundReused: If the offer is for a round that was used before.
            EncodingError: If `declared` does not hold the declared fields.
            RoundAborted: If clients differ on the context or on a `same` field (`.blame` names them), or the
                server showed them different offers.
        """
        kinds: tuple[type[Message], ...] = (Offer, RosterMessage)
        opened = open_sealed(message, kinds, {"": self._roster.server}, self._largest_message())
        if isinstance(opened.message, Offer):
            return self._accept_offer(opened.message, opened.digest, context, declared or {})
        assert isinstance(opened.message, RosterMessage)  # noqa: S101  # our invariant: one of `kinds`
        self._accept_roster(opened.message)
        return None

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
        largest_roster = len(self._roster.clients) * (MAX_ADVERT_BYTES + 8) + 2**12
        return max(MAX_OFFER_BYTES, largest_roster)

    def _accept_offer(
        self, offer: Offer, digest: bytes, context: bytes, declared: Mapping[str, Declared]
    ) -> bytes:
        """Stages 0 and 1: verify everything, and claim the round before its key leaves."""
        schema = self._verified_schema(offer)
        self._policy.verify_offer(offer)
        encoding = Encoding(schema, offer.capacity)
        statement = Statement.made(schema, offer.session, offer.round, context, declared)
        key = RoundKey()
        public, public_bytes = statement.split_public()
        advert = Advert(
            session=offer.session,
            round=offer.round,
            sender=self.name,
            offer=digest,
            mask_key=key.public,
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
        self._round = _Round(
            offer.session, offer.round, offer, digest, advert_digest, statement, schema, encoding, key
        )
        self._phase = ClientPhase.ADVERTISED
        return sealed

    def _verified_schema(self, offer: Offer) -> Schema:
        """The offered schema, if it is this client's own but for adaptive bounds under their caps."""
        schema = Schema.from_bytes(offer.schema)
        base, mine = schema.base(), self._schema
        if base != mine:
            names = sorted(f for f in base.keys() | mine.keys() if base.get(f) != mine.get(f))
            what = f"fields {names} differ" if names else "the order of fields differs"
            raise SchemaError(
                f"Round {offer.round}: expected an offer for the schema of this client, got another: {what}. "
                "Configure server and clients alike."
            )
        return schema

    def _accept_roster(self, message: RosterMessage) -> None:
        """Stage 2: every advert is verified against the pinned keys; then pair keys are made."""
        state = self._round
        if state is None or self._phase is not ClientPhase.ADVERTISED:
            raise MessageError(f"Refused a roster: none is expected in phase {self._phase.value}.")
        if (message.session, message.round) != (state.session, state.number):
            raise MessageError(
                f"Refused a roster of round {message.round}: this client is in round {state.number}."
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
        if own is None or own.digest != state.advert_digest:
            raise MessageError(f"Refused the roster of round {state.number}: it lacks this client's advert.")
        try:
            self._verify_cohort(state, opened)
            state.roster = hash_roster(state.offer_digest, opened)
            state.masks = Masks(self._pair_masks(state, opened))
        except Exception:
            self._drop()
            raise
        state.key = None
        self._phase = ClientPhase.READY

    def _verify_cohort(self, state: _Round, opened: Mapping[str, Opened]) -> None:
        """Enough clients, of one mind, each with its own key."""
        number = state.number
        self._policy.verify_cohort(number, len(opened))
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
        verify_alike(number, state.schema, adverts, state.statement)

    def _pair_masks(self, state: _Round, opened: Mapping[str, Opened]) -> list[Mask]:
        """One keystream with every peer: the lesser id adds it, the greater subtracts it."""
        assert state.key is not None  # noqa: S101  # our invariant: the key lives until READY
        binding = Binding(
            state.session, state.number, state.roster, state.statement.context, state.schema.digest
        )
        length = CIPHER_KEY_BYTES[state.offer.cipher]
        masks = []
        for peer, advert in adverts_of(opened).items():
            if peer == self.name:
                continue
            try:
                key = state.key.pair_key(self.name, peer, advert.mask_key, binding, length)
            except IdentityError as error:
                raise RoundAborted(f"Round {state.number}: {peer!r}: {error}", [peer]) from None
            masks.append(Mask(key, 1 if self.name < peer else -1))
        return masks

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
        if state is None:
            raise PhaseError(f"Expected a round under way to prepare, this client is {self._phase.value}.")
        words = state.encoding.encode(
            {**(values or {}), **fields}, self._rounding(state.session, state.number)
        )
        # One client's words are the sum of a cohort of one.
        carried = state.encoding.decode(words, 1).values
        state.words = words
        return carried

    def submit(self, values: Mapping[str, Any] | None = None, /, **fields: Any) -> bytes:
        """Encode, mask and sign this client's values: once per round, ever.

        Without values it sends those that were given to `prepare`. Values that cannot be encoded change
        nothing: correct them and call again. Once a vector was masked the round is over for this client and
        its keys are gone, even if the vector is never delivered.

        Args:
            values: Values by field, for names that are no Python identifiers.
            **fields: Further values by field.

        Returns:
            The message to send.

        Raises:
            RoundReused: If the last round was already submitted and no other is open.
            PhaseError: If no roster was accepted.
            EncodingError: If a value is missing or cannot be encoded; names the field.
        """
        state = self._round
        if state is None or state.masks is None:
            if state is None and self._submitted is not None:
                raise RoundReused(
                    f"Round {self._submitted[1]} was already submitted; wait for the next offer."
                )
            raise PhaseError(f"Expected phase ready to submit, this client is {self._phase.value}.")
        given = {**(values or {}), **fields}
        if given or state.words is None:
            words = state.encoding.encode(given, self._rounding(state.session, state.number))
        else:
            words = state.words
        masks = state.masks
        self._submitted = (state.session, state.number)
        self._drop()
        masks.apply(words)
        header = Masked(session=state.session, round=state.number, sender=self.name, roster=state.roster)
        return seal(self._identity, header, words.astype("<u8", copy=False))[0]

    def abort(self) -> None:
        """Give up the round under way, if any: its keys are dropped, and it can never be used again."""
        self._drop()

    def _drop(self) -> None:
        if self._round is not None:
            self._round.key = self._round.masks = self._round.words = None
        self._round = None
        self._phase = ClientPhase.IDLE


def fresh_rounding(session: bytes, round: int) -> np.random.Generator:
    """A generator from the operating system's randomness, whatever the round; no secrecy rests on it."""
    return np.random.Generator(np.random.SFC64(int.from_bytes(os.urandom(32), "little")))
