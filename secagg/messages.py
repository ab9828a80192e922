"""Messages: typed, limited in length, signed; one function makes them and one opens them.

    0..3    b"SAG" and the version
    4       kind
    5..68   Ed25519 signature over version, kind and the SHA-256 of all that follows
    69..72  length of the header, little-endian
    73..    header (msgpack, one of the structs below), then the tail: what is long (a masked vector's words,
            boxes, signatures, shares); empty for the other kinds

    kind  stage          from      header says, beside session, round and sender
    0     offer          server    what the round would be
    1     advertise      client    ephemeral public keys, and what must be alike
    2     roster         server    all adverts
    3     shares         client    hash of the self-mask seed            tail: a box for each neighbour
    4     delivery       server    whose boxes these are                 tail: the boxes for one client
    5     vector         client    where in the vector the words belong  tail: words
    6     survivors      server    whose vectors are in the sum
    7     consistency    client    the one set of survivors that it signs
    8     agreement      server    who signed that set                   tail: signatures and receipts
    9     unmask         client    for which set                         tail: one share of each neighbour

What is long is a tail and no msgpack field so that megabytes are neither copied into a header nor out of it.
Bytes come from the network: whatever is not exactly a valid message is one and the same MessageError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from .ephemeral import KEM_KEY_BYTES, RECEIPT_BYTES
from .errors import MessageError
from .keys import KEY_BYTES, MAX_ID, Identity, length_prefixed, verify_signature
from .masks import CipherName
from .reductions import MAX_NAME
from .schema import MAX_FIELDS, MAX_SCHEMA_BYTES

MAGIC: Final = b"SAG\x02"
_KIND, _SIGNATURE, _LENGTH, _HEADER = 4, 5, 69, 73
MAX_ADVERT_BYTES: Final = 2**16
MAX_OFFER_BYTES: Final = MAX_SCHEMA_BYTES + 2**12
MAX_DECLARED: Final = 2**12
MAX_ROUND: Final = 2**53
MAX_CLIENTS: Final = 2**17
SIGNATURE_BYTES: Final = 64

Session: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Round: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_ROUND)]
Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
Hash: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key: TypeAlias = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
KemKey: TypeAlias = Annotated[bytes, Meta(max_length=KEM_KEY_BYTES)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**31)]
Bits: TypeAlias = Annotated[bytes, Meta(max_length=MAX_CLIENTS // 8)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
DeclaredInt: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
DeclaredText: TypeAlias = Annotated[str, Meta(max_length=MAX_DECLARED)]
DeclaredBytes: TypeAlias = Annotated[bytes, Meta(max_length=MAX_DECLARED)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What every message says first.

    Attributes:
        session: Run that it belongs to.
        round: Round of the run.
        sender: Id of the client that signed it; the empty string for the server.
    """

    session: Session
    round: Round
    sender: Annotated[str, Meta(max_length=MAX_ID)]


