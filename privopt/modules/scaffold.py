"""Scaffold's pair of modules and what they exchange: floor 4.

Under masks the server learns the sum of the clients' changes and how many take part for the
first time, never who.
"""

from __future__ import annotations

from typing import ClassVar

from secagg import adaptive, counted, public, summed

from ..auxvar import AuxVar
from ..plugin import OptiModule, state
from ..vector import Vector

__all__ = ["ScaffoldAuxVar", "ScaffoldClient", "ScaffoldServer", "ScaffoldState"]


class ScaffoldAuxVar(AuxVar):
    """What a client sends: the change of its control variate, and whether the server has counted it yet."""

    name = "scaffold"
    delta: Vector = summed(bound=adaptive(initial=4.0), bits=16)
    first: int = counted(at_most=1)


class ScaffoldState(AuxVar):
    """What the server sends to all: the mean control variate."""

    name = "scaffold-state"
    control: Vector = public()


class ScaffoldClient(OptiModule):
    """Correct each gradient by the drift of this client: ``g - (c_i - c)`` (Karimireddy et al. 2020).

    At the end of a round ``c_i`` becomes the mean of the gradients that entered the module during
    the round (the paper's Option II), and its change is sent. The new value is pending until
    the server acknowledges the round (`on_round_end`): after an aborted round the old one stands.
    Under DP the gradients that enter are noised already, so what is sent is post-processing.

    Guarantees:
        - Over accepted rounds, the sum of what arrived at the server equals ``c_i``: what masks round or clip
          away in one round is sent with the next.
        - `first` is 1 until a round was accepted, 0 ever after.
    """

    name = "scaffold-client"
    aux_name: ClassVar[str | None] = "scaffold"
    aux_var: ClassVar[type[AuxVar] | None] = ScaffoldAuxVar
    control: Vector = state(0.0)
    server: Vector = state(0.0)
    total: Vector = state(0.0)
    steps: int = state(0)
    pending: Vector | None = state(None)
    known: bool = state(False)

    def on_round_start(self) -> None:
        super().on_round_start()
        self._restart()

    def _restart(self) -> None:
        if isinstance(self.total, Vector):
            self.total = self.total.full_like(0.0)
        self.steps = 0

    def run(self, gradients: Vector) -> Vector:
        self.total = self.total + gradients
        self.steps += 1
        return gradients - (self.control - self.server)

    def collect_aux_var(self) -> ScaffoldAuxVar:
        if self.steps == 0:
            raise ValueError("Expected at least one step since the round started, got none: nothing to send.")
        self.pending = self.total / self.steps
        return ScaffoldAuxVar(delta=self.pending - self.control, first=0 if self.known else 1)

    def on_aux_var_sent(self, sent: AuxVar) -> None:
        # What was rounded or clipped away stays in the next round's change, so that both sides agree.
        if isinstance(sent, ScaffoldAuxVar):
            self.pending = self.control + sent.delta

    def on_round_end(self, accepted: bool) -> None:
        if self.pending is not None and accepted:
            self.control, self.known = self.pending, True
        self.pending = None

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, ScaffoldState):
            raise TypeError(f"Expected a ScaffoldState from the server, got {type(aux_var).__name__}.")
        # A loop that never says how a round ended has no aborted rounds.
        self.on_round_end(accepted=True)
        self.server = aux_var.control
        self._restart()


class ScaffoldServer(OptiModule):
    """Keep the clients' mean control variate: ``c = sum of c_i / number of clients ever seen``.

    Gradients pass unchanged.
    """

    name = "scaffold-server"
    aux_name: ClassVar[str | None] = "scaffold"
    total: Vector | None = state(None)
    clients: int = state(0)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, ScaffoldAuxVar):
            raise TypeError(f"Expected a combined ScaffoldAuxVar, got {type(aux_var).__name__}.")
        self.total = aux_var.delta if self.total is None else self.total + aux_var.delta
        self.clients += int(aux_var.first)

    def collect_aux_var(self) -> ScaffoldState | None:
        if self.total is None:
            return None  # before the first round every control variate is zero, on both sides
        return ScaffoldState(control=self.total / max(1, self.clients))
