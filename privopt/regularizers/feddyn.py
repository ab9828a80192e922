"""FedDyn, the clients' half: part of floor 4. The server's is the module ``feddyn-server``."""

from __future__ import annotations

from typing import ClassVar

from ..plugin import Regularizer, state
from ..vector import Vector

__all__ = ["FedDyn"]


class FedDyn(Regularizer):
    """Bend each client's loss so that its minimum moves to the common one (Acar et al. 2021, Alg. 1).

    Computes ``g - h_i + alpha (w - w_0)``, with w_0 the weights at the round's start. After the
    round ``h_i`` becomes ``h_i - alpha (w - w_0)``: the gradient of this client's loss where it arrived, if
    it got to the minimum. The new value is pending until the round is accepted (`on_round_end`); after an
    aborted one the old ``h_i`` stands. The server needs ``feddyn-server`` of the same `alpha`.

    Guarantees:
        - Under masks ``h_i`` follows the update as it arrives, clipped and rounded, so that the server's sum
          stays the sum of the clients' ``h_i``.
        - A round that counts and whose weights were never shown (`Optimizer.collect_aux_var`) is an error.

    Args:
        alpha: Strength of the pull, > 0.
    """

    name = "feddyn"
    counterpart: ClassVar[str | None] = "feddyn-server"
    alpha: float = 0.01
    lagged: Vector = state(0.0)
    reference: Vector | None = state(None)
    pending: Vector | None = state(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.alpha > 0, "alpha > 0", alpha=self.alpha)

    def on_round_start(self) -> None:
        # A loop that never says how a round ended has no aborted rounds.
        self.on_round_end(accepted=True)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        if self.reference is None:
            # A copy: the weights' memory may be updated in place as the round goes on.
            self.reference = weights.copy()
            return gradients - self.lagged
        return gradients - self.lagged + self.alpha * (weights - self.reference)

    def on_round_trained(self, weights: Vector) -> None:
        if self.reference is not None:
            self.pending = self.lagged - self.alpha * (weights - self.reference)

    def on_update_sent(self, update: Vector) -> None:
        """Called with the round's update as it will arrive: under masks it is clipped and rounded."""
        self.pending = self.lagged - self.alpha * update

    def on_round_end(self, accepted: bool) -> None:
        if accepted and self.reference is not None and self.pending is None:
            # Going on would leave h_i as it is, and nothing would be corrected.
            raise ValueError(
                f"Expected the weights that the last round arrived at, which {self.name!r} needs, got none. "
                "Call collect_aux_var(weights) after a round's last step, or end_round(accepted=False) if it "
                "was dropped."
            )
        if self.pending is not None and accepted:
            self.lagged = self.pending
        self.pending = None
        self.reference = None  # the first step of the next round sees the weights that it starts from
