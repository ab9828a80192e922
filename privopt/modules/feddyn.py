"""The server's half of FedDyn: floor 4. The clients' half is the regularizer of that name.

Nothing but the update travels: both sides derive from it what they keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..plugin import OptiModule, state
from ..regularizers.feddyn import FedDyn
from ..vector import Vector

if TYPE_CHECKING:
    from ..optimizer import Optimizer

__all__ = ["FedDynServer"]


class FedDynServer(OptiModule):
    """Take the clients' mean update further by ``h / alpha``, with h the mean of their ``h_i``.

    Gradients are the negative mean update, as the server's optimizer gets them. The mean must be the
    aggregator's ``mean``, and the server's learning rate 1 is the paper's. What a client that takes part no
    longer had added to h stays there: its loss is remembered by its slope where it was last trained.

    Args:
        alpha: The clients' alpha, > 0.
    """

    name = "feddyn-server"
    needs_mean: ClassVar[bool] = True
    alpha: float = 0.01
    lagged: Vector = state(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.alpha > 0, "alpha > 0", alpha=self.alpha)
        self._share = 1.0

    def on_participation(self, share: float) -> None:
        """Called before each round's step with the share of all clients' weight that is in its mean."""
        self._share = share

    def run(self, gradients: Vector) -> Vector:
        self.lagged = self.lagged + (self.alpha * self._share) * gradients
        return gradients + self.lagged / self.alpha

    def verify_clients(self, optimizer: Optimizer) -> None:
        """Raise ValueError unless the clients have the regularizer with the same `alpha`."""
        found = [r for r in optimizer.regularizers if isinstance(r, FedDyn)]
        if len(found) != 1:
            raise ValueError(
                f"Expected the clients' regularizer 'feddyn' beside {self.name!r}, got "
                f"{[r.name for r in optimizer.regularizers]}. Add it to the clients' regularizers, once."
            )
        self._expect(found[0].alpha == self.alpha, f"the clients' alpha={found[0].alpha!r}", alpha=self.alpha)
