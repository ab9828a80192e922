"""Bitwise: the largest or smallest value of one cohort, one bit a round, of more levels than one round takes.

A thermometer (`secagg.maximum`) asks all its questions in one round, at a word a level. Here round k asks
one: does anybody who agrees with the bits found so far have a one at bit k? The answer is `any_`; after b
rounds the b bits are those of the extremum, and nothing else was told. Clients and server each hold an
instance and feed it the results. It holds for one cohort only: if a client left or came between rounds the
bits could be those of no value at all, and would tell of values that are not the extremum. So it stops.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import CohortError, EncodingError, PhaseError, RoundAborted, SchemaError
from .fields import any_
from .reductions import Shape
from .reductions.base import NOT_FINITE, is_finite, outside, plain, verify_int, verify_number

MAX_BITS: Final = 48
"""Levels are exact in float64, with room for their rounding."""


class BitwiseExtreme:
    """The largest (or smallest) value of a cohort, found bit by bit from the highest.

    Guarantees:
        - With one cohort and results that are true, `result` is the extremum: exact for integers, else
          rounded up (the smallest: down) to a level. It errs with a probability of 2^-64 a bit.
        - The answers' disjunctions tell the extremum and nothing else.
        - A client that answered true and is told "nobody" stops, and so does everybody else on seeing the
          cohort change: a server that denies a bit learns one bit of other values, and no more.

    Args:
        low: Smallest value; two ints as limits declare integers.
        high: Largest value.
        smallest: Whether the smallest value is wanted rather than the largest.
        bits: Rounds for real values, which have 2^bits levels; integers take as many as they need.
        shape: Shape of one client's value.

    Raises:
        SchemaError: If the limits or bits cannot be carried.

    Example:
        >>> searches = {name: BitwiseExtreme(0, 1000) for name in ("a", "b", "c")}
        >>> values = {"a": 17, "b": 613, "c": 600}
        >>> for _ in range(searches["a"].rounds):
        ...     answers = [searches[name].answer(values[name]) for name in values]
        ...     for search in searches.values():
        ...         search.learn(any(answers), survivors=values)  # of a masked round, in earnest
        >>> searches["a"].result()
        613
    """

    def __init__(
        self,
        low: float,
        high: float,
        *,
        smallest: bool = False,
        bits: int = 16,
        shape: Shape | None = None,
    ) -> None:
        self._integer = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in (low, high))
        if self._integer:
            self._low, self._high = (verify_int("a limit", limit, -(2**62), 2**62) for limit in (low, high))
            self._top = int(self._high - self._low)
        else:
            self._low, self._high = (verify_number("a limit", limit) for limit in (low, high))  # type: ignore[assignment]
            self._top = 2 ** verify_int("bits", bits, 1, MAX_BITS) - 1
        if not self._low < self._high:
            raise SchemaError(f"Expected low < high, got {low} and {high}.")
        self._smallest = smallest
        self.field: Any = any_(shape)
        self.rounds: int = self._top.bit_length()
        self._found = np.zeros(self.field.dims, np.int64)
        self._level: NDArray[np.int64] | None = None
        self._cohort: frozenset[str] | None = None
        self._learnt = 0
        self._failed = False

    def __repr__(self) -> str:
        kind = "smallest" if self._smallest else "largest"
        return f"BitwiseExtreme({kind} in {self._low}..{self._high}, {self._learnt} of {self.rounds} rounds)"

    def answer(self, value: Any) -> Any:
        """What this client's `any_` field holds in this round: never the same as its value.

        Args:
            value: This client's value, the same in every round.

        Returns:
            True where it agrees with the bits found so far and has a one at the next.

        Raises:
            EncodingError: If the value is beyond the limits, not finite, of another shape or type, or not
                that of the round before.
            PhaseError: If all rounds are over, or one failed.
        """
        self._expect_open("answer")
        level = self._leveled(np.asarray(value))
        if self._level is not None and not np.array_equal(level, self._level):
            raise EncodingError("Expected the same value in every round, got another one.")
        self._level = level
        return plain(self._says_one(level))

    def _says_one(self, level: NDArray[np.int64]) -> NDArray[np.bool_]:
        # So far the found bits are the upper ones; the lower ones are zero.
        place = self.rounds - 1 - self._learnt
        agrees: NDArray[np.bool_] = np.equal(level >> place, (self._found >> place) | 1)
        return agrees

    def learn(self, found: Any, survivors: Iterable[str]) -> None:
        """Take the result of a round.

        Args:
            found: What the round's `any_` field gave.
            survivors: Ids of the clients whose answers are in it.

        Raises:
            CohortError: If they are not those of the first round; the search is over.
            RoundAborted: If this client answered true and the result says that nobody did.
            EncodingError: If the result is not of the field's shape and type; nothing changes.
            PhaseError: If all rounds are over, or one failed.
        """
        self._expect_open("learn")
        bits = np.asarray(found)
        if bits.dtype != np.bool_ or bits.shape != self.field.dims:
            raise EncodingError(
                f"Expected truth values of shape {self.field.dims}, got {bits.dtype} of shape {bits.shape}."
            )
        cohort = frozenset(survivors)
        if self._cohort is not None and cohort != self._cohort:
            self._failed = True
            gone, come = sorted(self._cohort - cohort), sorted(cohort - self._cohort)
            raise CohortError(
                f"Expected the cohort of the first round in round {self._learnt + 1} of {self.rounds}, got "
                f"one without {gone} and with {come}: its bits would be those of no value. Begin again.",
                [*gone, *come],
            )
        if self._level is not None and np.any(self._says_one(self._level) & ~bits):
            self._failed = True
            raise RoundAborted(
                f"Round {self._learnt + 1} of {self.rounds}: this client answered true, and the result says "
                "that nobody did. The server erred or lies; nothing more is answered."
            )
        self._cohort = cohort
        self._found = self._found | (bits.astype(np.int64) << (self.rounds - 1 - self._learnt))
        self._learnt += 1

    def result(self) -> Any:
        """The extremum, after the last round.

        Raises:
            PhaseError: If rounds are left, or one failed.
            RoundAborted: If the bits are those of no level, which only answers beyond the limits can make.
        """
        if self._failed or self._learnt < self.rounds:
            state = "failed" if self._failed else f"after {self._learnt} of {self.rounds} rounds"
            raise PhaseError(f"Expected all rounds to be over for result(), this search is {state}.")
        if np.any(self._found > self._top):
            raise RoundAborted("The bits found are those of no level: a client answered beyond its limits.")
        level = self._top - self._found if self._smallest else self._found
        return plain(np.asarray(self._value(level)))

    def _expect_open(self, call: str) -> None:
        if self._failed or self._learnt == self.rounds:
            state = "failed" if self._failed else "over"
            raise PhaseError(f"Expected rounds left for {call}(), this search is {state}.")

    def _value(self, level: NDArray[np.int64]) -> NDArray[Any]:
        if self._integer:
            return self._low + level
        return np.where(
            level == self._top, self._high, self._low + level * ((self._high - self._low) / self._top)
        )

    def _leveled(self, value: NDArray[Any]) -> NDArray[np.int64]:
        """The value's level, counted from the far end where the smallest is wanted."""
        kinds = "iu" if self._integer else "iuf"
        if value.shape != self.field.dims or value.dtype.kind not in kinds:
            wanted = "integers" if self._integer else "real numbers"
            raise EncodingError(
                f"Expected {wanted} of shape {self.field.dims}, got {value.dtype} of shape {value.shape}."
            )
        if not is_finite(value):
            raise EncodingError(f"A bitwise extreme {NOT_FINITE}.")
        if not self._integer:
            value = value.astype(np.float64)  # In half precision a limit could be rounded, or overflow.
        if np.any(value < self._low) or np.any(value > self._high):
            what = (
                outside(int(self._low), int(self._high)) if self._integer else "expected values in its limits"
            )
            raise EncodingError(f"A bitwise extreme {what}. Clip them, or widen the limits.")
        level = value.astype(np.int64) - int(self._low) if self._integer else self._nearest(value)
        return self._top - level if self._smallest else level

    def _nearest(self, value: NDArray[np.float64]) -> NDArray[np.int64]:
        """The next level on the safe side: at least the value, or at most it where the smallest is wanted."""
        scaled = (value - self._low) * (self._top / (self._high - self._low))
        level = np.clip(np.rint(scaled), 0, self._top).astype(np.int64)
        if self._smallest:
            level -= self._value(level) > value
        else:
            level += self._value(level) < value
        return np.clip(level, 0, self._top)
