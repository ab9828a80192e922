"""The vocabulary of fields: what to write where an aux-var or a schema says how clients' values combine.

Each function returns a frozen reduction (see `secagg.reductions`). They are annotated `Any`, as
`dataclasses.field` is, so that a class body may read ``loss: float = averaged(bound=10.0)``.
"""

from __future__ import annotations

from typing import Any

from .reductions import (
    Adaptive,
    AllTrue,
    AnyTrue,
    Averaged,
    Bound,
    Counted,
    Local,
    Public,
    Refused,
    Same,
    Shape,
    Summed,
    TrueCount,
)


def summed(bound: Bound, bits: int = 16, shape: Shape | None = None, guard_bits: int = 0) -> Any:
    """Declare a field whose values add up over the clients.

    Values are carried in fixed point: 2^bits − 1 levels between −bound and bound, rounded stochastically.

    Guarantees:
        - Zero is exact; integers (an int `bound`) are exact or refused, never rounded or clipped.
        - Inside the bounds the rounding is unbiased to within 2^-23 of a quantum, and each client adds less
          than one quantum ``bound / (2^(bits-1) - 1)`` of error to the sum.
        - A value outside the bounds is clipped to them and counted in a masked lane of its own.

    Args:
        bound: Largest absolute value of one client's entry, value units: a float for real values, an int for
            integers, or `adaptive()` for real values whose size is not known beforehand.
        bits: Precision of one client's value: 2..28 for reals, up to 62 for integers.
        shape: Shape of one client's value; None is a scalar until `Schema.resolve` gives another.
        guard_bits: Bits by which lanes are wider than values need, as room for noise that clients add to
            levels: 2^guard_bits times the room of a value.

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If bound, bits or shape cannot be carried.

    Example:
        >>> summed(1.0, bits=8).quantum == 1 / 127
        True
    """
    return Summed(bound, bits, shape, guard_bits)


def averaged(
    bound: Bound,
    weight: str | None = None,
    bits: int = 16,
    shape: Shape | None = None,
    guard_bits: int = 0,
) -> Any:
    """Declare a field whose values average over the clients.

    Guarantees:
        - The mean differs from the exact mean of values inside the bounds by less than one quantum
          ``bound / (2^(bits-1) - 1)``, whatever the weights.
        - NaN, and no error, where the total weight is zero.

    Args:
        bound: Largest absolute value of one client's entry (see `summed`).
        weight: Name of the scalar `counted` field of the same schema that weighs this one; None weighs all
            clients alike.
        bits: Precision of one client's value. A weighted lane also needs log2 of the largest weight.
        shape: Shape of one client's value; None is a scalar until `Schema.resolve` gives another.
        guard_bits: Bits by which lanes are wider than values need, as room for noise that clients add to
            levels: 2^guard_bits times the room of a value.

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If bound, bits, shape or weight cannot be carried.

    Example:
        >>> averaged(10.0, weight="samples").reduce([1.0, 4.0], weights=[2, 1])
        2.0
    """
    return Averaged(bound, bits, shape, guard_bits, weight)


def counted(at_most: int = 2**20, shape: Shape | None = None, guard_bits: int = 0) -> Any:
    """Declare a field of non-negative integers that add up exactly.

    Args:
        at_most: Largest value of one client; a larger one is refused at the client.
        shape: Shape of one client's value; None is a scalar until `Schema.resolve` gives another.
        guard_bits: Bits by which lanes are wider than values need, as room for noise that clients add to
            levels: 2^guard_bits times the room of a value.

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If `at_most` or `shape` cannot be carried.

    Example:
        >>> counted().reduce([120, 80])
        200
    """
    return Counted(at_most, shape, guard_bits)


def true_count(shape: Shape | None = None, guard_bits: int = 0) -> Any:
    """Declare truth values, of which the server learns how many are true.

    Args:
        shape: Shape of one client's value, for one count an entry; None is a scalar until `Schema.resolve`
            gives another.
        guard_bits: Room for noise (see `summed`).

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If `shape` cannot be carried.

    Example:
        >>> true_count().reduce([True, False, True])
        2
    """
    return TrueCount(shape, guard_bits)


