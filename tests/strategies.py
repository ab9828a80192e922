"""Hypothesis strategies that many tests share: schemas, and values that fit them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from secagg import Schema, adaptive, averaged, counted, local, summed
from secagg.fields import all_, any_, true_count

SHAPES = st.sampled_from([(), (1,), (3,), (0,), (2, 5), (17,), (40,)])
BOUNDS = st.sampled_from([1e-6, 0.1, 1.0, 2.71828, 1e4])


@st.composite
def reals(draw: st.DrawFn) -> Any:
    bound: Any = draw(BOUNDS)
    if draw(st.booleans()):
        bound = adaptive(initial=bound, at_most=bound * 8)
    return summed(bound, draw(st.integers(2, 28)), draw(SHAPES))


@st.composite
def integers(draw: st.DrawFn) -> Any:
    bits = draw(st.integers(2, 40))
    return summed(draw(st.integers(1, 2 ** (bits - 1) - 1)), bits, draw(SHAPES))


@st.composite
def means(draw: st.DrawFn) -> Any:
    bound: Any = draw(st.one_of(BOUNDS, st.integers(1, 100)))
    weight = draw(st.sampled_from([None, "weight"]))
    return averaged(bound, weight, draw(st.integers(8, 20)), draw(SHAPES))


FIELDS = st.one_of(
    reals(),
    integers(),
    means(),
    st.builds(counted, st.integers(1, 2**30), SHAPES),
    st.builds(true_count, SHAPES),
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
    values: dict[str, Any] = {}
    for name, field in schema.items():
        if field.kind == "local":
            values[name] = "stays here"
            continue
        dims = field.dims
        if field.kind in ("true_count", "any", "all"):
            values[name] = rng.random(dims) < 0.5
        elif field.kind == "counted":
            values[name] = rng.integers(0, field.at_most, dims, endpoint=True)
        elif field.integer:
            values[name] = rng.integers(-int(field.limit), int(field.limit), dims, endpoint=True)
        else:
            drawn = field.limit * rng.uniform(-1, 1, dims)
            special = field.limit * rng.integers(-1, 1, dims, endpoint=True)
            values[name] = np.where(rng.random(dims) < 0.2, special, drawn)
    return values
