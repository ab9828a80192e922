"""Bounds that follow the values: they settle, close to what is needed, and rarely clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import Encoding, Schema, SchemaError, adaptive, summed
from secagg.reductions import Adaptive
from secagg.reductions.sums import peak_level

ROUNDS, SETTLING, SIZE = 200, 40, 64


def following(encoding: Encoding, values: np.ndarray) -> tuple[float, int]:
    """The next bound and the number of clipped values, of one whole round."""
    words = [encoding.encode({"x": x}, np.random.default_rng(i)) for i, x in enumerate(values)]
    reduced = encoding.decode(np.sum(words, axis=0, dtype=np.uint64), len(values))
    return reduced.bounds["x"], reduced.clipped["x"]


def played(draw, n: int, initial: float, rounds: int = ROUNDS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bound, largest value and number of clipped values of each round, from the clients' peaks alone."""
    rule = Adaptive(initial, 1e9)
    bounds, largest, clipped = [], [], []
    for number in range(rounds):
        sizes = np.abs(draw(number, n))
        bounds.append(rule.value)
        largest.append(sizes.max())
        clipped.append(np.count_nonzero(sizes > rule.value))
        peaks = np.minimum(sizes.max(axis=1) / rule.value, 1.0)
        rule = Adaptive(initial, 1e9, rule.following(sum(peak_level(float(peak)) for peak in peaks)))
    return np.array(bounds), np.array(largest), np.array(clipped)


def drawn(kind: str):
    rng = np.random.default_rng(20261121)
    draws = {
        "gaussian": lambda n: rng.standard_normal((n, SIZE)),
        "one value": lambda n: np.r_["-1", rng.standard_normal((n, 1)), np.zeros((n, SIZE - 1))],
        "laplace": lambda n: rng.laplace(size=(n, SIZE)),
        "student 3": lambda n: rng.standard_t(3, (n, SIZE)),
        "one client of 100": lambda n: rng.standard_normal((n, SIZE)) * np.r_[100, np.ones(n - 1)][:, None],
    }
    return lambda number, n: draws[kind](n)


@pytest.mark.parametrize("initial", [1e-3, 1e5])
@pytest.mark.parametrize("n", [5, 50])
@pytest.mark.parametrize(
    ("kind", "rounds_clipped"),
    [("gaussian", 0), ("one value", 0.02), ("laplace", 0.02), ("student 3", 0.06), ("one client of 100", 0)],
)
def test_the_bound_settles_near_what_is_needed_and_rarely_clips(kind, rounds_clipped, n, initial):
    bounds, largest, clipped = (a[SETTLING:] for a in played(drawn(kind), n, initial))
    needed = np.quantile(largest, 0.95)
    assert np.mean(clipped > 0) <= rounds_clipped
    assert np.mean(clipped) <= 0.01 * SIZE * n * rounds_clipped + 1e-12
    assert needed <= np.median(bounds) <= 4 * needed
    assert np.all(bounds <= 8 * needed)
    assert np.all(bounds >= needed / 3)


@pytest.mark.parametrize("kind", ["gaussian", "student 3"])
def test_rounds_that_are_encoded_and_summed_follow_the_same_bounds(kind):
    draw, encoded = drawn(kind), []
    schema = Schema(x=summed(adaptive(0.01, at_most=1e9), shape=(SIZE,)))
    for number in range(30):
        bound, clipped = following(Encoding(schema, 6), draw(number, 6))
        encoded.append((schema.adaptive_bounds()["x"], clipped))
        schema = schema.with_bounds({"x": bound})
    bounds, _, clipped = played(drawn(kind), 6, 0.01, 30)
    assert encoded == list(zip(bounds, clipped, strict=True))
    assert clipped[0] > 0


def test_values_of_one_size_give_one_bound_for_ever():
    bounds, _, clipped = played(lambda number, n: np.full((n, SIZE), 0.7), 5, 1.0)
    assert not clipped[1:].any()
    assert bounds[SETTLING] == pytest.approx(1.4 * 5 ** (1 / 8))
    assert np.ptp(bounds[SETTLING:]) < 1e-3, "no sawtooth"


