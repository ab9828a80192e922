"""MimeLite's pair of modules and what they exchange: floor 4.

The momentum is the server's, made of gradients at the server's weights alone; clients apply it
without changing it, so that no client's drift enters it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from secagg import adaptive, averaged, public

from ..auxvar import AuxVar
from ..plugin import OptiModule, state
from ..vector import Vector

if TYPE_CHECKING:
    from ..optimizer import Optimizer

__all__ = ["MimeLiteAuxVar", "MimeLiteClient", "MimeLiteServer", "MimeLiteState"]


class MimeLiteAuxVar(AuxVar):
    """What a client sends: its gradient at the server's weights; the mean is weighed as the update is."""

    name = "mime-lite"
    weighed_as_update: ClassVar[bool] = True
    gradient: Vector = averaged(bound=adaptive(initial=4.0), bits=16)


class MimeLiteState(AuxVar):
    """What the server sends to all: its momentum."""

    name = "mime-lite-state"
    momentum: Vector = public()


class _MimeLite(OptiModule, register=False):
    """What both halves share: the momentum's factor."""

    name = "mime-lite"
    aux_name: ClassVar[str | None] = "mime-lite"
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(0 <= self.beta < 1, "0 <= beta < 1", beta=self.beta)


class MimeLiteClient(_MimeLite):
    """Step along ``(1 - beta) g + beta m``, with the server's momentum m as it was when the round started.

    This is MimeLite with momentum SGD (Karimireddy et al. 2021, "Breaking the centralized barrier for
    cross-device federated learning", Alg. 1 without its correction of each gradient). The paper sends
    the gradient of all of a client's samples at the server's weights; here that is the
    gradient of the round's first step, so it costs no extra pass and, under DP, no extra release.

    Args:
        beta: Share of the momentum in a step, in [0, 1); the server's must be the same.
    """

    name = "mime-lite-client"
    aux_var: ClassVar[type[AuxVar] | None] = MimeLiteAuxVar
    momentum: Vector = state(0.0)
    first: Vector | None = state(None)

    def on_round_start(self) -> None:
        super().on_round_start()
        self.first = None

    def run(self, gradients: Vector) -> Vector:
        if self.first is None:
            # A copy: the caller may write the next step's gradient into the same memory.
            self.first = gradients.copy()
        return (1 - self.beta) * gradients + self.beta * self.momentum

    def collect_aux_var(self) -> MimeLiteAuxVar:
        if self.first is None:
            raise ValueError("Expected at least one step since the round started, got none: nothing to send.")
        return MimeLiteAuxVar(gradient=self.first)

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, MimeLiteState):
            raise TypeError(f"Expected a MimeLiteState from the server, got {type(aux_var).__name__}.")
        self.momentum = aux_var.momentum
        self.first = None  # what the server sends starts a round


class MimeLiteServer(_MimeLite):
    """Keep the momentum ``m = (1 - beta) g + beta m`` of the clients' mean gradient at its weights.

    Gradients (the clients' mean update) pass unchanged.

    Args:
        beta: Share of the momentum kept each round, in [0, 1); the clients' must be the same.
    """

    name = "mime-lite-server"
    momentum: Vector | None = state(None)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, MimeLiteAuxVar):
            raise TypeError(f"Expected a combined MimeLiteAuxVar, got {type(aux_var).__name__}.")
        fresh = (1 - self.beta) * aux_var.gradient
        self.momentum = fresh if self.momentum is None else fresh + self.beta * self.momentum

    def collect_aux_var(self) -> MimeLiteState | None:
        if self.momentum is None:
            return None  # before the first round it is zero, on both sides
        return MimeLiteState(momentum=self.momentum)

    def verify_clients(self, optimizer: Optimizer) -> None:
        """Raise ValueError unless the clients' half has the same `beta`."""
        for module in optimizer.modules:
            if isinstance(module, MimeLiteClient):
                self._expect(module.beta == self.beta, f"the clients' beta={module.beta!r}", beta=self.beta)
