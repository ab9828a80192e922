"""Schema: the ordered, named fields of one masked vector, and what combining them in clear would give.

Every participant holds the same schema; its canonical bytes are hashed into the signatures and keys of a
round, so that parties who disagree about a field can never add up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from .errors import SchemaError
from .reductions import (
    Adaptive,
    Bounded,
    Counted,
    MaskedReduction,
    Public,
    Reduction,
    Same,
    Shape,
    reduction_from_dict,
    verify_name,
    verify_reduction,
    with_shape,
)

MAX_FIELDS: Final = 4096
MAX_SCHEMA_BYTES: Final = 2**20


class Schema(Mapping[str, Reduction]):
    """Ordered mapping from field names to reductions; immutable, hashable, comparable.

    Guarantees:
        - ``Schema.from_bytes(schema.to_bytes()) == schema``, and equal schemas have equal bytes.
        - Two schemas with equal `digest` are equal (SHA-256).

    Args:
        mapping: Fields whose names are no Python identifiers (``"scaffold.delta"``), in order.
        **fields: Further fields, in order.

    Raises:
        TypeError: If a field declares no reduction, or one that no masked sum can carry.
        SchemaError: If a name is bad or doubled, or a weight names no scalar counted field.

    Example:
        >>> from secagg import Schema, averaged, counted
        >>> schema = Schema(loss=averaged(10.0, weight="n"), n=counted())
        >>> list(schema), schema["n"].at_most
        (['loss', 'n'], 1048576)
    """

    __slots__ = ("_bytes", "_fields", "digest")

    digest: bytes
    """SHA-256 of the canonical bytes."""

    def __init__(self, mapping: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        given = dict(mapping or {})
        if twice := given.keys() & fields.keys():
            raise SchemaError(f"Expected each field once, got {sorted(twice)} twice.")
        given |= fields
        if len(given) > MAX_FIELDS:
            raise SchemaError(f"Expected at most {MAX_FIELDS} fields, got {len(given)}.")
        for name, reduction in given.items():
            verify_name("a field name", name)
            verify_reduction(name, reduction)
        self._fields: dict[str, Reduction] = given
        for name, reduction in given.items():
            if isinstance(reduction, MaskedReduction) and reduction.weighed_by is not None:
                self._verify_weight(name, reduction.weighed_by)
        described = {"version": 1, "fields": [[name, field.to_dict()] for name, field in given.items()]}
        self._bytes = json.dumps(described, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
        if len(self._bytes) > MAX_SCHEMA_BYTES:
            raise SchemaError(
                f"Expected a schema of at most {MAX_SCHEMA_BYTES} bytes, got {len(self._bytes)}."
            )
        self.digest = hashlib.sha256(b"secagg schema" + self._bytes).digest()

    def _verify_weight(self, name: str, weighed_by: str) -> None:
        weight = self._fields.get(weighed_by)
        if isinstance(weight, Counted) and weight.dims == ():
            return
        found = "no such field" if weight is None else f"a {weight.kind!r} field"
        if isinstance(weight, Counted):
            found += f" of shape {weight.dims}"
        raise SchemaError(
            f"Expected the weight {weighed_by!r} of field {name!r} to be a scalar counted() field "
            f"of the same schema, got {found}. Add {weighed_by!r}, or drop weight=."
        )

    def __getitem__(self, name: str) -> Reduction:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return self._bytes == other._bytes if isinstance(other, Schema) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"Schema({', '.join(f'{name}: {field}' for name, field in self._fields.items())})"

    @property
    def masked(self) -> dict[str, MaskedReduction]:
        """The fields that have lanes in the masked vector, in order."""
        return {name: f for name, f in self._fields.items() if isinstance(f, MaskedReduction)}

    @property
    def declared(self) -> dict[str, Same | Public]:
        """The fields whose values are stated when a round opens, in order."""
        return {name: f for name, f in self._fields.items() if isinstance(f, (Same, Public))}

    def resolve(self, shapes: Mapping[str, Shape]) -> Schema:
        """The same schema with the shapes of fields that had none.

        Args:
            shapes: Shapes by field name; fields that are not named keep theirs.

        Returns:
            A new schema.

        Raises:
            SchemaError: If a name is unknown, has no lanes, or was declared with another shape.

        Example:
            >>> from secagg import Schema, summed
            >>> Schema(w=summed(1.0)).resolve({"w": (2, 3)})["w"].shape
            (2, 3)
        """
        fields = dict(self._fields)
        for name, shape in shapes.items():
            if name not in fields:
                raise SchemaError(f"Expected shapes of {list(fields)} only, got one of {name!r}.")
            try:
                fields[name] = with_shape(fields[name], shape)
            except SchemaError as error:
                raise SchemaError(f"Field {name!r}: {error}") from error
        return Schema(fields)

    def adaptive_bounds(self) -> dict[str, float]:
        """This round's bounds of the adaptive fields, by name."""
        return {name: bound.value for name, bound in self._adaptive().items()}

    def with_bounds(self, bounds: Mapping[str, float]) -> Schema:
        """The same schema with new bounds of adaptive fields, for the next round or after a resume.

        Args:
            bounds: Bounds by field name, value units; adaptive fields that are not named keep theirs.

        Returns:
            A new schema.

        Raises:
            SchemaError: If a field is not adaptive, or its bound is not in (0, at_most].
        """
        fields = dict(self._fields)
        known = self._adaptive()
        for name, bound in bounds.items():
            if name not in known:
                raise SchemaError(
                    f"Expected bounds of the adaptive fields {list(known)}, got one of {name!r}."
                )
            fields[name] = _with_bound(fields[name], replace(known[name], now=float(bound)))
        return Schema(fields)

    def base(self) -> Schema:
        """The same schema before its first round: what two parties compare while bounds adapt."""
        if all(bound.now is None for bound in self._adaptive().values()):
            return self
        fields = dict(self._fields)
        for name, bound in self._adaptive().items():
            fields[name] = _with_bound(fields[name], replace(bound, now=None))
        return Schema(fields)

    def _adaptive(self) -> dict[str, Adaptive]:
        return {
            name: field.bound
            for name, field in self._fields.items()
            if isinstance(field, Bounded) and isinstance(field.bound, Adaptive)
        }

    def to_bytes(self) -> bytes:
        """Canonical bytes (JSON)."""
        return self._bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> Schema:
        """Inverse of `to_bytes`; strict.

        Args:
            data: Canonical bytes.

        Returns:
            The schema.

        Raises:
            SchemaError: If the bytes are not the canonical form of a valid schema.
        """
        if len(data) > MAX_SCHEMA_BYTES:
            raise SchemaError(f"Expected a schema of at most {MAX_SCHEMA_BYTES} bytes, got {len(data)}.")
        try:
            described = json.loads(bytes(data))
            fields = {name: reduction_from_dict(config) for name, config in described["fields"]}
            schema = cls(fields)
        except SchemaError:
            raise
        # RecursionError: JSON nested thousands deep. The rest: valid JSON of another form.
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise SchemaError("Expected the canonical bytes of a schema, got something else.") from error
        if schema.to_bytes() != bytes(data):
            raise SchemaError("Expected the canonical bytes of a schema, got another form of them.")
        return schema