def test_a_rule_that_halves_and_doubles_would_fail():
    """The power of the tests above: half of all rounds clip where the bound halves after each other one."""
    rng = np.random.default_rng(1)
    bound, clipped, largest = 1.0, [], []
    for _ in range(ROUNDS):
        peaks = np.abs(rng.standard_normal((50, SIZE)) * np.r_[100, np.ones(49)][:, None]).max(1)
        clipped.append(peaks.max() > bound)
        largest.append(peaks.max())
        bound = 2 * bound if clipped[-1] else max(4 * np.minimum(peaks, bound).mean(), bound / 2)
    assert np.mean(clipped[SETTLING:]) > 0.3


def test_values_that_shrink_take_the_bound_with_them():
    scale = 0.95 ** np.arange(ROUNDS)
    rng = np.random.default_rng(2)
    bounds, largest, clipped = played(
        lambda number, n: scale[number] * rng.standard_normal((n, SIZE)), 10, 16.0
    )
    assert not clipped.any()
    assert np.all(bounds[SETTLING + 1 :] <= 8 * 10 ** (1 / 8) * largest[SETTLING:-1])


@given(st.floats(1e-6, 1.0), st.floats(0.01, 1.9), st.integers(1, 6))
def test_values_that_grow_by_less_than_the_stated_factor_are_never_clipped(first, growth, n):
    """After a round with nothing clipped the bound leaves room for 1.9 times the largest value."""
    encoding = Encoding(Schema(x=summed(adaptive(1.0, at_most=1e9), shape=(1,))), n)
    bound, clipped = following(encoding, np.r_[np.full(1, first), np.zeros(n - 1)][:, None])
    assert clipped == 0
    assert first * growth <= bound


def test_the_next_bound_is_the_same_whoever_derives_it_and_in_any_order():
    """The rule reads one integer of the sum: here its value is written out by hand."""
    assert Adaptive(1.0, 100.0).following(2**40) == 2.0
    assert Adaptive(1.0, 100.0).following(3 * 2**40) == 2 * np.sqrt(np.sqrt(np.sqrt(3.0)))
    assert Adaptive(1.0, 100.0).following(2**40 // 2**8) == 1.0
    assert Adaptive(1.0, 100.0).following(2**40 // 3**8) == 0.97
    assert Adaptive(1.0, 100.0).following(2**40 // 16**8) == 0.5
    assert Adaptive(1.0, 100.0).following(0) == 0.5
    assert Adaptive(1.0, 1.5).following(2**40) == 1.5
    assert Adaptive(2.0**-100, 1.5).following(0) == 2.0**-100
    assert Adaptive(1.0, 1.5, now=2.0**-20).following(0) == 2.0**-20
    assert Adaptive(1.0, 1.5, at_least=0.6).following(0) == 0.6


def test_no_offer_goes_below_the_floor():
    """With a bound of next to nothing the sum of clipped values would be one of signs."""
    schema = Schema(x=summed(adaptive(1.0, at_least=0.25), shape=(4,)), y=summed(adaptive(2.0)))
    assert schema.with_bounds({"x": 0.25, "y": 2.0**-19}).adaptive_bounds() == {"x": 0.25, "y": 2.0**-19}
    for name, bound in (("x", 0.249), ("y", 2.0**-19.1)):
        with pytest.raises(SchemaError, match=r"at_least=0\.25|at_least=1\.9"):
            schema.with_bounds({name: bound})
        offered = schema.with_bounds({name: 2.0}).to_bytes().replace(b'"now":2.0', b'"now":%r' % bound)
        with pytest.raises(SchemaError, match="at_least"):
            Schema.from_bytes(offered)
    with pytest.raises(SchemaError, match="at_least=2"):
        adaptive(1.0, at_least=2.0)


def test_a_cap_holds_whatever_clients_send():
    encoding = Encoding(Schema(x=summed(adaptive(1.0, at_most=3.0), shape=(4,))), 2)
    bound, clipped = following(encoding, np.full((2, 4), 1e300))
    assert (bound, clipped) == (pytest.approx(2 * 2 ** (1 / 8)), 8)
    bound, clipped = following(
        Encoding(Schema(x=summed(adaptive(2.0, at_most=3.0), shape=(4,))), 2), np.full((2, 4), 1e300)
    )
    assert bound == 3.0