class Offer(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 0, server to all clients: what the round would be.

    Attributes:
        schema: Canonical bytes of the schema, with the bounds of this round.
        capacity: Largest cohort that lanes are wide enough for.
        min_clients: Smallest cohort that the server will open.
        threshold_fraction: Fraction of a client's holders whose shares give its secrets.
        degree: Neighbours of a client; 0 is all the others.
        cipher: Mask cipher.
        hybrid: Whether keys are agreed upon by X25519 and ML-KEM-768 together.
    """

    schema: Annotated[bytes, Meta(max_length=MAX_SCHEMA_BYTES)]
    capacity: Count
    min_clients: Count
    threshold_fraction: Annotated[float, Meta(ge=0, le=1)]
    degree: Annotated[int, Meta(ge=0, le=MAX_CLIENTS, multiple_of=2)]
    cipher: CipherName
    hybrid: bool


class Advert(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 1, client to server, then to all clients: this round's key, and what must be alike.

    Attributes:
        offer: Digest of the offer that it answers.
        mask_key: Ephemeral X25519 public key that pair masks come from.
        transport_key: Ephemeral X25519 public key that boxes are sealed with.
        mask_kem: ML-KEM-768 encapsulation key beside `mask_key` in a hybrid round; else empty.
        transport_kem: The same beside `transport_key`.
        context: Hash of the application bytes that the client holds (the model it loaded).
        same: Hash of each `same` field's value.
        public: Each `public` field's value, unless it is bytes.
        public_bytes: Each `public` field's value that is bytes.
    """

    offer: Hash
    mask_key: Key
    transport_key: Key
    mask_kem: KemKey
    transport_kem: KemKey
    context: Hash
    same: Annotated[dict[Name, Hash], Meta(max_length=MAX_FIELDS)]
    public: Annotated[dict[Name, DeclaredText | DeclaredInt | float | bool], Meta(max_length=MAX_FIELDS)]
    public_bytes: Annotated[dict[Name, DeclaredBytes], Meta(max_length=MAX_FIELDS)]


class RosterMessage(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 2, server to all clients: every signed advert, in the order of ids.

    Attributes:
        adverts: Sealed adverts, as their clients sent them.
    """

    adverts: Annotated[
        list[Annotated[bytes, Meta(max_length=MAX_ADVERT_BYTES)]], Meta(max_length=MAX_CLIENTS)
    ]


class Shares(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 3, client to server: a box for each neighbour in the order of ids, in the tail.

    Attributes:
        roster: Hash of the offer, all adverts and the beacon, as this client saw them.
        seed: Hash of the self-mask seed, so that a wrong one is noticed when shares give it back.
    """

    roster: Hash
    seed: Hash


class Delivery(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 3, server to one client: the boxes that its neighbours sealed for it, in the tail.

    Attributes:
        roster: As in `Shares`.
        present: Bit i is set if the box of the receiver's i-th neighbour is there.
    """

    roster: Hash
    present: Bits


class Masked(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 4, client to server: masked words, in the tail; a large vector comes in several, in order.

    Attributes:
        roster: As in `Shares`.
        start: Place of the first word in the vector.
        receipts: Of each box that the client opened, by the ids of their senders, 16 bytes each; with the
            first word, else empty.
    """

    roster: Hash
    start: Annotated[int, Meta(ge=0, lt=2**48)]
    receipts: Annotated[bytes, Meta(max_length=RECEIPT_BYTES * MAX_CLIENTS)]


class Survivors(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 5, server to all survivors: whose vectors are in the sum.

    Attributes:
        roster: As in `Shares`.
        survivors: Bit i is set if the i-th client of the roster survived.
    """

    roster: Hash
    survivors: Bits


class Consistency(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 5, client to server, its signature then to its neighbours: the one set that it agrees to.

    Attributes:
        roster: As in `Shares`.
        survivors: Hash of the set (`hash_survivors`).
    """

    roster: Hash
    survivors: Hash


class Agreement(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 6, server to one client: signatures of its neighbourhood's `Consistency`, in the tail.

    After them stand the receipts of its surviving neighbours for the boxes that it sealed for them.

    Attributes:
        roster: As in `Shares`.
        signers: Bit i is set if the i-th of the receiver's neighbours and itself, by id, signed.
    """

    roster: Hash
    signers: Bits


class Unmask(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 6, client to server: one share of each peer whose box it opened, and of itself, in the tail.

    Attributes:
        roster: As in `Shares`.
        survivors: As in `Consistency`.
    """

    roster: Hash
    survivors: Hash


KINDS: Final[dict[type[Message], int]] = {
    Offer: 0,
    Advert: 1,
    RosterMessage: 2,
    Shares: 3,
    Delivery: 4,
    Masked: 5,
    Survivors: 6,
    Consistency: 7,
    Agreement: 8,
    Unmask: 9,
}
_WITH_TAIL: Final = (Shares, Delivery, Masked, Agreement, Unmask)
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(kind) for kind in KINDS}
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Opened:
    """A message whose signature was verified.

    Attributes:
        message: Its header.
        tail: Its tail; a view of the bytes that came.
        digest: Hash of all that was signed.
    """

    message: Message
    tail: memoryview
    digest: bytes


def refused() -> MessageError:
    """The one error for bytes that are no valid message."""
    return MessageError(
        "Refused a message: it is not one that a party of the roster signed for this stage and this protocol "
        "version. Expected the bytes of a peer's state machine, unaltered and in their order."
    )


def seal(identity: Identity, message: Message, tail: Any = b"") -> tuple[bytes, bytes]:
    """Sign a message; returns the bytes to send and their digest. `tail` is anything with a buffer."""
    header = _ENCODER.encode(message)
    length = len(header).to_bytes(4, "little")
    raw = memoryview(tail).cast("B")
    digest = _digest(KINDS[type(message)], length + header, raw)
    start = MAGIC + bytes([KINDS[type(message)]])
    return b"".join((start, identity.sign(_signed(digest)), length, header, raw)), digest


def open_sealed(
    data: Any, kinds: tuple[type[Message], ...], keys: Mapping[str, bytes], max_bytes: int
) -> Opened:
    """Verify and decode one message.

    Guarantees:
        - Returns only what the holder of ``keys[message.sender]`` signed, as one of `kinds`.
        - Whatever else comes, of whatever length, raises the same MessageError; nothing else is raised.

    Args:
        data: Bytes as they came.
        kinds: Types of message that may come now.
        keys: Pinned Ed25519 public keys by sender; the server's under the empty string.
        max_bytes: Longest message to look at.

    Returns:
        The message, its tail and its digest.

    Raises:
        MessageError: If the bytes are malformed, too long, forged, or of another kind or version.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"Expected a message as bytes, got {type(data).__name__}.")
    view = memoryview(data).cast("B")
    if not _HEADER <= view.nbytes <= max_bytes or bytes(view[:_KIND]) != MAGIC:
        raise refused()
    kind = next((kind for kind in kinds if KINDS[kind] == view[_KIND]), None)
    end = _HEADER + int.from_bytes(view[_LENGTH:_HEADER], "little")
    if kind is None or end > view.nbytes or (kind not in _WITH_TAIL and end != view.nbytes):
        raise refused()
    try:
        message = _DECODERS[kind].decode(view[_HEADER:end])
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError):
        raise refused() from None
    if _ENCODER.encode(message) != view[_HEADER:end]:  # longer forms, fields twice: readers could differ
        raise refused()
    key = keys.get(message.sender)
    digest = _digest(KINDS[kind], view[_LENGTH:end], view[end:])
    if key is None or not verify_signature(key, bytes(view[_SIGNATURE:_LENGTH]), _signed(digest)):
        raise refused()
    return Opened(message, view[end:], digest)


def signature_of(sealed: Any) -> bytes:
    """The signature that a sealed message carries."""
    return bytes(memoryview(sealed)[_SIGNATURE:_LENGTH])


def is_signed(message: Message, signature: bytes, key: bytes) -> bool:
    """Whether `signature` is that of this message without a tail, sealed by the holder of `key`."""
    header = _ENCODER.encode(message)
    digest = _digest(KINDS[type(message)], len(header).to_bytes(4, "little") + header, memoryview(b""))
    return verify_signature(key, signature, _signed(digest))


def to_bits(names: Sequence[str], members: Iterable[str]) -> bytes:
    """Which of `names` are members: bit i % 8 of byte i // 8 for the i-th."""
    chosen = set(members)
    return np.packbits(np.array([name in chosen for name in names], bool), bitorder="little").tobytes()


def from_bits(names: Sequence[str], bits: bytes) -> tuple[str, ...]:
    """Inverse of `to_bits`, in the order of `names`; MessageError unless length and padding are exact."""
    if len(bits) != -(-len(names) // 8):
        raise refused()
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    if flags[len(names) :].any():
        raise refused()
    return tuple(names[place] for place in np.flatnonzero(flags).tolist())


def _digest(kind: int, header: Any, tail: memoryview) -> bytes:
    """Hash of kind, length, header and tail; the length separates the two."""
    hasher = hashlib.sha256(MAGIC + bytes([kind]))
    hasher.update(header)
    hasher.update(tail)
    return hasher.digest()


def _signed(digest: bytes) -> bytes:
    # The hash is signed, not the message: Ed25519 reads its input twice, and a vector is megabytes long.
    return length_prefixed(b"secagg signed message", digest)
