"""Hypothesis strategies that many tests share: schemas, and values that fit them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from secagg import Schema, adaptive, averaged, counted, local, summed
from secagg.fields import (
    all_,
    any_,
    histogram,
    maximum,
    minimum,
    moments,
    quantile,
    sparse,
    true_count,
)

SHAPES = st.sampled_from([(), (1,), (3,), (0,), (2, 5), (17,), (40,)])
GUARDS = st.sampled_from([0, 0, 1, 7])
BOUNDS = st.sampled_from([1e-6, 0.1, 1.0, 2.71828, 1e4])


@st.composite
def reals(draw: st.DrawFn) -> Any:
    bound: Any = draw(BOUNDS)
    if draw(st.booleans()):
        bound = adaptive(initial=bound, at_most=bound * 8)
    return summed(bound, draw(st.integers(2, 28)), draw(SHAPES), draw(GUARDS))


@st.composite
def integers(draw: st.DrawFn) -> Any:
    bits = draw(st.integers(2, 40))
    return summed(draw(st.integers(1, 2 ** (bits - 1) - 1)), bits, draw(SHAPES))


@st.composite
def means(draw: st.DrawFn) -> Any:
    bound: Any = draw(st.one_of(BOUNDS, st.integers(1, 100)))
    weight = draw(st.sampled_from([None, "weight"]))
    return averaged(bound, weight, draw(st.integers(8, 20)), draw(SHAPES))


@st.composite
def sparse_sums(draw: st.DrawFn) -> Any:
    size = draw(st.integers(1, 60))
    if draw(st.booleans()):
        start = draw(st.integers(0, size - 1))
        indices: Any = range(start, size, draw(st.integers(1, 5)))
    else:
        indices = sorted(draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20)))
    integer = draw(st.booleans())
    bound: Any = draw(st.integers(1, 100)) if integer else draw(BOUNDS)
    return sparse(bound, indices, size, draw(st.integers(8, 20)), draw(GUARDS))


@st.composite
def powers(draw: st.DrawFn) -> Any:
    weight = draw(st.sampled_from([None, "weight"]))
    return moments(
        draw(st.sampled_from([0.1, 1.0, 2.71828, 100.0])),
        draw(st.integers(1, 5)),
        draw(st.integers(2, 20)),
        at_most=None if weight else draw(st.integers(1, 50)),
        weight=weight,
        shape=draw(SHAPES),
        guard_bits=0 if weight else draw(GUARDS),
    )


EDGES = st.lists(st.integers(-1000, 1000), min_size=2, max_size=9, unique=True).map(
    lambda edges: sorted(edge / 8 for edge in edges)
)
SHARES = st.one_of(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=4))


@st.composite
def extremes(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from([maximum, minimum]))
    low = draw(st.integers(-50, 50))
    high = low + draw(st.integers(1, 20))
    if draw(st.booleans()):
        return kind(low, high, shape=draw(SHAPES))
    return kind(low / 8, high / 8, draw(st.integers(2, 30)), draw(SHAPES))


FIELDS = st.one_of(
    reals(),
    integers(),
    means(),
    st.builds(counted, st.integers(1, 2**30), SHAPES, GUARDS),
    st.builds(true_count, SHAPES, GUARDS),
    sparse_sums(),
    powers(),
    st.builds(histogram, EDGES, at_most=st.integers(1, 50), shape=SHAPES, guard_bits=GUARDS),
    st.builds(quantile, SHARES, EDGES, at_most=st.integers(1, 50), shape=SHAPES),
    extremes(),
    st.builds(any_, SHAPES),
    st.builds(all_, SHAPES),
    st.builds(local),
)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """One to six fields of any kind that travels, and a count that may weigh some of them."""
    fields = draw(st.lists(FIELDS, min_size=1, max_size=6))
    names = [f"module-{i}.value" for i in range(len(fields))]
    return Schema(dict(zip(names, fields, strict=True)), weight=counted(draw(st.integers(1, 2**20))))


def values_for(schema: Schema, rng: np.random.Generator) -> dict[str, Any]:
    """One client's values inside the bounds, the bounds themselves and zero among them."""
    return {
        name: "stays here" if field.kind == "local" else value_for(field, rng)
        for name, field in schema.items()
    }


def value_for(field: Any, rng: np.random.Generator) -> Any:
    """One value of a masked field, as one client gives it."""
    dims = field.dims
    if field.kind in ("true_count", "any", "all"):
        return rng.random(dims) < rng.random()
    if field.kind == "counted":
        return rng.integers(0, field.at_most, dims, endpoint=True)
    if field.kind in ("histogram", "quantile"):
        if rng.random() < 0.2:
            return rng.choice(field.edges, dims)
        margin = (field.edges[-1] - field.edges[0]) / 10
        several = (rng.integers(0, field.at_most, endpoint=True), *dims)
        drawn = rng.uniform(field.edges[0] - margin, field.edges[-1] + margin, several)
        return np.where(rng.random(several) < 0.3, rng.choice(field.edges, several), drawn)
    if field.kind in ("maximum", "minimum"):
        if field.integer:
            return rng.integers(field.low, field.high, dims, endpoint=True)
        drawn = rng.uniform(field.low, field.high, dims)
        return np.where(rng.random(dims) < 0.3, rng.choice(field.grid(), dims), drawn)
    if field.kind == "sparse" and rng.random() < 0.5:
        dims = (field.num_lanes,)
    if field.kind == "moments":
        if field.weight is None and rng.random() < 0.8:
            dims = (rng.integers(0, field.at_most, endpoint=True), *dims)
        return _within(field.bound, dims, rng)
    if field.integer:
        return rng.integers(-int(field.limit), int(field.limit), dims, endpoint=True)
    return _within(field.limit, dims, rng)


def _within(bound: float, dims: tuple[int, ...], rng: np.random.Generator) -> Any:
    drawn = bound * rng.uniform(-1, 1, dims)
    special = bound * rng.integers(-1, 1, dims, endpoint=True)
    return np.where(rng.random(dims) < 0.2, special, drawn)
