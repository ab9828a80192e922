"""Messages: typed, limited in length, signed; one function makes them and one opens them.

    0..3    b"SAG" and the version
    4       kind
    5..68   Ed25519 signature over version, kind and the SHA-256 of all that follows
    69..72  length of the header, little-endian
    73..    header (msgpack, one of the structs below), then the tail: a masked vector's words, else empty

The vector is a tail and no msgpack field so that megabytes are neither copied into a header nor out of it.
Bytes come from the network: whatever is not exactly a valid message is one and the same MessageError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from .errors import MessageError
from .keys import KEY_BYTES, MAX_ID, Identity, length_prefixed, verify_signature
from .masks import CipherName
from .reductions import MAX_NAME
from .schema import MAX_FIELDS, MAX_SCHEMA_BYTES

MAGIC: Final = b"SAG\x01"
_KIND, _SIGNATURE, _LENGTH, _HEADER = 4, 5, 69, 73
MAX_ADVERT_BYTES: Final = 2**16
MAX_OFFER_BYTES: Final = MAX_SCHEMA_BYTES + 2**12
MAX_DECLARED: Final = 2**12
MAX_ROUND: Final = 2**53

Session: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Round: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_ROUND)]
Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
Hash: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key: TypeAlias = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**31)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
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
        threshold_fraction: Fraction of the cohort that must survive.
        cipher: Mask cipher.
    """

    schema: Annotated[bytes, Meta(max_length=MAX_SCHEMA_BYTES)]
    capacity: Count
    min_clients: Count
    threshold_fraction: Annotated[float, Meta(ge=0, le=1)]
    cipher: CipherName


class Advert(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 1, client to server, then to all clients: this round's key, and what must be alike.

    Attributes:
        offer: Digest of the offer that it answers.
        mask_key: Ephemeral X25519 public key.
        context: Hash of the application bytes that the client holds (the model it loaded).
        same: Hash of each `same` field's value.
        public: Each `public` field's value, unless it is bytes.
        public_bytes: Each `public` field's value that is bytes.
    """

    offer: Hash
    mask_key: Key
    context: Hash
    same: Annotated[dict[Name, Hash], Meta(max_length=MAX_FIELDS)]
    public: Annotated[dict[Name, DeclaredText | int | float | bool], Meta(max_length=MAX_FIELDS)]
    public_bytes: Annotated[dict[Name, DeclaredBytes], Meta(max_length=MAX_FIELDS)]


class RosterMessage(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 2, server to all clients: every signed advert, in the order of ids.

    Attributes:
        adverts: Sealed adverts, as their clients sent them.
    """

    adverts: Annotated[list[Annotated[bytes, Meta(max_length=MAX_ADVERT_BYTES)]], Meta(max_length=2**16)]


class Masked(Message, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 4, client to server: the masked words, in the tail.

    Attributes:
        roster: Hash of the offer and all adverts, as this client saw them.
    """

    roster: Hash


# Kinds 3 and 5 to 7 belong to the stages of dropout recovery: shares, consistency, unmasking.
KINDS: Final[dict[type[Message], int]] = {Offer: 0, Advert: 1, RosterMessage: 2, Masked: 4}
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
        "Refused a message: it is not one that a party of the roster signed for this protocol version. "
        "Expected the bytes of a peer's state machine, unaltered."
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
    if kind is None or end > view.nbytes or (kind is not Masked and end != view.nbytes):
        raise refused()
    try:
        message = _DECODERS[kind].decode(view[_HEADER:end])
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError):
        raise refused() from None
    key = keys.get(message.sender)
    digest = _digest(KINDS[kind], view[_LENGTH:end], view[end:])
    if key is None or not verify_signature(key, bytes(view[_SIGNATURE:_LENGTH]), _signed(digest)):
        raise refused()
    return Opened(message, view[end:], digest)


def _digest(kind: int, header: Any, tail: memoryview) -> bytes:
    """Hash of kind, length, header and tail; the length separates the two."""
    hasher = hashlib.sha256(MAGIC + bytes([kind]))
    hasher.update(header)
    hasher.update(tail)
    return hasher.digest()


def _signed(digest: bytes) -> bytes:
    # The hash is signed, not the message: Ed25519 reads its input twice, and a vector is megabytes long.
    return length_prefixed(b"secagg signed message", digest)
