"""Models that a run can train: floor 7, from the ``[model]`` table to a torch module.

The name of a factory comes from the configuration of whoever runs the command, never from a message: it is
imported and called. Torch loads when a model is built, not before.
"""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tables import Model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelError", "build"]


class ModelError(ValueError):
    """A model that cannot be built for the data at hand."""


def build(spec: Model, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """The model that a ``[model]`` table names, for rows of one shape.

    Guarantees:
        - The same arguments give the same weights, on every machine with the same torch.
        - torch's global random state is as before.
        - ``linear`` starts at zero, so its first gradients do not depend on the seed.
        - The model maps ``(rows, *input_shape)`` to ``(rows, classes)`` scores.

    Args:
        spec: The table.
        input_shape: Shape of one row.
        classes: Number of labels, at least 2.
        seed: Starts the weights.

    Returns:
        The module, in training mode, on the CPU, float32 unless a factory of one's own says otherwise.

    Raises:
        ModelError: If the name, the shapes or the factory do not fit.
        ImportError: If torch is not installed.

    Example:
        >>> sum(p.numel() for p in build(Model(), (1, 8, 8), 10, seed=0).parameters())
        650
    """
    torch = _torch()
    known = {"linear": _linear, "mlp": _mlp, "cnn": _cnn}
    if spec.name not in known and ":" not in spec.name:
        raise ModelError(
            f"Expected a model among {', '.join(known)}, or package.module:factory, got model.name = "
            f"{spec.name!r}. A factory is called as make(input_shape, classes, **options) and returns a "
            "torch module."
        )
    # Accelerators are left out: the weights are drawn on the CPU whatever the machine has.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if spec.name in known:
            return known[spec.name](spec, input_shape, classes)
        model = _own(spec, input_shape, classes)
        _check_scores(model, spec, input_shape, classes)
        return model


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            "Expected torch, which models and per-sample gradients need, got none. "
            "Install it with: pip install 'privopt[run]'."
        ) from error


def _linear(spec: Model, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torch import nn

    layer = nn.Linear(math.prod(input_shape), classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


def _mlp(spec: Model, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torch import nn

    widths = [math.prod(input_shape), *spec.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        # Bounded activations lose less to clipping and noise (Papernot et al. 2021, arXiv:2007.14191).
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def _cnn(spec: Model, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torch import nn

    if len(input_shape) != 3:
        raise ModelError(
            f"Expected rows of shape (channels, height, width) for model.name = 'cnn', got {input_shape}. "
            "Use linear or mlp, or store images with their shape in an .npz file."
        )
    channels, height, width = input_shape
    halvings = len(spec.channels)
    if min(height, width) < 2**halvings:
        raise ModelError(
            f"Expected images of at least {2**halvings} pixels a side for {halvings} convolutions that each "
            f"halve them, got {height} x {width}. Shorten model.channels = {list(spec.channels)}."
        )
    layers: list[nn.Module] = []
    for before, after in zip((channels, *spec.channels), spec.channels, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)]
    last = spec.channels[-1] if spec.channels else channels
    features = last * (height // 2**halvings) * (width // 2**halvings)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


def _own(spec: Model, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torch import nn

    module_name, _, attribute = spec.name.partition(":")
    factory = getattr(_imported(spec.name, module_name), attribute, None)
    if not callable(factory):
        raise ModelError(
            f"Expected a function {attribute!r} in module {module_name}, got "
            f"{'none' if factory is None else type(factory).__name__}. Check model.name = {spec.name!r}."
        )
    try:
        model = factory(input_shape, classes, **spec.options)
    # Whatever the user's own code raises is told as theirs, with the original chained for --debug.
    except Exception as error:
        raise ModelError(
            f"Expected {spec.name} to build a model, got {type(error).__name__}: {error}. It is called as "
            f"{attribute}(input_shape={input_shape}, classes={classes}"
            f"{''.join(f', {name}=…' for name in spec.options)})."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"Expected {spec.name} to return a torch.nn.Module, got {type(model).__name__}. Return the "
            "model itself."
        )
    return model


def _imported(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        top = module_name.partition(".")[0]
        if error.name == top and here not in sys.path:
            # A console script does not look in the current folder, where a user's own module usually lies.
            # It is appended, so that nothing there can take the place of an installed package.
            sys.path.append(here)
            importlib.invalidate_caches()
            return _imported(name, module_name)
        raise ModelError(
            f"Expected module {module_name} of model.name = {name!r} to import, got: no module named "
            f"{error.name!r}. It is looked for among installed packages and in {here}."
        ) from error
    except (ImportError, ValueError, SyntaxError) as error:
        raise ModelError(
            f"Expected module {module_name} of model.name = {name!r} to import, got "
            f"{type(error).__name__}: {error}."
        ) from error


def _check_scores(model: nn.Module, spec: Model, input_shape: tuple[int, ...], classes: int) -> None:
    """One forward pass on zeros, so that a wrong shape is told before any privacy is spent."""
    import torch

    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(f"Expected {spec.name} to return a model with trainable parameters, got none.")
    buffers = [name for name, _ in model.named_buffers()]
    if buffers:
        raise ModelError(
            f"Expected the model of {spec.name} to have no state but its parameters, "
            f"which are summed, got the buffers {', '.join(buffers[:4])}. Layers with running statistics "
            "(BatchNorm) mix rows, too: replace them by GroupNorm or LayerNorm."
        )
    training = model.training
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(torch.zeros(2, *input_shape)).shape)
    # The forward pass is the user's code too.
    except Exception as error:
        raise ModelError(
            f"Expected the model of {spec.name} to take rows of shape {input_shape}, got "
            f"{type(error).__name__}: {error}."
        ) from error
    finally:
        model.train(training)
    if shape != (2, classes):
        raise ModelError(
            f"Expected the model of {spec.name} to give {classes} scores a row, shape (2, {classes}) for two "
            f"rows, got {shape}."
        )
