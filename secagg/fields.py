"""The vocabulary of fields: what to write where an aux-var or a schema says how clients' values combine.

Each function returns a frozen reduction (see `secagg.reductions`). They are annotated `Any`, as
`dataclasses.field` is, so that a class body may read ``loss: float = averaged(bound=10.0)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SchemaError
from .reductions import (
    Adaptive,
    AllTrue,
    AnyTrue,
    Averaged,
    Bound,
    Counted,
    Histogram,
    Local,
    Maximum,
    Minimum,
    Moments,
    Public,
    Quantile,
    Refused,
    Same,
    Shape,
    Sparse,
    Summed,
    TrueCount,
)
from .reductions.base import verify_int, verify_number
from .reductions.distributions import MAX_BINS


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


def sparse(
    bound: Bound,
    indices: Sequence[int] | range | NDArray[np.integer[Any]],
    size: int | None = None,
    bits: int = 16,
    guard_bits: int = 0,
) -> Any:
    """Declare a long flat array of which only the entries at public indices travel and add up.

    The indices are part of the schema, alike for all clients and known to the server; only those entries
    are encoded, packed as a `summed` array is. A client gives the whole array, whose other entries are not
    read, or the entries at the indices alone. The result is the whole array, zero elsewhere.

    Guarantees:
        - Those of `summed`, at the indices.

    Args:
        bound: Largest absolute value of one client's entry (see `summed`).
        indices: Places in the array, ascending. A range costs nothing in the schema, however long it is; up
            to about 100,000 single indices fit one.
        size: Length of the whole array; None until `Schema.resolve` gives it.
        bits: Precision of one client's value (see `summed`).
        guard_bits: Room for noise (see `summed`).

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If indices are not ascending or beyond `size`, and as for `summed`.

    Example:
        >>> sparse(10, indices=[1, 4], size=6).reduce([[9, 1, 9, 9, 2, 9], [5, 7]]).tolist()
        [0, 6, 0, 0, 9, 0]
    """
    return Sparse(bound, bits, size, guard_bits, indices)  # type: ignore[arg-type]  # verified there


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


def moments(
    bound: float,
    order: int = 2,
    bits: int = 20,
    at_most: int | None = None,
    weight: str | None = None,
    shape: Shape | None = None,
    guard_bits: int = 0,
) -> Any:
    """Declare values of which the server learns the count and the sums of powers: mean, variance and higher.

    A client gives one value or several, stacked on a first axis; it sums up the powers of what it has and
    encodes the sums. The result is a `secagg.reductions.PowerSums`: `count`, `sums`, `mean`, `variance`.

    Guarantees:
        - The count is exact. In the sum of x^k each client adds less than one quantum
          ``bound^k / (2^(bits-1) - 1)`` of error, however many values it gives; the rounding is unbiased.
        - Entries beyond the bound are clipped to it and counted in a masked lane of their own.

    Args:
        bound: Largest absolute value of an entry, value units. Values are real, whether it is an int or a
            float.
        order: Highest power, 1..8.
        bits: Precision of one client's sums: 2..28.
        at_most: Most values of one client; 2^20 by default.
        weight: Name of the scalar `counted` field that weighs one value a client, in place of several values;
            the count is then the total weight.
        shape: Shape of one value; each entry has moments of its own. None is a scalar until `Schema.resolve`
            gives another.
        guard_bits: Room for noise (see `summed`).

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If a parameter cannot be carried.

    Example:
        >>> found = moments(10.0).reduce([[1.0, 2.0], [3.0]])
        >>> found.count, found.mean, round(found.variance, 6)
        (3, 2.0, 0.666667)
    """
    if at_most is None:
        at_most = 2**20 if weight is None else 1
    return Moments(bound, order, bits, weight, at_most=at_most, shape=shape, guard_bits=guard_bits)


def histogram(
    bins: int | Sequence[float] | NDArray[Any],
    range: tuple[float, float] | None = None,
    at_most: int = 2**20,
    shape: Shape | None = None,
    guard_bits: int = 0,
) -> Any:
    """Declare values of which the server learns how many lie in each bin.

    A client gives one value or several, stacked on a first axis, and encodes its counts, one lane a bin. What
    lies outside is not clipped into the first or last bin but counted apart, below and above. The result is
    a `secagg.reductions.BinCounts`: `edges`, `counts`, `below`, `above`, `total`, `quantile(q)`.

    Guarantees:
        - Counts are exact. Bins are numpy's: with the lower edge, without the upper one; the last with both.

    Args:
        bins: Edges of the bins, ascending; or the number of equal bins over `range`.
        range: First and last edge, where `bins` is a number.
        at_most: Most values of one client.
        shape: Shape of one value; each entry has a histogram of its own. None is a scalar until
            `Schema.resolve` gives another.
        guard_bits: Room for noise (see `summed`).

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If the edges do not ascend, or a parameter cannot be carried.

    Example:
        >>> found = histogram(bins=2, range=(0.0, 10.0)).reduce([[1.0, 2.0, 12.0], [7.0]])
        >>> found.counts.tolist(), found.below, found.above
        ([2, 1], 0, 1)
    """
    return Histogram(_edges("histogram", bins, range), at_most=at_most, shape=shape, guard_bits=guard_bits)


def quantile(
    q: float | Sequence[float],
    bins: int | Sequence[float] | NDArray[Any],
    range: tuple[float, float] | None = None,
    at_most: int = 2**20,
    shape: Shape | None = None,
    guard_bits: int = 0,
) -> Any:
    """Declare values of which the quantiles are wanted, such as the median; the server learns a histogram.

    Guarantees:
        - Less than the width of its bin from the exact quantile, the smallest value that at least a share q
          of all values do not pass: both lie in one bin.
        - −inf or inf where that value lies outside the edges; NaN, and no error, where there is no value.

    Args:
        q: Share in 0..1, such as 0.5 for the median; or several.
        bins: Edges of the bins, or their number over `range` (see `histogram`). Their width is the precision.
        range: First and last edge, where `bins` is a number.
        at_most: Most values of one client.
        shape: Shape of one value; each entry has quantiles of its own, after the axis of several shares.
        guard_bits: Room for noise (see `summed`).

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If `q` is no share, and as for `histogram`.

    Example:
        >>> quantile(0.5, bins=100, range=(0.0, 1.0)).reduce([[0.1, 0.4], [0.9]])
        0.4
    """
    edges = _edges("quantile", bins, range)
    return Quantile(edges, q, at_most=at_most, shape=shape, guard_bits=guard_bits)  # type: ignore[arg-type]


def _edges(what: str, bins: Any, limits: Any) -> Any:
    """Edges as given, or of so many equal bins between limits."""
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)):
        if limits is not None:
            raise SchemaError(f"Expected range= of {what} only where bins= is a number of bins, got edges.")
        return bins  # The reduction verifies them.
    verify_int(f"{what} bins", bins, 1, MAX_BINS)
    if not isinstance(limits, (tuple, list)) or len(limits) != 2:
        raise SchemaError(f"Expected range=(first, last edge) of {bins} {what} bins, got {limits!r}.")
    first, last = (verify_number(f"{what} range", limit) for limit in limits)
    return tuple(np.linspace(first, last, int(bins) + 1).tolist())


def maximum(low: float, high: float, levels: int | None = None, shape: Shape | None = None) -> Any:
    """Declare values of which the server learns the largest, and nothing of the others.

    The value is carried as a thermometer of truth values, each a whole 64-bit word as in `any_`: a vector
    grows by 8 bytes for each level but one, of each entry.

    Guarantees:
        - Two ints as limits declare integers: the result is exact; integers beyond the limits are refused.
        - A float as either limit declares reals: the result is the largest value rounded up to one of
          `levels` equidistant levels, so it is never below it and less than one level above. Values beyond
          the limits are clipped to them and counted in a masked lane of their own.
        - The result errs, downwards, with a probability of 2^-64 a level.

    Args:
        low: Smallest value that can be told from smaller ones; two ints as limits declare integers.
        high: Largest value that can be told from larger ones.
        levels: Number of levels, 2..65536; 256 by default. Of integers there is one for each: leave it out.
        shape: Shape of one client's value; None is a scalar until `Schema.resolve` gives another.

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If the limits or the number of levels cannot be carried.

    Example:
        >>> maximum(0, 100).reduce([12, 57, 3])
        57
    """
    return Maximum(low, high, levels, shape)


def minimum(low: float, high: float, levels: int | None = None, shape: Shape | None = None) -> Any:
    """Declare values of which the server learns the smallest, and nothing of the others.

    As `maximum`, with the result of real values rounded down to a level: never above the smallest value and
    less than one level below.

    Args:
        low: Smallest value that can be told from smaller ones; two ints as limits declare integers.
        high: Largest value that can be told from larger ones.
        levels: Number of levels, 2..65536; 256 by default. Of integers there is one for each: leave it out.
        shape: Shape of one client's value; None is a scalar until `Schema.resolve` gives another.

    Returns:
        The reduction, to be given to a `Schema` or a class attribute.

    Raises:
        SchemaError: If the limits or the number of levels cannot be carried.

    Example:
        >>> minimum(0.0, 1.0).reduce([0.5, 0.25])
        0.25
    """
    return Minimum(low, high, levels, shape)


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


def adaptive(initial: float = 1.0, at_most: float = 2.0**16, at_least: float | None = None) -> Any:
    """A bound that follows the values: for `summed` and `averaged` fields of unknown size.

    The wanted bound is twice the largest absolute value of any client, overestimated by a factor of at most
    n^(1/8): the 8th root of the sum of the 8th powers of the clients' largest values. A bound below it rises
    to it in one round, so at least doubles when a value is clipped; one above decays by 3 % a round, or by
    half where it is more than four times the wanted one. The number of clipped values and the sum of 8th
    powers are masked sums that the server learns (`explain` lists them); the server proposes the next bound
    in its offer, and every client that took part can derive the same.

    Guarantees:
        - No bound passes `at_most`, or falls below `at_least`, whatever a server offers.
        - Where the largest value of a round is less than 1.9 times that of the round before, nothing is
          clipped once the bound has passed it.

    Args:
        initial: Bound of the first round, value units.
        at_most: Cap, value units.
        at_least: Floor, value units; by default `initial` / 2^20. A server that offers false bounds chooses
            within these limits how values are clipped, and so what their sum tells.

    Returns:
        The bound, to be given to `summed` or `averaged`.

    Raises:
        SchemaError: If a bound is not finite and positive, or `initial` is not within the limits.

    Example:
        >>> summed(adaptive(initial=0.5)).limit
        0.5
    """
    return Adaptive(initial, at_most, at_least=at_least)


def union() -> Any:
    """Marker: a set of ids cannot travel in a masked sum; a field that asks for it is refused."""
    return Refused(
        "union",
        "Count them: counted(); mark which of a known universe are there: any_(shape=(size,)); or publish "
        "them: public().",
    )


def concatenated() -> Any:
    """Marker: a concatenation cannot travel in a masked sum; a field that asks for it is refused."""
    return Refused(
        "concatenated",
        "Sum them: summed(); ask how they are distributed: histogram(), moments(); or publish them: "
        "public().",
    )


def argmax() -> Any:
    """Marker: an arg-max cannot travel in a masked sum; a field that asks for it is refused."""
    return Refused(
        "argmax",
        "Count votes: counted(shape=(candidates,)), histogram(); take the largest value: maximum(); or "
        "publish them: public().",
    )


def product() -> Any:
    """Marker: a product cannot travel in a masked sum; a field that asks for it is refused."""
    return Refused(
        "product", "Sum logarithms: summed(); of truth values take all_(); or publish them: public()."
    )
