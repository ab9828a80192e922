"""The one encoded vector of a round: update, weights, auxiliary variables, metrics: floor 6."""

from __future__ import annotations

import dataclasses

import secagg
from secagg.reductions import Averaged, Reduction

from ..aggregators import Aggregator, Mean
from ..layout import Layout
from ..optimizer import Optimizer
from ..setup.tables import MOST_STEPS

__all__ = ["round_schema"]

FIRST_BOUND = 4.0
"""Adaptive bound of the first update: generous, since clipping biases a mean and coarse rounding does not."""
LOSS_BOUND = 64.0


def round_schema(
    optimizer: Optimizer,
    layout: Layout,
    *,
    aggregator: Aggregator | None = None,
    most_weight: int = 1_000_000,
    most_steps: int = MOST_STEPS,
    bits: int = 16,
    bound: float | str = "adaptive",
    loss: bool = False,
) -> secagg.Schema:
    """What each client sends in a round, field by field, with how it sums.

    Server and clients each derive it from what they hold themselves, and compare.

    Args:
        optimizer: A client's optimizer (its modules declare their auxiliary variables).
        layout: Layout of the model.
        aggregator: How updates become one; the plain mean by default.
        most_weight: Largest number of samples of a client, where they weigh: a lane is as wide.
        most_steps: Most steps of a client in a round.
        bits: Precision of one entry of the update.
        bound: Bound on one entry of the update, or ``"adaptive"``.
        loss: Whether the mean training loss is sent.
    """
    aggregator = aggregator or Mean()
    limit = secagg.adaptive(initial=FIRST_BOUND) if isinstance(bound, str) else bound
    most = aggregator.most(most_weight, most_steps)
    fields = aggregator.fields(layout.size, limit, bits, most, most_steps)
    if loss:
        fields["metrics.loss"] = secagg.averaged(LOSS_BOUND, weight="weight", bits=20)
    return secagg.Schema(fields | _aux_reductions(optimizer, layout))


def _aux_reductions(optimizer: Optimizer, layout: Layout) -> dict[str, Reduction]:
    """The modules' fields; means of those that say so are weighed by the round's own weight."""
    fields = optimizer.aux_reductions(layout)
    for name, cls in optimizer.aux_vars().items():
        for field in cls.reductions():
            found = fields[f"{name}.{field}"]
            if cls.weighed_as_update and isinstance(found, Averaged):
                fields[f"{name}.{field}"] = dataclasses.replace(found, weight="weight")
    return fields
