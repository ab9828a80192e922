"""What can go wrong in secure aggregation, by what a caller would do about it.

Every error is a `SecAggError`. No message holds a key, a mask, a share or a participant's masked value:
names, lengths, rounds and client ids only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


class SecAggError(Exception):
    """Base class of everything that `secagg` raises on purpose."""


class SchemaError(SecAggError, ValueError):
    """A schema that cannot be carried: a bad field, an overflow, or two parties whose schemas differ."""


class EncodingError(SecAggError, ValueError):
    """A value that its field cannot carry: wrong shape or type, NaN, infinity, an integer out of range."""


class PolicyError(SecAggError):
    """An offer that is weaker than the local policy, or a policy that protects nobody."""


class IdentityError(SecAggError):
    """An identity, a roster or a key file that cannot be used as it is."""


class MessageError(SecAggError):
    """Bytes that were refused: malformed, forged, replayed, or not expected in this phase.

    A refused message changes no state. Forged and damaged messages are told apart by nobody: whoever sent
    them learns only that they were refused.

    Attributes:
        sender: Client that a message with a valid signature came from, or None.
    """

    def __init__(self, message: str, sender: str | None = None) -> None:
        super().__init__(message)
        self.sender = sender


class PhaseError(SecAggError):
    """A call that does not belong to the phase a state machine is in; nothing changes."""


class RoundReused(SecAggError):  # noqa: N818  # it names what happened
    """A round that was already used once: its keys and masks must never be made again."""


class RegisterError(SecAggError):
    """A register of used rounds that is damaged and so cannot vouch for anything."""


class RoundAborted(SecAggError):  # noqa: N818  # it names what happened
    """A round that failed as a whole: nothing was released, the next round may go on.

    Attributes:
        blame: Ids of the clients that the round failed for, sorted; empty where nobody can be named.
    """

    def __init__(self, message: str, blame: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.blame: tuple[str, ...] = tuple(sorted(blame))


class CohortError(RoundAborted):
    """A round that failed because too few clients took part."""


def named(names: Collection[str], most: int = 8) -> str:
    """Ids for an error, the first of them where there are many; `.blame` has them all."""
    shown = sorted(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return f"{shown[:most]}{more}"
