"""What a plug-in exchanges once a round: floor 3, dataclasses whose fields declare how they sum.

The reductions are `secagg`'s; a class whose field no sum can carry is refused when it is defined.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, dataclass_transform

import numpy as np

from secagg.fields import (
    all_,
    any_,
    averaged,
    counted,
    histogram,
    local,
    maximum,
    minimum,
    moments,
    public,
    quantile,
    same,
    sparse,
    summed,
    true_count,
)
from secagg.reductions import (
    Counted,
    Local,
    MaskedReduction,
    Public,
    Reduction,
    Same,
    verify_reduction,
    with_shape,
)

from .layout import Layout
from .registry import AUX_VARS
from .vector import Vector

__all__ = ["AuxVar"]


@dataclass_transform(
    kw_only_default=True,
    field_specifiers=(
        summed,
        averaged,
        sparse,
        counted,
        true_count,
        moments,
        histogram,
        quantile,
        any_,
        all_,
        maximum,
        minimum,
        same,
        public,
        local,
    ),
)
class AuxVar:
    """Auxiliary variables of one algorithm; every field declares how clients' values combine.

    A subclass sets `name` and declares fields as ``field: type = reduction(...)``. Fields annotated
    ``Vector`` have the model's layout; array fields give their ``shape`` to the reduction. Instances
    are built with keyword arguments, one per field.

    ``a + b``, ``sum(aux_vars)`` and `aggregate` combine instances in clear. That is the oracle
    that the masked path agrees with, up to the precision that the declarations give.

    Example:
        >>> class Count(AuxVar, register=False):
        ...     name = "count"
        ...     steps: int = counted()
        >>> (Count(steps=2) + Count(steps=3)).steps
        5
    """

    name: ClassVar[str]
    weighed_as_update: ClassVar[bool] = False
    """Whether its averaged fields weigh clients as the round's update does."""
    _reductions: ClassVar[dict[str, Reduction]] = {}
    _vectors: ClassVar[frozenset[str]] = frozenset()
    _parts: tuple[Any, ...] | None = None

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        reductions = dict(cls._reductions)
        vectors = set(cls._vectors)
        for field, kind in inspect.get_annotations(cls).items():
            text = kind if isinstance(kind, str) else repr(kind)
            if "ClassVar" in text:
                continue
            reduction = cls.__dict__.get(field)
            verify_reduction(field, reduction, cls.__qualname__)
            assert isinstance(reduction, Reduction)  # noqa: S101 - what verify_reduction established
            reductions[field] = reduction
            (vectors.add if "Vector" in text else vectors.discard)(field)
            # The reduction is a declaration, not a default value.
            delattr(cls, field)
        for field, value in cls.__dict__.items():
            if isinstance(value, Reduction):
                raise TypeError(
                    f"Expected an annotation of field {field!r} of {cls.__qualname__}, got none: without one "
                    f"it is no field. Annotate it, as in `{field}: float = ...`."
                )
        for field, reduction in reductions.items():
            weight = getattr(reduction, "weight", None)
            if weight is not None and not isinstance(reductions.get(weight), Counted):
                raise TypeError(
                    f"Expected the weight {weight!r} of field {field!r} of {cls.__qualname__} to be one of "
                    f"its counted fields, got {[k for k, r in reductions.items() if isinstance(r, Counted)]}."
                )
        cls._reductions, cls._vectors = reductions, frozenset(vectors)
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
        if register:
            AUX_VARS.add(cls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._reductions)})"

    # ---- what the masked path needs -------------------------------------------------------------------

    @classmethod
    def reductions(cls, layout: Layout | None = None) -> dict[str, Reduction]:
        """The declared reduction of each field; with a model's layout, Vector fields get their shape."""
        found = dict(cls._reductions)
        if layout is not None:
            for field in cls._vectors:
                reduction = found[field]
                if isinstance(reduction, MaskedReduction):
                    found[field] = with_shape(reduction, (layout.size,))
        return found

    def to_values(self) -> dict[str, Any]:
        """Field values as `secagg` takes them: Vectors as flat numpy arrays."""
        values = {field: getattr(self, field) for field in self._reductions}
        return {k: v.flatten() if isinstance(v, Vector) else v for k, v in values.items()}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], like: Vector | None = None) -> Self:
        """Build an instance from combined values; flat arrays become Vectors laid out as `like`.

        Args:
            values: One value per field that the round carried; `local` fields become None, and so do `same`
                ones whose value is not given.
            like: A Vector with the model's layout, framework and dtypes.
        """
        fields: dict[str, Any] = {}
        for field, reduction in cls._reductions.items():
            if isinstance(reduction, Local):
                value = None
            else:
                value = values.get(field) if isinstance(reduction, Same) else values[field]
            if (
                field in cls._vectors
                and like is not None
                and isinstance(value, np.ndarray)
                and value.ndim == 1
            ):
                value = like.unflatten(value)
            fields[field] = value
        return cls(**fields)

    # ---- the clear path -------------------------------------------------------------------------------

    @classmethod
    def aggregate(cls, aux_vars: Sequence[AuxVar]) -> Self:
        """Combine clients' instances in clear, each field by its declared reduction.

        Sums and means are taken in float64 over the original instances, so the grouping of
        ``(a + b) + c`` does not matter. Values declared `public` become a tuple, one per client;
        `local` ones None.

        Raises:
            ValueError: If there is none, or values declared `same` differ.
            TypeError: If one has another class.
        """
        parts: list[AuxVar] = []
        for aux_var in aux_vars:
            if type(aux_var) is not cls:
                raise TypeError(f"Expected instances of {cls.__name__}, got {type(aux_var).__name__}.")
            parts.extend(aux_var._parts or (aux_var,))
        if not parts:
            raise ValueError(f"Expected at least one {cls.__name__} to combine, got none.")
        rows = [part.to_values() for part in parts]
        like = next((v for f in cls._vectors if isinstance(v := getattr(parts[0], f), Vector)), None)
        combined: dict[str, Any] = {}
        for field, reduction in cls.reductions(None if like is None else like.layout).items():
            if isinstance(reduction, Local):
                continue
            column = [row[field] for row in rows]
            if isinstance(reduction, Same):
                if any(value != column[0] for value in column):
                    raise ValueError(
                        f"Expected {cls.name}.{field} to be the same everywhere, got different values."
                    )
                combined[field] = column[0]
            elif isinstance(reduction, Public):
                combined[field] = tuple(getattr(part, field) for part in parts)
            else:
                weight = getattr(reduction, "weight", None)
                weights = None if weight is None else [row[weight] for row in rows]
                combined[field] = reduction.reduce(column, weights)
        result = cls.from_values(combined, like)
        result._parts = tuple(parts)
        return result

    def __add__(self, other: object) -> Self:
        if not isinstance(other, AuxVar):
            return NotImplemented
        return type(self).aggregate([self, other])

    def __radd__(self, other: object) -> Self:
        # So that sum(aux_vars) works: it starts from 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented
