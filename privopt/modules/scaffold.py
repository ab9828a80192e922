"""Scaffold's pair of modules and what they exchange: floor 4.

Under masks the server learns the sum of the clients' changes and how many take part for the
first time (in rounds that weigh clients: the sum of their weights), never who.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from secagg import adaptive, counted, public, summed

from ..auxvar import AuxVar
from ..plugin import OptiModule, state
from ..vector import Vector

__all__ = [
    "ScaffoldAuxVar",
    "ScaffoldClient",
    "ScaffoldServer",
    "ScaffoldState",
    "WeightedScaffoldAuxVar",
]


class ScaffoldAuxVar(AuxVar):
    """What a client sends: the change of its control variate, and whether the server has counted it yet."""

    name = "scaffold"
    delta: Vector = summed(bound=adaptive(initial=4.0), bits=16)
    first: int = counted(at_most=1)


class WeightedScaffoldAuxVar(ScaffoldAuxVar):
    """What a client sends where updates are weighed.

    The change is multiplied by the client's share of the largest weight; `first` is its weight until
    the server has counted it, and 0 ever after.
    """

    name = "scaffold-weighted"
    delta: Vector = summed(bound=adaptive(initial=4.0), bits=16)
    first: int = counted(at_most=2**40)


class ScaffoldState(AuxVar):
    """What the server sends to all: the mean control variate."""

    name = "scaffold-state"
    control: Vector = public()


class _Scaffold(OptiModule, register=False):
    """What both halves share: the name of what they exchange, and how clients are weighed."""

    name = "scaffold"
    aux_name: ClassVar[str | None] = "scaffold"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._weight, self._largest = 1, 1

    def on_weighting(self, weight: int, largest: int) -> None:
        """Called before the first round with what this client counts in the mean update, and at most counts.

        Both are public and the same all through a run; without a call, all clients count 1.
        """
        if not 0 <= weight <= largest:
            raise ValueError(f"Expected a weight in 0..{largest} for module {self.name!r}, got {weight}.")
        self._weight, self._largest = weight, largest


class ScaffoldClient(_Scaffold):
    """Correct each gradient by the drift of this client: ``g - (c_i - c)`` (Karimireddy et al. 2020).

    At the end of a round ``c_i`` becomes the mean of the gradients that entered the module during
    the round (the paper's Option II), or the first of them, taken at the server's weights (Option I),
    and its change is sent. The new value is pending until the server acknowledges the round
    (`on_round_end`): after an aborted round the old one stands. Under DP the gradients that enter are noised
    already, so what is sent is post-processing.

    Guarantees:
        - Over accepted rounds, the sum of what arrived at the server equals ``c_i`` (times the client's share
          of the largest weight): what masks round or clip away in one round is sent with the next.
        - `first` is the client's weight (1 in unweighted rounds) until a round was accepted, 0 ever after.

    Args:
        option: 1 or 2. Option I is what the round's first batch gives: noisier, and exact where batches are
            all of the samples.
    """

    name = "scaffold-client"
    aux_var: ClassVar[type[AuxVar] | None] = ScaffoldAuxVar
    option: int = 2
    control: Vector = state(0.0)
    server: Vector = state(0.0)
    total: Vector = state(0.0)
    steps: int = state(0)
    pending: Vector | None = state(None)
    known: bool = state(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.option in (1, 2), "option 1 or 2", option=self.option)

    def on_weighting(self, weight: int, largest: int) -> None:
        super().on_weighting(weight, largest)
        # What is sent is declared before the round: a weight needs a wider lane than a yes or no.
        sent = ScaffoldAuxVar if largest == 1 else WeightedScaffoldAuxVar
        self.aux_var = sent  # type: ignore[misc]  # a class's declaration, narrowed for this run

    def on_round_start(self) -> None:
        super().on_round_start()
        self._restart()

    def _restart(self) -> None:
        if isinstance(self.total, Vector):
            self.total = self.total.full_like(0.0)
        self.steps = 0

    def run(self, gradients: Vector) -> Vector:
        if self.option == 2 or self.steps == 0:
            self.total = self.total + gradients
            self.steps += 1
        return gradients - (self.control - self.server)

    def collect_aux_var(self) -> ScaffoldAuxVar:
        if self.steps == 0:
            raise ValueError("Expected at least one step since the round started, got none: nothing to send.")
        self.pending = self.total / self.steps
        change, first = self.pending - self.control, 0 if self.known else self._weight
        if self._largest == 1:
            return ScaffoldAuxVar(delta=change, first=first)
        return WeightedScaffoldAuxVar(delta=self._share * change, first=first)

    @property
    def _share(self) -> float:
        return self._weight / self._largest

    def on_aux_var_sent(self, sent: AuxVar) -> None:
        # What was rounded or clipped away stays in the next round's change, so that both sides agree.
        if isinstance(sent, ScaffoldAuxVar) and self._weight:
            self.pending = self.control + sent.delta / self._share

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


class ScaffoldServer(_Scaffold):
    """Keep the clients' mean control variate: ``c = sum of c_i / number of clients ever seen``.

    Where the update is a weighted mean, c is the mean by the same weights; any other c would move the
    optimum. Gradients pass unchanged.

    A client that takes part no longer (its privacy budget is spent) stays in the sum: its loss
    is remembered as its slope, ``c_i``, where it was last trained. Those who go on then minimize the sum of
    their own losses and of these slopes. Taking it out again would need the client's farewell: under
    masks, nobody but the client knows its ``c_i``.
    """

    name = "scaffold-server"
    total: Vector | None = state(None)
    clients: int = state(0)
    """Clients ever seen; in weighted rounds the sum of their weights."""
    largest: int = state(1)
    """What a change of one was divided by: the largest weight of a client."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        found = {"largest": 1, **state}  # not in states of before clients were weighed
        if found.get("clients") and found["largest"] != self._largest:
            raise ValueError(
                f"Expected a state of {self.name!r} in which the largest weight is {self._largest}, got "
                f"{found['largest']}: its control variates were weighed otherwise. Start a new run."
            )
        super().set_state(found)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, ScaffoldAuxVar):
            raise TypeError(f"Expected a combined ScaffoldAuxVar, got {type(aux_var).__name__}.")
        self.total = aux_var.delta if self.total is None else self.total + aux_var.delta
        self.clients += int(aux_var.first)
        self.largest = self._largest

    def collect_aux_var(self) -> ScaffoldState | None:
        if self.total is None:
            return None  # before the first round every control variate is zero, on both sides
        return ScaffoldState(control=self.total / (max(1, self.clients) / self._largest))
