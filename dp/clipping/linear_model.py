"""Clipping for linear and logistic models in numpy, in closed form: floor 3.

A linear model's gradient for one sample is the outer product of its residual and its inputs, so its norm is
the product of theirs: nothing is stored a sample but one number, and no framework is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .base import MARGIN, ClippedSum, verify_clip_norm

__all__ = ["LinearModelClipper"]

Loss: TypeAlias = Literal["softmax", "logistic", "squared"]
Real: TypeAlias = npt.NDArray[np.float64]
_BLOCK: Final = 1 << 14
"""Samples at a time: what is held beside the data is a few rows of outputs for each."""


class LinearModelClipper:
    """Clips per-sample gradients of ``outputs = x @ weight.T + bias``, jointly over weight and bias.

    Guarantees:
        - Each sample's share of the sum has an L2 norm of at most C; all arithmetic is float64.
        - A sample whose gradient is not finite counts as zero, and in `ClippedSum.nonfinite`.
        - An empty batch gives zeros.

    Args:
        weights: ``"weight"``, shape ``(outputs, inputs)``, and, if the model has one, ``"bias"``, shape
            ``(outputs,)``; read anew by every call, so they may be trained in place.
        loss: ``"softmax"`` (cross-entropy of classes 0..outputs - 1), ``"logistic"`` (one output, targets 0
            or 1) or ``"squared"`` (half the squared distance to the targets).

    Raises:
        ValueError: If the weights are of other names or shapes, or the loss is none of these.

    Example:
        >>> weights = {"weight": np.zeros((1, 2)), "bias": np.zeros(1)}
        >>> found = LinearModelClipper(weights, "logistic").clipped_sum([[3.0, 4.0]], [1], clip_norm=0.1)
        >>> float(np.linalg.norm(found.flatten())) <= 0.1
        True
    """

    def __init__(self, weights: Mapping[str, npt.NDArray[Any]], loss: Loss = "softmax") -> None:
        names = [name for name in ("weight", "bias") if name in weights]
        shapes = {name: np.shape(weights[name]) for name in weights}
        outputs = shapes.get("weight", ())[:1]
        if set(weights) != set(names) or len(shapes["weight"]) != 2 or shapes.get("bias", outputs) != outputs:
            raise ValueError(
                "Expected 'weight' of shape (outputs, inputs) and perhaps 'bias' of shape (outputs,), got "
                f"{shapes}."
            )
        if loss not in ("softmax", "logistic", "squared"):
            raise ValueError(f"Expected loss 'softmax', 'logistic' or 'squared', got {loss!r}.")
        if loss == "logistic" and outputs != (1,):
            raise ValueError(f"Expected one output for a logistic loss, got {outputs[0]}. Take 'softmax'.")
        self.weights = weights
        self.loss = loss
        self._names = names

    def clipped_sum(self, x: Any, y: Any, clip_norm: float, *, seed: int | None = None) -> ClippedSum:
        """The sum over a batch of gradients clipped to `clip_norm` each.

        Computes ``sum_i g_i * min(1, C / ||g_i||)`` with ``||g_i|| = ||r_i|| sqrt(||x_i||^2 + 1)`` for the
        residuals r of outputs (without the 1 where there is no bias).

        Args:
            x: Inputs, shape ``(samples, inputs)``.
            y: Targets: classes or truth values, shape ``(samples,)``; for a squared loss real numbers, shape
                ``(samples, outputs)``, or ``(samples,)`` where there is one output.
            clip_norm: Bound C, finite and > 0.
            seed: Unused: such a model draws nothing.

        Returns:
            The sum, which is private until it is noised.

        Raises:
            PrivacyParameterError: If `clip_norm` is none.
            ValueError: If shapes do not fit, or a target is none of the classes; which one, it does not say.
        """
        verify_clip_norm(clip_norm)
        weight = np.asarray(self.weights["weight"], np.float64)
        inputs, targets = np.asarray(x), np.asarray(y)
        if len(inputs) == 0:
            inputs = inputs.reshape(0, weight.shape[1])
        if inputs.shape != (len(targets), weight.shape[1]):
            raise ValueError(
                f"Expected inputs of shape ({len(targets)}, {weight.shape[1]}) for as many targets, got "
                f"{inputs.shape}."
            )
        total = {name: np.zeros(np.shape(self.weights[name])) for name in self._names}
        nonfinite = 0
        for low in range(0, len(targets), _BLOCK):
            block = slice(low, low + _BLOCK)
            nonfinite += self._add(total, weight, inputs[block].astype(np.float64), targets[block], clip_norm)
        return ClippedSum(total, clip_norm, len(targets), nonfinite)

    def _add(
        self, total: dict[str, Real], weight: Real, x: Real, y: npt.NDArray[Any], clip_norm: float
    ) -> int:
        """Add a block's clipped gradients; returns how many were not finite."""
        with np.errstate(all="ignore"):  # what is not finite is found below
            outputs = x @ weight.T
            if "bias" in total:
                outputs += np.asarray(self.weights["bias"], np.float64)
            residuals = self._residuals(outputs, y)
            squares = np.einsum("ni,ni->n", x, x) + ("bias" in total)
            norms = np.sqrt(np.einsum("no,no->n", residuals, residuals)) * np.sqrt(squares)
        finite = np.isfinite(norms) & np.isfinite(x).all(axis=1)
        bound = clip_norm * MARGIN
        clipped = residuals[finite] * (bound / np.maximum(norms[finite], bound))[:, None]
        total["weight"] += clipped.T @ x[finite]
        if "bias" in total:
            total["bias"] += clipped.sum(axis=0)
        return int(np.count_nonzero(~finite))

    def _residuals(self, outputs: Real, y: npt.NDArray[Any]) -> Real:
        """Derivative of each sample's loss by its outputs."""
        if self.loss == "squared":
            return outputs - np.asarray(y, np.float64).reshape(outputs.shape)
        classes = outputs.shape[1] if self.loss == "softmax" else 2
        chosen = np.asarray(y)
        if chosen.shape != (len(outputs),) or not np.isin(chosen, np.arange(classes)).all():
            # Which target it is would tell of a row.
            raise ValueError(
                f"Expected targets of shape ({len(outputs)},) from 0 to {classes - 1}, got others. Number "
                "the classes from 0."
            )
        if self.loss == "logistic":
            probability: Real = 1 / (1 + np.exp(-outputs))
            probability -= chosen[:, None]
            return probability
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        residuals: Real = shifted / shifted.sum(axis=1, keepdims=True)
        residuals[np.arange(len(chosen)), chosen.astype(int)] -= 1
        return residuals
