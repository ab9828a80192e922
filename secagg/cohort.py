"""Cohort: what the clients of a round state in their adverts, and whether they are of one mind.

Before the masked part of a round opens, each client states values in clear or as a hash. The context (the
model that all loaded) and the `same` fields must be alike; `public` fields are published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from .ephemeral import PublicKeys
from .errors import EncodingError, RoundAborted
from .keys import hash_parts
from .messages import MAX_DECLARED, Advert, Opened
from .reductions import Declared, Public, Same
from .schema import Schema

MIN_BEACON: Final = 16


def hash_context(session: bytes, round: int, context: bytes) -> bytes:
    """Hash of the application bytes that all must hold alike, different in every round."""
    return hash_parts("context", session, round.to_bytes(8, "little"), context)


def hash_same(session: bytes, round: int, field: str, value: Declared) -> bytes:
    """Hash of a `same` field's value; 1, 1.0 and True are different values."""
    encoded = msgspec.msgpack.encode([type(value).__name__, value])
    return hash_parts("same", session, round.to_bytes(8, "little"), field.encode(), encoded)


@dataclass(frozen=True, slots=True)
class Statement:
    """What one client states in its advert.

    Attributes:
        context: Hash of its context.
        same: Hashes of its `same` values, by field.
        public: Its `public` values, by field.
    """

    context: bytes
    same: dict[str, bytes]
    public: dict[str, Declared]

    @classmethod
    def made(
        cls, schema: Schema, session: bytes, round: int, context: bytes, declared: Mapping[str, Declared]
    ) -> Statement:
        """State `context` and the declared values; raises EncodingError if they are not those of `schema`."""
        wanted = schema.declared
        if set(declared) != set(wanted):
            raise EncodingError(
                f"Expected declared= values of the same() and public() fields {sorted(wanted)}, got "
                f"{sorted(map(str, declared))}."
            )
        for field, value in declared.items():
            _verify_declared(field, value)
        return cls(
            hash_context(session, round, bytes(context)),
            {f: hash_same(session, round, f, declared[f]) for f in wanted if isinstance(wanted[f], Same)},
            {f: declared[f] for f in wanted if isinstance(wanted[f], Public)},
        )

    @classmethod
    def of(cls, advert: Advert) -> Statement:
        """The statement of an advert that came; one that states a field twice states it for no schema."""
        twice = advert.public.keys() & advert.public_bytes.keys()
        public = {} if twice else {**advert.public, **advert.public_bytes}
        return cls(advert.context, advert.same, public)

    def fits(self, schema: Schema) -> bool:
        """Whether it states exactly the declared fields of `schema`."""
        wanted = schema.declared
        same = {field for field, reduction in wanted.items() if isinstance(reduction, Same)}
        return set(self.same) == same and set(self.public) == set(wanted) - same

    def hashes(self) -> dict[str, bytes]:
        """What must be alike, by what an error calls it."""
        return {"the context": self.context} | {f"field {field!r}": h for field, h in self.same.items()}

    def split_public(self) -> tuple[dict[str, str | int | float | bool], dict[str, bytes]]:
        """Public values as an advert carries them: bytes apart from the rest."""
        plain = {field: value for field, value in self.public.items() if not isinstance(value, bytes)}
        return plain, {field: value for field, value in self.public.items() if isinstance(value, bytes)}


def differing(statements: Mapping[str, Statement], mine: Statement | None = None) -> dict[str, set[str]]:
    """Who differs, by what: ``{"field 'model'": {"c3"}}``; empty if all agree. All must fit one schema.

    Everybody who differs from `mine`. Without it, everybody outside the largest group of equals; where two
    groups are equally large nobody can tell who is right, and all are named.
    """
    hashed = {client: statement.hashes() for client, statement in statements.items()}
    found: dict[str, set[str]] = {}
    for subject in next(iter(hashed.values()), {}):
        hashes = {client: by_subject[subject] for client, by_subject in hashed.items()}
        right = _most_common(hashes.values()) if mine is None else mine.hashes()[subject]
        if wrong := {client for client, value in hashes.items() if value != right}:
            found[subject] = wrong
    return found


def adverts_of(opened: Mapping[str, Opened]) -> dict[str, Advert]:
    """The adverts of verified messages, by client."""
    return {name: one.message for name, one in opened.items() if isinstance(one.message, Advert)}


def hash_roster(offer: bytes, opened: Mapping[str, Opened]) -> bytes:
    """Hash of the offer and of every signed advert, by id: what all later stages are bound to."""
    return hash_parts("roster", offer, *(opened[name].digest for name in sorted(opened)))


def bind_beacon(roster: bytes, beacon: bytes) -> bytes:
    """The roster hash of a sparse round: bound to bytes that nobody knew when the roster was fixed."""
    if not isinstance(beacon, (bytes, bytearray, memoryview)):
        raise TypeError(f"Expected a beacon as bytes, got {type(beacon).__name__}.")
    if len(beacon) < MIN_BEACON:
        raise ValueError(f"Expected a beacon of at least {MIN_BEACON} bytes, got {len(beacon)}.")
    return hash_parts("beacon", roster, bytes(beacon))


def hash_survivors(roster: bytes, survivors: bytes) -> bytes:
    """Hash of a set of survivors, as the bits of the sorted roster."""
    return hash_parts("survivors", roster, survivors)


def public_keys(advert: Advert) -> PublicKeys:
    """The ephemeral keys that an advert states."""
    return PublicKeys(advert.mask_key, advert.transport_key, advert.mask_kem, advert.transport_kem)


def verify_alike(
    number: int, schema: Schema, adverts: Mapping[str, Advert], mine: Statement | None = None
) -> None:
    """Raise RoundAborted, naming clients, unless all state the same and no two share an ephemeral key."""
    statements = {name: Statement.of(advert) for name, advert in adverts.items()}
    if unfit := [name for name, statement in statements.items() if not statement.fits(schema)]:
        raise RoundAborted(f"Round {number}: {unfit} did not declare the fields of the schema.", unfit)
    if found := differing(statements, mine):
        details = "; ".join(f"{subject}: {sorted(clients)}" for subject, clients in found.items())
        raise RoundAborted(
            f"Round {number}: clients differ where all must be alike ({details}). Nothing was sent; bring "
            "them to one state and open the next round.",
            set().union(*found.values()),
        )
    owners: dict[bytes, str] = {}
    for name, advert in adverts.items():
        for key in public_keys(advert).parts():
            if key in owners:
                other = owners[key]
                raise RoundAborted(f"Round {number}: {other!r} and {name!r} share one key.", {other, name})
            owners[key] = name


def _most_common(hashes: Iterable[bytes]) -> bytes | None:
    ranked = Counter(hashes).most_common(2)
    tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return None if tied else ranked[0][0]


def _verify_declared(field: str, value: object) -> None:
    # No subclass: its name would enter the hash, and other parties may read it back as its base.
    if type(value) not in (str, int, float, bool, bytes):
        raise EncodingError(
            f"Field {field!r}: expected a declared str, int, float, bool or bytes, got "
            f"{type(value).__name__}."
        )
    if isinstance(value, (str, bytes)) and len(value) > MAX_DECLARED:
        raise EncodingError(
            f"Field {field!r}: expected at most {MAX_DECLARED} characters or bytes, got {len(value)}. "
            "Declare its hash, or hand it to context=."
        )
    if isinstance(value, str) and not _is_text(value):
        raise EncodingError(f"Field {field!r}: expected text that UTF-8 can carry, got a lone surrogate.")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise EncodingError(f"Field {field!r}: expected an integer of 64 bits, got a larger one.")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
