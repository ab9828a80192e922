"""What the server of a run and its clients say to one another: floor 6, typed bytes with limits.

The masked round's own messages travel inside as opaque bytes; `secagg` signs and checks those.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec

__all__ = ["Begin", "Clear", "Ready", "Roster", "Stopped", "Submit", "decode", "encode"]

MAX_BYTES = 1 << 32
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Blob: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=MAX_BYTES)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Begin(msgspec.Struct, frozen=True, tag="begin", forbid_unknown_fields=True):
    """Server to all: a round starts from these weights.

    Attributes:
        run: Id of the run.
        round: Number of the round, from 1.
        steps: Gradient steps that each client takes.
        weights: The model, as `privopt.checkpoint.dump_state` encodes ``{"weights": Vector}``.
        aux: The server's auxiliary variables by aux_name, encoded likewise.
        accepted: For each client, the last round whose result includes what it sent (0: none).
        recorded: For each client, the newest ledger record that the server knows of (0: none).
        offer: The masked round's offer; None where values travel in clear.
    """

    run: Name
    round: Count
    steps: Count
    weights: Blob
    aux: Blob
    accepted: dict[Name, Count]
    recorded: dict[Name, Count]
    offer: Blob | None

    def context(self) -> bytes:
        """What every client of the round must have received alike: all but the offer itself."""
        return encode(msgspec.structs.replace(self, offer=None))


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client released in a round, as its ledger holds it: public constants only."""

    event: dict[str, Any]
    steps: Count
    sampler: Name
    sample_rate: float
    clip_norm: float
    noise_multiplier: float
    ledger_sequence: Count


class Ready(msgspec.Struct, frozen=True, tag="ready", forbid_unknown_fields=True):
    """Client to server: training is done; here is the advert for the masked round."""

    client: Name
    round: Count
    advert: Blob
    releases: list[Release]
    epsilon: float | None


class Clear(msgspec.Struct, frozen=True, tag="clear", forbid_unknown_fields=True):
    """Client to server where masks are off: the values themselves."""

    client: Name
    round: Count
    values: Blob
    releases: list[Release]
    epsilon: float | None


class Roster(msgspec.Struct, frozen=True, tag="roster", forbid_unknown_fields=True):
    """Server to all who are ready: who takes part."""

    round: Count
    roster: Blob


class Submit(msgspec.Struct, frozen=True, tag="submit", forbid_unknown_fields=True):
    """Client to server: the masked vector."""

    client: Name
    round: Count
    masked: Blob


class Stopped(msgspec.Struct, frozen=True, tag="stopped", forbid_unknown_fields=True):
    """Client to server: I take no part in this round.

    Attributes:
        reason: ``"budget"`` (the privacy budget allows no more), ``"refused"`` (the offer is weaker than
            the client's policy) or ``"failed"``; details stay with the client.
    """

    client: Name
    round: Count
    reason: Name
    releases: list[Release]
    epsilon: float | None


Message: TypeAlias = Begin | Ready | Clear | Roster | Submit | Stopped
_DECODER = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Message to bytes."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    """Bytes to message.

    Raises:
        ValueError: If the bytes are no message of this protocol; what they held is not repeated.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"Expected a message of at most {MAX_BYTES} bytes, got {len(data)}.")
    try:
        message: Message = _DECODER.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected a message of a federated round, got {len(data)} bytes that are none."
        ) from error
    return message