def _with_bound(field: Reduction, bound: Adaptive) -> Reduction:
    return replace(field, bound=bound)  # type: ignore[type-var]  # only Bounded come here


def reduce_clear(schema: Schema, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the clients' values in clear: the reference that a masked round must reproduce.

    Nothing is rounded or clipped here. `public` fields give a tuple in the order of `values`; `local` fields
    give nothing.

    Args:
        schema: Fields and their reductions.
        values: One mapping per client.

    Returns:
        Combined values by field name.

    Raises:
        SchemaError: If a client lacks a field.
        ValueError: If clients differ on a `same` field, or there are none.

    Example:
        >>> from secagg import Schema, averaged, counted
        >>> schema = Schema(loss=averaged(10.0, weight="n"), n=counted())
        >>> reduce_clear(schema, [{"loss": 1.0, "n": 2}, {"loss": 4.0, "n": 1}])
        {'loss': 2.0, 'n': 3}
    """
    if not values:
        raise ValueError("Expected the values of at least one client, got none.")
    reduced: dict[str, Any] = {}
    for name, field in schema.items():
        if field.kind == "local":
            continue
        for number, each in enumerate(values):
            if name not in each:
                raise SchemaError(f"Expected field {name!r} from client number {number}, got {sorted(each)}.")
        weight = field.weighed_by if isinstance(field, MaskedReduction) else None
        weights = None if weight is None else [each[weight] for each in values]
        reduced[name] = field.reduce([each[name] for each in values], weights)
    return reduced
