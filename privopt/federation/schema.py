"""The one encoded vector of a round: update, weights, auxiliary variables, metrics: floor 6."""

from __future__ import annotations

import secagg

from ..layout import Layout
from ..optimizer import Optimizer

__all__ = ["round_schema"]

FIRST_BOUND = 4.0
"""Adaptive bound of the first update: generous, since clipping biases a mean and coarse rounding does not."""
LOSS_BOUND = 64.0


def round_schema(
    optimizer: Optimizer,
    layout: Layout,
    *,
    weighting: str = "uniform",
    most_weight: int = 1_000_000,
    bits: int = 16,
    bound: float | str = "adaptive",
    loss: bool = False,
) -> secagg.Schema:
    """What each client sends in a round, field by field, with how it sums.

    Server and clients each derive it from what they hold themselves, and compare.

    Args:
        optimizer: A client's optimizer (its modules declare their auxiliary variables).
        layout: Layout of the model.
        weighting: What the mean update is weighed by: ``"uniform"``, ``"samples"`` or ``"steps"``.
        most_weight: Largest weight of a client that is weighed by samples or steps: a lane is as wide.
        bits: Precision of one entry of the update.
        bound: Bound on one entry of the update, or ``"adaptive"``.
        loss: Whether the mean training loss is sent.

    Raises:
        ValueError: If the weighting is unknown.
    """
    if weighting not in ("uniform", "samples", "steps"):
        raise ValueError(f"Expected weighting 'uniform', 'samples' or 'steps', got {weighting!r}.")
    limit = secagg.adaptive(initial=FIRST_BOUND) if isinstance(bound, str) else bound
    fields = {
        "update": secagg.averaged(limit, weight="weight", bits=bits, shape=(layout.size,)),
        "weight": secagg.counted(at_most=1 if weighting == "uniform" else most_weight),
    }
    if loss:
        fields["metrics.loss"] = secagg.averaged(LOSS_BOUND, weight="weight", bits=20)
    return secagg.Schema(fields | optimizer.aux_reductions(layout))
