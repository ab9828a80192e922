"""A torch model's parameters and their gradients as two Vectors: part of floor 2, loaded by `Vector.bind`.

The Vectors' views become the parameters' `.data` and `.grad`, so nothing is packed or handed back. What cuts
those views off (`zero_grad()` with its default, `model.to(...)`) is noticed by the next step.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from ..vector import Vector

__all__ = ["BoundGradients", "bind"]


class BoundGradients(Vector):
    """The gradients of a model, in memory that its parameters' `.grad` are views of.

    Copies and results of arithmetic are plain Vectors.
    """

    __slots__ = ("_model", "_names", "_parameters", "_places", "_turn", "_views")

    def __init__(
        self, vector: Vector, model: torch.nn.Module, named: Mapping[str, torch.nn.Parameter]
    ) -> None:
        super().__init__(vector.layout, vector.buffers, vector._backend)
        views = vector.coefs
        self._names = list(named)
        self._views = [views[name] for name in named]
        # Weak: gradients that somebody keeps keep no model.
        self._model = weakref.ref(model)
        self._parameters = [weakref.ref(parameter) for parameter in named.values()]
        self._places = [parameter.data_ptr() for parameter in named.values()]
        self._turn = -1

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy's memory is its own, and no parameter's.
        return Vector, (self.layout, self.buffers, self._backend)

    def _gather(self) -> None:
        """Take in what `backward` left elsewhere, before a step.

        Raises:
            ValueError: If no parameter has a gradient, or the model's parameters lie elsewhere by now.
        """
        # What moves a model moves all of it, so one parameter tells, at a tenth of the price of asking each;
        # which one takes turns, so that a part of the model that was moved is noticed too.
        self._turn = turn = (self._turn + 1) % len(self._places)
        found = self._parameters[turn]()
        if found is None or found.data_ptr() != self._places[turn]:
            self._verify_bound()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            found = parameter()
            if found is None or found.grad is not view:
                self._verify_bound()
                self._attach()
                break

    def _verify_bound(self) -> None:
        if self._model() is None:
            return  # nobody is left that could be misled
        for name, parameter, place in zip(self._names, self._parameters, self._places, strict=True):
            found = parameter()
            if found is None or found.data_ptr() != place:
                what = "replaced" if found is None else "moved"
                raise ValueError(
                    f"Expected the model's parameters where Vector.bind put them, got {name!r} {what} since "
                    "(by model.to, load_state_dict(assign=True) or another bind). Call Vector.bind(model) "
                    "again."
                )

    def _attach(self) -> None:
        """Write the gradients of all parameters into this Vector, and make them views of it again."""
        pairs = zip(self._parameters, self._views, strict=True)
        found = [(parameter, view) for refer, view in pairs if (parameter := refer()) is not None]
        if found and all(parameter.grad is None for parameter, _ in found):
            raise ValueError(
                "Expected a gradient of at least one parameter, got none. Call loss.backward() before the "
                "step, and zero_grad() after it or before backward()."
            )
        with torch.no_grad():
            for parameter, view in found:
                if parameter.grad is None:
                    view.zero_()  # no part of this loss
                elif parameter.grad is not view:
                    view.copy_(_dense(parameter.grad))
                parameter.grad = view


def bind(model: torch.nn.Module) -> tuple[Vector, Vector]:
    """See `Vector.bind`."""
    every = dict(model.named_parameters())
    named = {name: parameter for name, parameter in every.items() if parameter.requires_grad}
    if not named:
        raise ValueError("Expected a model with parameters that require gradients, got none.")
    for name, parameter in every.items():
        if torch.nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"Expected parameters with a shape, got lazy {name!r}. Run one batch through first."
            )
        if parameter.is_meta:
            raise ValueError(
                f"Expected parameters with values, got {name!r} on the meta device. Give them memory first: "
                "model.to_empty(device=...)."
            )
    _verify_apart(every)
    weights = Vector.build(named)
    gradients = weights.full_like(0.0)
    views, gradient_views = weights.coefs, gradients.coefs
    with torch.no_grad():
        for name, parameter in named.items():
            kept = parameter.grad
            parameter.grad = None
            parameter.data = views[name]
            if kept is not None:
                gradient_views[name].copy_(_dense(kept))
    bound = BoundGradients(gradients, model, named)
    for parameter, view in zip(named.values(), bound._views, strict=True):
        parameter.grad = view
    return weights, bound


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def _verify_apart(named: Mapping[str, torch.nn.Parameter]) -> None:
    """Refuse two parameters that look at one memory: each would get a place of its own."""
    spans = []
    for name, parameter in named.items():
        if parameter.numel():
            extent = sum((n - 1) * s for n, s in zip(parameter.shape, parameter.stride(), strict=True)) + 1
            start = parameter.data_ptr()
            spans.append((str(parameter.device), start, start + extent * parameter.element_size(), name))
    spans.sort()
    for (device, _, end, name), (other_device, start, _, other) in itertools.pairwise(spans):
        if device == other_device and start < end:
            raise ValueError(
                f"Expected parameters with memory of their own, got {name!r} and {other!r}, which share "
                f"theirs. Make them one parameter: model.{other} = model.{name}."
            )
