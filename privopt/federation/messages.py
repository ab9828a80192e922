"""What the server of a run and its clients say to one another: floor 6, typed bytes with limits.

Every message is signed by its sender's pinned identity, masks or not. The masked round's own messages travel
inside as opaque bytes; `secagg` signs and checks those by itself, so a `Masking`, which holds nothing else,
has no second signature around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

import secagg

__all__ = ["Begin", "Clear", "Masking", "Ready", "Stopped", "opened", "sealed", "unverified"]

MAX_BYTES = 1 << 32
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Blob: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=MAX_BYTES)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Session: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Real: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e300)]  # no NaN, no infinity: it goes into JSON


class Begin(msgspec.Struct, frozen=True, tag="begin", forbid_unknown_fields=True):
    """Server to all: a round starts from these weights. What is one client's own is in its copy alone.

    Attributes:
        run: Id of the run.
        session: Random name of the server's process; a round of one session is answered once.
        round: Number of the round, from 1.
        steps: Gradient steps that each client takes, or those of each by id; where `seconds` ends the round
            before them, the most.
        weights: The model, as `privopt.checkpoint.dump_state` encodes ``{"weights": Vector}``.
        aux: The server's auxiliary variables by aux_name, encoded likewise.
        accepted: For each client, the last round whose result includes what it sent (0: none).
        recorded: For each client, the newest ledger record that the server knows of (0: none).
        offer: The masked round's offer; None where values travel in clear.
        seconds: Time after which a client takes no further step; None where steps alone count.
        own_names: The aux_names of which each client gets auxiliary variables of its own.
        own: Those of the client that this message goes to, encoded as `aux`; None where there are none.
    """

    run: Name
    session: Session
    round: Count
    steps: Count | dict[Name, Count]
    weights: Blob
    aux: Blob
    accepted: dict[Name, Count]
    recorded: dict[Name, Count]
    offer: Blob | None
    seconds: Real | None = None
    own_names: tuple[Name, ...] = ()
    own: Blob | None = None

    def steps_of(self, client: str) -> int:
        """Steps of one client; 0 where the message names others and not it."""
        return self.steps if isinstance(self.steps, int) else self.steps.get(client, 0)

    def context(self) -> bytes:
        """What every client of the round must have received alike: all but the offer and what is its own."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, offer=None, own=None))


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client released in a round, as its ledger holds it: public constants only."""

    event: dict[str, Any]
    steps: Count
    sampler: Name
    sample_rate: Real
    clip_norm: Real
    noise_multiplier: Real
    ledger_sequence: Count


class Ready(msgspec.Struct, frozen=True, tag="ready", forbid_unknown_fields=True):
    """Client to server: training is done; here is the advert for the masked round.

    Like all answers it names the session: rounds of other runs, and of the same one before a restart, have
    the same numbers and signers.
    """

    session: Session
    round: Count
    advert: Blob
    releases: list[Release]
    epsilon: Real | None


class Clear(msgspec.Struct, frozen=True, tag="clear", forbid_unknown_fields=True):
    """Client to server where masks are off: the values themselves."""

    session: Session
    round: Count
    values: Blob
    releases: list[Release]
    epsilon: Real | None


class Masking(msgspec.Struct, frozen=True, tag="masking", forbid_unknown_fields=True):
    """Either way, after the advert: one message of the masked round, whichever its stage is, and signed."""

    round: Count
    payload: Blob


class Stopped(msgspec.Struct, frozen=True, tag="stopped", forbid_unknown_fields=True):
    """Client to server: I take no part in this round.

    Attributes:
        reason: ``"budget"`` (the privacy budget allows no more), ``"refused"`` (the offer is weaker than
            the client's policy) or ``"failed"`` (the update is not finite); details stay with the client.
    """

    session: Session
    round: Count
    reason: Literal["budget", "refused", "failed"]
    releases: list[Release]
    epsilon: Real | None


Message: TypeAlias = Begin | Ready | Clear | Masking | Stopped


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message as it travels; the server's sender is the empty text, and so is a `Masking`'s signature."""

    sender: Annotated[str, msgspec.Meta(max_length=128)]
    body: Blob
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]


_SEALED = msgspec.msgpack.Decoder(_Sealed)
_MESSAGE = msgspec.msgpack.Decoder(Message)
_DOMAIN = b"privopt federation message 3\0"


def sealed(message: Message, identity: secagg.Identity, sender: str = "") -> bytes:
    """Message to signed bytes; a client names itself as the sender."""
    body = msgspec.msgpack.encode(message)
    signature = b"" if isinstance(message, Masking) else identity.sign(_signed(sender, body))
    return msgspec.msgpack.encode(_Sealed(sender, body, signature))


def _signed(sender: str, body: bytes) -> bytes:
    # The hash is signed, not the body: Ed25519 reads its input twice, and a model is megabytes long.
    name = sender.encode()
    return _DOMAIN + len(name).to_bytes(4, "big") + name + hashlib.sha256(body).digest()


def opened(data: bytes, keys: Mapping[str, bytes]) -> tuple[str, Message]:
    """Signed bytes to sender and message; whether a `Masking` is its sender's, `secagg` has yet to tell.

    Args:
        data: Bytes as they came.
        keys: Pinned public keys of whom a message may come from, by sender.

    Raises:
        ValueError: If the bytes are no message of this protocol, or not signed by one of them; what they
            held is not repeated, and both read alike.
    """
    found = _unsealed(data)
    key = keys.get(found.sender)
    if key is None:
        raise _refused(data)
    if found.signature:
        if not secagg.verify_signature(key, found.signature, _signed(found.sender, found.body)):
            raise _refused(data)
        return found.sender, _message(found.body)
    message = _message(found.body)
    if not isinstance(message, Masking):
        raise _refused(data)
    return found.sender, message


def unverified(data: bytes) -> Message:
    """The message in signed bytes, whoever signed it: for logs and tests, never to act on.

    Raises:
        ValueError: If the bytes are no message of this protocol.
    """
    return _message(_unsealed(data).body)


def _unsealed(data: bytes) -> _Sealed:
    if len(data) > MAX_BYTES:
        raise ValueError(f"Expected a message of at most {MAX_BYTES} bytes, got {len(data)}.")
    try:
        return _SEALED.decode(data)
    except _UNREADABLE as error:
        raise _refused(data) from error


def _message(body: bytes) -> Message:
    try:
        message: Message = _MESSAGE.decode(body)
    except _UNREADABLE as error:
        raise _refused(body) from error
    return message


_UNREADABLE = (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError)


def _refused(data: bytes) -> ValueError:
    return ValueError(f"Expected a signed message of a federated round, got {len(data)} bytes that are none.")
