"""A model's parameters or gradients as one value: floor 2, a flat buffer plus a Layout.

Everything that follows (clipping, optimizers, encoding, noise, aggregation) is arithmetic on
Vectors, so it is written once and runs on whichever framework holds the arrays.

Contents: `PerTensor`, one number per tensor; `Vector`: building and packing, views and copies, frameworks and
dtypes, arithmetic, comparison and choice, reductions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, cast

import numpy as np
import numpy.typing as npt

from .backends import Backend, backend_of, named_backend
from .layout import Layout

if TYPE_CHECKING:
    import torch

__all__ = ["PerTensor", "Vector"]

Array = Any
Scalar = int | float


def fractional(dtype: str) -> str:
    """The dtype that numbers per tensor take beside entries of another: integers become float64."""
    return dtype if "float" in dtype or "complex" in dtype else "float64"


_SHAPE = operator.attrgetter("shape")


class PerTensor:
    """One number per tensor of a layout, such as the norm of each; broadcasts against Vectors.

    Arithmetic with scalars and with other PerTensors is elementwise, in float64.

    Attributes:
        layout: The layout whose tensors the numbers belong to.
        values: The numbers, shape ``(len(layout),)``, float64, in the layout's order.
    """

    __slots__ = ("layout", "values")
    __array_ufunc__ = None  # numpy hands `array * PerTensor` to us instead of looping over it

    def __init__(self, layout: Layout, values: npt.NDArray[np.float64]) -> None:
        self.layout = layout
        self.values = values

    def __repr__(self) -> str:
        pairs = ", ".join(f"{n}={v:.6g}" for n, v in zip(self.layout.names, self.values, strict=True))
        return f"PerTensor({pairs})"

    def _with(self, operation: Callable[[Any, Any], Any], other: object, swap: bool = False) -> PerTensor:
        if isinstance(other, PerTensor):
            if other.layout.names != self.layout.names:
                raise ValueError(
                    "Expected two PerTensors of one layout, got two that name different tensors."
                )
            value: Any = other.values
        elif isinstance(other, int | float | np.number):
            value = other
        else:
            return cast(PerTensor, NotImplemented)
        left, right = (value, self.values) if swap else (self.values, value)
        with np.errstate(divide="ignore", invalid="ignore"):
            return PerTensor(self.layout, np.asarray(operation(left, right), np.float64))

    def __add__(self, other: object) -> PerTensor:
        return self._with(np.add, other)

    def __radd__(self, other: object) -> PerTensor:
        return self._with(np.add, other, swap=True)

    def __sub__(self, other: object) -> PerTensor:
        return self._with(np.subtract, other)

    def __rsub__(self, other: object) -> PerTensor:
        return self._with(np.subtract, other, swap=True)

    def __mul__(self, other: object) -> PerTensor:
        return self._with(np.multiply, other)

    def __rmul__(self, other: object) -> PerTensor:
        return self._with(np.multiply, other, swap=True)

    def __truediv__(self, other: object) -> PerTensor:
        return self._with(np.true_divide, other)

    def __rtruediv__(self, other: object) -> PerTensor:
        return self._with(np.true_divide, other, swap=True)

    def __pow__(self, other: object) -> PerTensor:
        return self._with(np.power, other)

    def __rpow__(self, other: object) -> PerTensor:
        return self._with(np.power, other, swap=True)

    def __neg__(self) -> PerTensor:
        return PerTensor(self.layout, -self.values)

    def _no_single(self, *others: object) -> NoReturn:
        raise TypeError(
            "A PerTensor has one number per tensor and no single value. Use minimum, maximum or "
            "where_positive; a hyper-parameter that a branch or a plain number depends on cannot differ "
            "between groups."
        )

    __bool__ = __float__ = __lt__ = __le__ = __gt__ = __ge__ = _no_single

    def sqrt(self) -> PerTensor:
        """Elementwise square root."""
        with np.errstate(invalid="ignore"):
            return PerTensor(self.layout, np.sqrt(self.values))

    def minimum(self, other: Scalar | PerTensor) -> PerTensor:
        """Elementwise minimum; NaN stays NaN."""
        return self._with(np.minimum, other)

    def maximum(self, other: Scalar | PerTensor) -> PerTensor:
        """Elementwise maximum; NaN stays NaN."""
        return self._with(np.maximum, other)

    def where_positive(self, then: PerTensor | Scalar, otherwise: PerTensor | Scalar) -> PerTensor:
        """`then` for the tensors where this is > 0, `otherwise` elsewhere."""
        pick = [x.values if isinstance(x, PerTensor) else x for x in (then, otherwise)]
        return PerTensor(self.layout, np.where(self.values > 0, pick[0], pick[1]).astype(np.float64))

    def to_dict(self) -> dict[str, float]:
        """The numbers by tensor name."""
        return dict(zip(self.layout.names, map(float, self.values), strict=True))


# Numpy's functions that are operations of Vectors, by the backends' names.
_SAME = ("sqrt", "sign", "exp", "log", "isfinite", "minimum", "maximum", "add")
_ALIKE = {"absolute": "abs", "negative": "neg", "subtract": "sub", "multiply": "mul", "divide": "div"}
_ORDER = {"less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge"}
_OF_NUMPY = (
    {name: name for name in _SAME} | _ALIKE | _ORDER | {"power": "pow", "equal": "eq", "not_equal": "ne"}
)


def _unknown(operation: str) -> TypeError:
    return TypeError(f"Expected an operation that Vectors have, got {operation}. {_HAVE}")


_HAVE = (
    "Vectors have + - * / **, comparisons, abs, sqrt, sign, exp, log, isfinite, minimum, maximum, clip and "
    "where, and the reductions sum, dot, norm, sums, norms and row_means. For another function f, "
    "`v.unflatten(f(v.flatten()))` computes on numpy's numbers, and v.coefs holds one array per tensor."
)


class Vector:
    """Named tensors of any supported framework, held in one contiguous buffer per dtype and device.

    Build one with `Vector.build`; `coefs` gives named views back. Arithmetic with scalars, other
    Vectors of the same layout and `PerTensor` values is elementwise and gives a new Vector;
    the in-place forms (``+=`` and so on) write into the same memory, so that a model whose
    parameters are views of the buffer moves with it.

    Guarantees:
        - ``Vector.build(x).coefs`` equals ``x``: names, order, shapes, dtypes, values.
        - An operation between different layouts raises and names the first tensor that differs.
        - A scalar never changes a floating dtype: float32 in, float32 out.

    Example:
        >>> v = Vector.build({"w": np.array([[3.0, 4.0]]), "b": np.array(0.0)})
        >>> (v / v.norm()).coefs["w"]
        array([[0.6, 0.8]])
    """

    __slots__ = ("_backend", "buffers", "layout")
    in_step: ClassVar[bool] = False
    """Whether this is what a plug-in sees inside a step (`privopt.recording`)."""

    def __init__(self, layout: Layout, buffers: Iterable[Array], backend: Backend) -> None:
        """Wrap existing buffers, one per block of the layout; `build` is the usual way in."""
        self.layout = layout
        self.buffers: tuple[Array, ...] = tuple(buffers)
        self._backend = backend

    # ---- construction and views -----------------------------------------------------------------

    @classmethod
    def build(cls, coefs: Mapping[str, Array]) -> Vector:
        """Copy named arrays of one framework into a new Vector.

        Args:
            coefs: Arrays by name; shapes are free (``()`` and empty ones included), dtypes may differ.

        Raises:
            TypeError: If the mapping is none, or its arrays belong to no supported framework or to two.
            ValueError: If it is empty.
        """
        given: Any = coefs
        if not isinstance(given, Mapping):
            hint = " Use dict(model.named_parameters())." if hasattr(given, "named_parameters") else ""
            raise TypeError(f"Expected a mapping of names to arrays, got {type(given).__name__}.{hint}")
        nested = [name for name, array in coefs.items() if isinstance(array, Mapping)]
        if nested:
            raise TypeError(
                f"Expected an array for {nested[0]!r}, got a mapping. Flatten nested parameters first, "
                'such as {"layer.w": array}.'
            )
        if not coefs:
            raise ValueError("Expected at least one named array, got an empty mapping.")
        backends = {name: backend_of(array) for name, array in coefs.items()}
        backend = next(iter(backends.values()))
        for name, found in backends.items():
            if found is not backend:
                raise TypeError(
                    f"Expected arrays of one framework, got {backend.name} and, for {name!r}, {found.name}. "
                    "Convert them to one of the two first."
                )
        described = {name: backend.describe(array) for name, array in coefs.items()}
        layout = Layout.of((name, *what) for name, what in described.items())
        buffers = [
            backend.pack([coefs[s.name] for s in layout.in_block(i)], block.dtype, block.device)
            for i, block in enumerate(layout.blocks)
        ]
        return cls(layout, buffers, backend)

    @staticmethod
    def bind(model: torch.nn.Module) -> tuple[Vector, Vector]:
        """The weights and the gradients of a torch model, as Vectors that its parameters are views of.

        A step on them moves the model, and ``loss.backward()`` writes where the step reads, so nothing is
        copied: ``opt.step(gradients, weights)``. Gradients that the parameters have are kept.

        Where ``zero_grad()`` sets gradients to None, as it does unless told `set_to_none=False`, `backward`
        makes tensors of its own. The step notices, copies them in, and takes zeros where there is none.

        Parameters that require no gradient are left out, so freeze them before; one that stands at several
        places of the model is there once, under its first name.

        Args:
            model: Any module; its parameters may be of several dtypes and on several devices. Their values
                stay, their memory is another: what looked at the old memory (another `bind`, a flat
                buffer) is cut off.

        Raises:
            TypeError: If it is no torch module.
            ValueError: If no parameter requires a gradient, one has no shape yet, or two share memory and
                are not one. A later step raises it if the model was moved (``model.to(...)``): bind again.
        """
        kinds = type(model).__mro__
        if not any(k.__name__ == "Module" and k.__module__.startswith("torch.nn.") for k in kinds):
            raise TypeError(
                f"Expected a torch.nn.Module, got {type(model).__name__}. Vector.build takes named arrays."
            )
        from .backends.torch_model import bind  # torch is loaded, or there would be no module of it

        return bind(model)

    def _gather(self) -> None:
        """Take in, before a step, gradients that a framework left elsewhere; only `bind` makes such."""

    @property
    def framework(self) -> str:
        """Name of the framework that holds the buffers."""
        return self._backend.name

    @property
    def coefs(self) -> dict[str, Array]:
        """The tensors by name: views that share memory with the Vector."""
        return {
            s.name: self._backend.view(self.buffers[s.block], s.offset, s.offset + s.size, s.shape)
            for s in self.layout
        }

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.layout.size

    def __len__(self) -> int:
        return self.layout.size

    def __repr__(self) -> str:
        dtypes = "/".join(block.dtype for block in self.layout.blocks)
        return f"Vector({len(self.layout)} tensors, {self.size} entries, {self.framework} {dtypes})"

    def full_like(self, value: Scalar) -> Vector:
        """A new Vector of this layout, framework and dtype with every entry equal to `value`."""
        blocks = self.layout.blocks
        return self._of(self._backend.full(b.size, value, b.dtype, b.device) for b in blocks)

    def copy(self) -> Vector:
        """A new Vector with the same values in memory of its own."""
        return self._of(map(self._backend.copy, self.buffers))

    def assign(self, other: Vector) -> Self:
        """Write another Vector's values into this one's memory, from whichever framework."""
        if not isinstance(other, Vector):
            raise TypeError(
                f"Expected a Vector, got {type(other).__name__}. .pack(...) writes named arrays, "
                ".unflatten(...) makes a Vector of one array."
            )
        self._verify(other)
        if other._backend is not self._backend:
            other = other.to(self)
        self._write(other.buffers)
        return self

    def _write(self, sources: Sequence[Array]) -> None:
        """Put values into this Vector's memory, or into new buffers where that cannot be written."""
        self.buffers = tuple(map(self._backend.assign, self.buffers, sources))

    def pack(self, coefs: Mapping[str, Array]) -> Self:
        """Write named arrays (a step's gradients, say) into this Vector's memory.

        Args:
            coefs: The arrays that `Vector.build` would take: all of this layout's, in any order. Other
                dtypes are converted.

        Raises:
            ValueError: If a name is missing or too many, or an array has another shape; nothing is written
                then.
            TypeError: If one is no array of this framework; nothing is written then.
        """
        if coefs.keys() != self.layout.name_set:
            missing = [n for n in self.layout.names if n not in coefs]
            extra = [n for n in coefs if n not in self.layout.names]
            wrong = [f"none of {missing}"] if missing else []
            wrong += [f"also {extra}"] if extra else []
            raise ValueError(f"Expected exactly the tensors of this layout, got {' and '.join(wrong)}.")
        # Shapes alone: asking a framework for names of dtypes costs more than packing a small tensor.
        layout, is_array = self.layout, self._backend.is_array
        arrays = [coefs[name] for name in layout.names]
        # C's loops: for 200 small tensors, Python's take as long as copying them.
        if not all(map(is_array, arrays)) or list(map(_SHAPE, arrays)) != layout.shape_list:
            for spec, array in zip(layout.tensors, arrays, strict=True):
                if not is_array(array):
                    got = type(array).__name__
                    raise TypeError(f"Expected an array of {self.framework} for {spec.name!r}, got {got}.")
                if tuple(array.shape) != spec.shape:
                    raise ValueError(
                        f"Expected {spec.name!r} of shape {spec.shape}, got {tuple(array.shape)}."
                    )
        parts = [arrays]
        if len(layout.blocks) > 1:
            parts = [[coefs[spec.name] for spec in layout.in_block(i)] for i in range(len(layout.blocks))]
        self.buffers = tuple(
            self._backend.pack(part, block.dtype, block.device, out)
            for part, block, out in zip(parts, layout.blocks, self.buffers, strict=True)
        )
        return self

    def astype(self, dtype: str) -> Vector:
        """The same values with every block in `dtype` (numpy's spelling, such as ``"float64"``)."""
        pairs = zip(self.buffers, self.layout.blocks, strict=True)
        return self._of(
            self._backend.copy(b) if block.dtype == dtype else self._backend.cast(b, dtype)
            for b, block in pairs
        )

    def to(self, like: Vector) -> Vector:
        """These values in the framework, dtypes and devices of another Vector of the same layout.

        Returns this Vector itself where nothing has to change.
        """
        if not isinstance(like, Vector):
            raise TypeError(
                f"Expected a Vector whose framework, dtypes and devices to take over, got {like!r} "
                f"({type(like).__name__}). Write .to(weights); Vector.build makes one of arrays."
            )
        if self._backend is like._backend and self.layout == like.layout:
            return self
        blocks = like.layout.blocks
        arrays: Iterable[npt.NDArray[Any]] = map(self._backend.to_numpy, self.buffers)
        if self.layout.tensors != like.layout.tensors:
            if self.layout.shapes() != like.layout.shapes() or self.layout.names != like.layout.names:
                self._verify(like)  # raises
            # The same model, spread differently over dtypes and devices.
            coefs = self.to_numpy().coefs
            arrays = [
                np.concatenate([coefs[s.name].reshape(-1) for s in like.layout.in_block(i)])
                for i in range(len(blocks))
            ]
        return Vector(
            like.layout,
            (like._backend.from_numpy(a, b.dtype, b.device) for a, b in zip(arrays, blocks, strict=True)),
            like._backend,
        )

    def to_numpy(self) -> Vector:
        """The same values as a numpy Vector (views where memory can be shared)."""
        if self._backend.name == "numpy":
            return self
        backend = named_backend("numpy")
        return self._of(map(self._backend.to_numpy, self.buffers), backend)

    def flatten(self) -> npt.NDArray[Any]:
        """All entries as one numpy array, shape ``(size,)``, in the layout's order of blocks.

        Several dtypes are promoted to the one that holds them all. The array may share memory.
        """
        arrays = [self._backend.to_numpy(b) for b in self.buffers]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def unflatten(self, flat: npt.NDArray[Any]) -> Vector:
        """A Vector of this layout, framework and dtypes from the entries that `flatten` gives.

        Raises:
            TypeError: If they are no array.
            ValueError: If the number of entries differs.
        """
        if not hasattr(flat, "shape"):
            raise TypeError(
                f"Expected a numpy array of {self.size} entries, got {type(flat).__name__}. "
                "Write np.asarray(...)."
            )
        if flat.shape != (self.size,):
            raise ValueError(f"Expected {self.size} entries in one dimension, got shape {flat.shape}.")
        buffers, start = [], 0
        for block in self.layout.blocks:
            piece = flat[start : start + block.size]
            buffers.append(self._backend.from_numpy(piece, block.dtype, block.device))
            start += block.size
        return Vector(self.layout, buffers, self._backend)

    # ---- arithmetic ------------------------------------------------------------------------------

    def _of(self, buffers: Iterable[Array], backend: Backend | None = None) -> Vector:
        """A Vector of this shape over new buffers, whose dtypes may have changed."""
        backend = backend or self._backend
        buffers = tuple(buffers)
        described = [backend.describe(b) for b in buffers]
        dtypes, devices = [d[1] for d in described], [d[2] for d in described]
        layout = self.layout
        if dtypes != [b.dtype for b in layout.blocks] or devices != [b.device for b in layout.blocks]:
            layout = layout.with_blocks(dtypes, devices)
        return Vector(layout, buffers, backend)

    def _verify(self, other: Vector) -> None:
        # `is` first: in a step nearly every pair of operands shares one Layout object.
        if other.layout is not self.layout:
            difference = self.layout.difference(other.layout)
            if difference is not None:
                raise ValueError(f"Expected two Vectors of the same layout: {difference}.")

    def _operands(self, other: object) -> tuple[Array, ...] | None:
        """The other side of an operation, block by block; None for what we do not know."""
        if isinstance(other, Vector):
            self._verify(other)
            if other._backend is not self._backend:
                raise self._foreign(other)
            return other.buffers
        if isinstance(other, PerTensor):
            return tuple(self._spread(other, i) for i in range(len(self.buffers)))
        if isinstance(other, np.number):
            # A numpy scalar (np.float64 is a float too) has a dtype that would promote float32 to float64.
            other = other.item()
        if isinstance(other, bool | int | float):
            return (other,) * len(self.buffers)
        return None

    def _foreign(self, other: Vector) -> TypeError:
        return TypeError(
            f"Expected two Vectors of one framework, got {self.framework} and {other.framework}. "
            "Convert one with `.to(other)`."
        )

    def _spread(self, per_tensor: PerTensor, block: int) -> Array:
        segments = per_tensor.layout
        if segments.names != self.layout.names and segments.names != self.layout.rows.names:
            raise ValueError(
                "Expected a PerTensor of this Vector's layout, got one that names other tensors."
            )
        kept, _ = segments.places(block)
        where = self.layout.blocks[block]
        sizes = segments.sizes[kept].tolist()
        return self._backend.repeat(per_tensor.values[kept], sizes, fractional(where.dtype), where.device)

    def _binary(self, operation: str, other: object, swap: bool = False) -> Vector:
        operands = self._operands(other)
        if operands is None:
            return cast(Vector, NotImplemented)
        run = self._backend.binary
        if swap:
            return self._of(run(operation, o, b) for b, o in zip(self.buffers, operands, strict=True))
        return self._of(run(operation, b, o) for b, o in zip(self.buffers, operands, strict=True))

    def _in_place(self, operation: str, other: object) -> Self:
        result = self._binary(operation, other)
        if result is NotImplemented:
            return cast(Self, NotImplemented)
        self._write(result.buffers)
        return self

    def _unary(self, operation: str) -> Vector:
        return self._of(self._backend.unary(operation, b) for b in self.buffers)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Vector:
        """Numpy's elementwise functions of Vectors and numbers: ``np.sqrt(v)``, ``np.float64(2) * v``."""
        name = _OF_NUMPY.get(ufunc.__name__)
        if name is None or method != "__call__" or options:
            raise _unknown(f"numpy.{ufunc.__name__}")
        if len(inputs) == 1:
            return self._unary(name)
        left, right = (x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs)
        result: Any = (
            left._binary(name, right) if isinstance(left, Vector) else right._binary(name, left, True)
        )
        if result is NotImplemented:
            kinds = ("Vector" if isinstance(x, Vector) else type(x).__name__ for x in inputs)
            raise TypeError(
                f"Expected an operation of Vectors and numbers, got numpy.{ufunc.__name__} of "
                f"{' and '.join(kinds)}. `v.unflatten(array)` makes a Vector of an array's numbers."
            )
        return cast(Vector, result)

    def __array_function__(self, function: Any, kinds: Any, inputs: Any, options: Any) -> NoReturn:
        raise _unknown(f"numpy.{getattr(function, '__name__', function)}")

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, inputs: Any = (), options: Any = None) -> NoReturn:
        raise _unknown(f"torch's {getattr(function, '__name__', function)}")

    def _no_single(self) -> NoReturn:
        raise TypeError("A Vector has no single value. Use v.norm(), v.sum() or v.dot(w), which are numbers.")

    __float__ = __int__ = __complex__ = _no_single

    if not TYPE_CHECKING:  # to type checkers an operation that there is none of stays an error

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):
                return object.__getattribute__(self, name)  # what a property raised is raised again
            raise AttributeError(str(_unknown(f".{name}")), name=name, obj=self)

    def __array__(self, *arguments: Any, **options: Any) -> NoReturn:
        raise TypeError(
            "Expected a method that gives numpy arrays, got a Vector where numpy wants one. Use .flatten() "
            "for one array, .coefs for one per tensor."
        )

    def __add__(self, other: object) -> Vector:
        return self._binary("add", other)

    def __radd__(self, other: object) -> Vector:
        return self._binary("add", other, swap=True)

    def __sub__(self, other: object) -> Vector:
        return self._binary("sub", other)

    def __rsub__(self, other: object) -> Vector:
        return self._binary("sub", other, swap=True)

    def __mul__(self, other: object) -> Vector:
        return self._binary("mul", other)

    def __rmul__(self, other: object) -> Vector:
        return self._binary("mul", other, swap=True)

    def __truediv__(self, other: object) -> Vector:
        return self._binary("div", other)

    def __rtruediv__(self, other: object) -> Vector:
        return self._binary("div", other, swap=True)

    def __pow__(self, other: object) -> Vector:
        return self._binary("pow", other)

    def __neg__(self) -> Vector:
        return self._unary("neg")

    def __abs__(self) -> Vector:
        return self._unary("abs")

    def __iadd__(self, other: object) -> Self:
        return self._in_place("add", other)

    def __isub__(self, other: object) -> Self:
        return self._in_place("sub", other)

    def __imul__(self, other: object) -> Self:
        return self._in_place("mul", other)

    def __itruediv__(self, other: object) -> Self:
        return self._in_place("div", other)

    def __lt__(self, other: object) -> Vector:
        return self._binary("lt", other)

    def __le__(self, other: object) -> Vector:
        return self._binary("le", other)

    def __gt__(self, other: object) -> Vector:
        return self._binary("gt", other)

    def __ge__(self, other: object) -> Vector:
        return self._binary("ge", other)

    # A comparison is elementwise, so a Vector as a whole has no truth value and no hash.
    def __eq__(self, other: object) -> Vector:  # type: ignore[override]  # elementwise, as in numpy
        return self._binary("eq", other)

    def __ne__(self, other: object) -> Vector:  # type: ignore[override]  # elementwise, as in numpy
        return self._binary("ne", other)

    __hash__ = None  # type: ignore[assignment]  # mutable, and compared elementwise

    def __bool__(self) -> bool:
        raise TypeError(
            "A Vector has no single truth value. Use v.norm(), v.sum() or v.equals(w) to decide on one."
        )

    def equals(self, other: Vector) -> bool:
        """Whether layouts, dtypes and every entry are the same (NaN differs from itself)."""
        if not isinstance(other, Vector) or self.layout != other.layout:
            return False
        pairs = zip(self.buffers, other.buffers, strict=True)
        return all(np.array_equal(self._backend.to_numpy(a), other._backend.to_numpy(b)) for a, b in pairs)

    def sqrt(self) -> Vector:
        """Elementwise square root."""
        return self._unary("sqrt")

    def sign(self) -> Vector:
        """Elementwise sign, 0 at 0."""
        return self._unary("sign")

    def abs(self) -> Vector:
        """Elementwise absolute value."""
        return self._unary("abs")

    def exp(self) -> Vector:
        """Elementwise exponential."""
        return self._unary("exp")

    def log(self) -> Vector:
        """Elementwise natural logarithm."""
        return self._unary("log")

    def isfinite(self) -> Vector:
        """Elementwise: neither NaN nor infinite (booleans)."""
        return self._unary("isfinite")

    def minimum(self, other: Vector | PerTensor | Scalar) -> Vector:
        """Elementwise minimum with a Vector, a PerTensor or a scalar."""
        return self._known("minimum", other)

    def maximum(self, other: Vector | PerTensor | Scalar) -> Vector:
        """Elementwise maximum with a Vector, a PerTensor or a scalar."""
        return self._known("maximum", other)

    def clip(self, low: Vector | Scalar, high: Vector | Scalar) -> Vector:
        """Entries limited to [low, high]."""
        return self.maximum(low).minimum(high)

    def _known(self, operation: str, other: object) -> Vector:
        result = self._binary(operation, other)
        if result is NotImplemented:
            raise TypeError(f"Expected a Vector, a PerTensor or a number, got {type(other).__name__}.")
        return result

    def where(self, then: Vector | Scalar, otherwise: Vector | Scalar) -> Vector:
        """`then` where this (a Vector of booleans) is true, `otherwise` elsewhere.

        Raises:
            TypeError: If neither choice is a Vector; a scalar alone has no dtype to give.
        """
        like = next((x for x in (then, otherwise) if isinstance(x, Vector)), None)
        if like is None:
            raise TypeError("Expected at least one of the two choices to be a Vector, got two numbers.")
        self._verify(like)
        left, right = like._operands(then), like._operands(otherwise)
        if left is None or right is None:
            raise TypeError("Expected each choice to be a Vector or a number.")
        rows = zip(self.buffers, left, right, strict=True)
        return like._of(self._backend.where(c, a, b) for c, a, b in rows)

    def keep(self, chosen: PerTensor) -> Vector:
        """The entries of the tensors whose number is not 0, and zeros elsewhere (even for a NaN)."""
        chosen_entries = (
            self._backend.binary("ne", self._spread(chosen, i), 0) for i in range(len(self.buffers))
        )
        return self._of(chosen_entries).where(self, 0.0)

    # ---- reductions --------------------------------------------------------------------------------

    def sum(self) -> float:
        """Sum of all entries, in float64."""
        return math.fsum(map(self._backend.sum, self.buffers))

    def dot(self, other: Vector) -> float:
        """Inner product with another Vector of the same layout, in float64."""
        operands = self._operands(other)
        if operands is None or not isinstance(other, Vector):
            raise TypeError(f"Expected a Vector, got {type(other).__name__}.")
        return math.fsum(self._backend.dot(a, b) for a, b in zip(self.buffers, operands, strict=True))

    def norm(self) -> float:
        """L2 norm over all entries together, in float64."""
        return math.sqrt(math.fsum(self._backend.dot(b, b) for b in self.buffers))

    def norms(self) -> PerTensor:
        """L2 norm of each tensor, in float64."""
        return self._per_segment(self, self.layout).sqrt()

    def sums(self) -> PerTensor:
        """Sum of each tensor's entries, in float64."""
        return self._per_segment(None, self.layout)

    def row_means(self) -> PerTensor:
        """Mean of each row (first index) of tensors of two or more axes, 0 for the others; in float64.

        The result has one number per row and broadcasts against this Vector.
        """
        rows = self.layout.rows
        sums = self._per_segment(None, rows)
        return PerTensor(rows, np.where(rows.is_row, sums.values / np.maximum(rows.sizes, 1), 0.0))

    def _per_segment(self, other: Vector | None, segments: Layout) -> PerTensor:
        """Inner products with another Vector (or sums) of each segment."""
        values = np.zeros(len(segments))
        for i, buffer in enumerate(self.buffers):
            places, starts = segments.places(i)
            right = None if other is None else buffer if other is self else other.buffers[i]
            values[places] = self._backend.segment_dots(buffer, right, starts)
        return PerTensor(segments, values)