def any_(shape: Shape | None = None) -> Any:
    """Declare truth values, of which the server learns whether any client holds true, and not how many.

    Each value is a whole 64-bit word: zero if false, else drawn by the operating system's generator among the
    words that are not zero. A sum of such words is zero if all are false.

    Guarantees:
        - False is never decoded as true; true is decoded as false with a probability of 2^-64 an entry.
        - Beyond the truth value the sum tells nothing: whoever holds true, and however many, it is uniform to
          within 2^-63.

    Args:
        shape: Shape of one client's value; None is a scalar until `Schema.resolve` gives another. With one
            entry for each member of a known universe it is the union of sets.

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If `shape` cannot be carried.

    Example:
        >>> any_(shape=(3,)).reduce([[True, False, False], [True, True, False]]).tolist()
        [True, True, False]
    """
    return AnyTrue(shape)


def all_(shape: Shape | None = None) -> Any:
    """Declare truth values, of which the server learns whether all clients hold true, and not how many do.

    Carried as "does any hold false", with the guarantees of `any_`: true where all hold true, always; true in
    error with a probability of 2^-64 an entry.

    Args:
        shape: Shape of one client's value; None is a scalar until `Schema.resolve` gives another.

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If `shape` cannot be carried.

    Example:
        >>> all_().reduce([True, False])
        False
    """
    return AllTrue(shape)


def same() -> Any:
    """Declare a value that all clients must hold alike; where one differs the round does not open.

    It costs no lane: a hash of it is signed and enters the key derivation. A value that can be guessed can
    be confirmed from the hash, so it is no place for secrets.

    Example:
        >>> same().reduce(["resnet", "resnet"])
        'resnet'
    """
    return Same()


def public() -> Any:
    """Declare a value that every client publishes: in clear, signed, and listed as such.

    Example:
        >>> public().reduce(["v1", "v2"])
        ('v1', 'v2')
    """
    return Public()


def local() -> Any:
    """Declare a value that never leaves its client.

    Example:
        >>> local().disclosure
        'nothing: the value never leaves its client'
    """
    return Local()


def adaptive(initial: float = 1.0, at_most: float = 2.0**16) -> Any:
    """A bound that follows the values: for `summed` and `averaged` fields of unknown size.

    From round to round the bound doubles when anything was clipped, and otherwise moves towards four times
    the clients' mean peak, at most halving. Clip count and mean peak are themselves masked sums that the
    server learns (`explain` lists them); the server proposes the next bound in its offer.

    Guarantees:
        - No bound passes `at_most`, whatever a server offers.

    Args:
        initial: Bound of the first round, value units.
        at_most: Cap, value units.

    Returns:
        The bound, to be given to `summed` or `averaged`.

    Raises:
        SchemaError: If a bound is not finite and positive, or `initial` is above `at_most`.

    Example:
        >>> summed(adaptive(initial=0.5)).limit
        0.5
    """
    return Adaptive(initial, at_most)


def union() -> Any:
    """Marker: a set of ids cannot travel in a masked sum; a field that asks for it is refused."""
    return Refused("union", "Count them: counted(); or publish them: public().")


def concatenated() -> Any:
    """Marker: a concatenation cannot travel in a masked sum; a field that asks for it is refused."""
    return Refused("concatenated", "Sum them: summed(); or publish them: public().")


def argmax() -> Any:
    """Marker: an arg-max cannot travel in a masked sum; a field that asks for it is refused."""
    return Refused("argmax", "Count votes: counted(shape=(candidates,)); or publish them: public().")


def product() -> Any:
    """Marker: a product cannot travel in a masked sum; a field that asks for it is refused."""
    return Refused("product", "Sum logarithms: summed(); or publish them: public().")
