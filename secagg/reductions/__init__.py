"""Reductions: how the values of one field, one per client, combine into what the server learns.

The classes behind the vocabulary of `secagg.fields`. A field declares its reduction once; lanes, encoding,
the clear reference path and `explain` all follow from it. `reduce` is that reference: the simplest correct
version, in clear, that the masked path must reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import SchemaError
from .base import MAX_INTEGER_BITS as MAX_INTEGER_BITS
from .base import MAX_NAME as MAX_NAME
from .base import MAX_REAL_BITS as MAX_REAL_BITS
from .base import MIN_BOUND as MIN_BOUND
from .base import Lanes as Lanes
from .base import MaskedReduction as MaskedReduction
from .base import Number as Number
from .base import Reduction as Reduction
from .base import Shape as Shape
from .base import Source as Source
from .base import verify_name as verify_name
from .base import with_shape as with_shape
from .counts import Counted as Counted
from .counts import TrueCount as TrueCount
from .declared import Declared as Declared
from .declared import Local as Local
from .declared import Public as Public
from .declared import Refused as Refused
from .declared import Same as Same
from .declared import verify_reduction as verify_reduction
from .distributions import Histogram as Histogram
from .distributions import Moments as Moments
from .distributions import Quantile as Quantile
from .extremes import Maximum as Maximum
from .extremes import Minimum as Minimum
from .results import BinCounts as BinCounts
from .results import PowerSums as PowerSums
from .sparse import Sparse as Sparse
from .sums import PEAK_LEVELS as PEAK_LEVELS
from .sums import Adaptive as Adaptive
from .sums import Averaged as Averaged
from .sums import Bound as Bound
from .sums import Bounded as Bounded
from .sums import Summed as Summed
from .truths import AllTrue as AllTrue
from .truths import AnyTrue as AnyTrue

KINDS: dict[str, type[Reduction]] = {
    cls.kind: cls
    for cls in (
        *(Summed, Averaged, Sparse, Counted, TrueCount, Moments, Histogram, Quantile),
        *(AnyTrue, AllTrue, Maximum, Minimum, Same, Public, Local),
    )
}
"""Every reduction, by the name that descriptions give it."""


def reduction_from_dict(config: Mapping[str, Any]) -> Reduction:
    """Inverse of `Reduction.to_dict`; strict: an unknown kind or key is a SchemaError."""
    if not isinstance(config, Mapping):
        raise SchemaError(f"Expected a reduction as a JSON object, got {type(config).__name__}.")
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise SchemaError(f"Expected a reduction of kind {sorted(KINDS)}, got {kind!r}.")
    known = {f.name for f in fields(cls) if f.init}  # type: ignore[arg-type]  # all are dataclasses
    if unknown := set(arguments) - known:
        raise SchemaError(f"Expected the keys of {kind!r} only, got also {sorted(map(str, unknown))}.")
    try:
        for name, value in arguments.items():
            if name == "bound" and isinstance(value, Mapping):
                arguments[name] = Adaptive(**value)
            elif isinstance(value, list):
                arguments[name] = tuple(value)
        return cls(**arguments)
    except TypeError as error:
        raise SchemaError(f"Expected the description of a {kind!r} field; {error}.") from error
