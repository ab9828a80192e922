"""A short life of a plug-in in an optimizer: rounds, steps, what is exchanged, rounds that do not count.

A life is a list of words: ``round`` (one starts), ``step``, ``accept`` and ``drop`` (it ends). Modules that
exchange auxiliary variables meet their counterpart, found in the table by `aux_name`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..auxvar import AuxVar
from ..checkpoint import dump_state, load_state
from ..executors import executor
from ..groups import Group
from ..optimizer import Optimizer
from ..plugin import OptiModule, Regularizer
from ..registry import list_optim_modules
from ..vector import Vector
from .inputs import SEVERAL, Shapes, gradients, precise
from .subject import Subject, frozen

__all__ = ["LIFE", "Trial", "counterpart_of", "for_one", "live"]

LIFE = (
    *("round", "step", "step", "accept", "round", "step", "drop"),
    *("round", "step", "step", "step", "accept", "round", "step"),
)
"""Two rounds that count, one that does not, and an unfinished one."""
ROSTER = ("c0", "c1", "c2")
"""The clients that a server's half is told of; the first is the one that trains."""


class Trial:
    """A plug-in in an optimizer with everything around it that a life takes.

    Args:
        subject: The plug-in.
        shapes: Of the model.
        dtype: Of weights and gradients.
        framework: That holds them.
        after: Modules that stand after it.
        groups: Of the optimizer.
        by: The executor.
    """

    def __init__(
        self,
        subject: Subject,
        shapes: Shapes = SEVERAL,
        dtype: str = "float64",
        framework: str = "numpy",
        *,
        after: Sequence[OptiModule] = (),
        groups: Sequence[Group] = (),
        by: str = "auto",
    ) -> None:
        self.subject, self.shapes, self.dtype, self.framework, self.by = subject, shapes, dtype, framework, by
        self.plugin = subject.build()
        regularizers = [self.plugin] if isinstance(self.plugin, Regularizer) else []
        modules = [self.plugin] if isinstance(self.plugin, OptiModule) else []
        rate = ("exponential", {"base": 0.1, "factor": 0.9})
        self.optimizer = Optimizer(rate, 0.01, regularizers, [*modules, *after], groups)
        self.weights = gradients(1000, shapes, dtype, framework)
        self.steps = 0
        self.partner = counterpart_of(subject)
        for plugin in (self.plugin, self.partner):
            if isinstance(plugin, OptiModule) and plugin.aux_var is None:
                plugin.on_roster(ROSTER)

    def step_gradients(self) -> Vector:
        """The gradients of the coming step."""
        return gradients(self.steps, self.shapes, self.dtype, self.framework)

    def play(self, life: Iterable[str]) -> Trial:
        """Live on; returns the trial itself."""
        with executor(self.by), precise(self.framework, self.dtype):
            for word in life:
                getattr(self, f"_{word}")()
        return self

    def state(self) -> dict[str, Any]:
        """Everything that changes, weights included."""
        found = {"optimizer": self.optimizer.get_state(), "weights": self.weights, "steps": self.steps}
        if self.partner is not None:
            found["partner"] = self.partner.get_state()
        copied: dict[str, Any] = frozen(found)
        return copied

    def resumed(self) -> Trial:
        """A fresh trial that takes over the state, through the bytes of a file."""
        saved = load_state(dump_state(self.state()))
        fresh = Trial(self.subject, self.shapes, self.dtype, self.framework, by=self.by)
        with precise(self.framework, self.dtype):
            fresh.optimizer.set_state(saved["optimizer"])
            fresh.weights.assign(saved["weights"])
        fresh.steps = saved["steps"]
        if fresh.partner is not None:
            fresh.partner.set_state(saved["partner"])
        return fresh

    # ---- words ----------------------------------------------------------------------------------------

    def _step(self) -> None:
        grads = self.step_gradients()
        self.optimizer.step(grads, self.weights)
        if self._partner_sends and self.partner is not None:
            given = {"weights": self.weights, "raw_gradients": grads}
            self.partner.run(grads, **{name: given[name] for name in self.partner.takes})
        self.steps += 1

    def _round(self) -> None:
        if self.partner is not None:
            if self._partner_sends:
                offered = self.optimizer.collect_aux_var().get(self._aux_name)
                if offered is not None:
                    self.partner.process_aux_var(for_one(offered))
                self.partner.on_round_start()
            else:
                shared = self.partner.collect_aux_var()
                if shared is not None:
                    self.optimizer.process_aux_var({self._aux_name: for_one(shared)})
        self.optimizer.start_round()

    def _accept(self) -> None:
        self._end(accepted=True)

    def _drop(self) -> None:
        self._end(accepted=False)

    def _end(self, accepted: bool) -> None:
        if self.partner is None:
            self.optimizer.collect_aux_var(self.weights)
        elif self._partner_sends:
            sent = _sent(self.subject, self.partner.collect_aux_var())
            self.partner.on_aux_var_sent(sent)
            if accepted:
                self.optimizer.process_aux_var({self._aux_name: type(sent).aggregate([sent])})
            self.partner.on_round_end(accepted)
        else:
            sent = _sent(self.subject, self.optimizer.collect_aux_var(self.weights).get(self._aux_name))
            self.optimizer.on_aux_vars_sent({self._aux_name: sent})
            if accepted:
                self.partner.process_aux_var(type(sent).aggregate([sent]))
        self.optimizer.end_round(accepted)

    @property
    def _aux_name(self) -> str:
        return str(getattr(self.plugin, "aux_name", None))

    @property
    def _partner_sends(self) -> bool:
        """Whether the partner is the client, and the plug-in the server's half."""
        return self.partner is not None and self.partner.aux_var is not None


def live(subject: Subject, life: Iterable[str] = LIFE, **settings: Any) -> Trial:
    """A trial that lived."""
    return Trial(subject, **settings).play(life)


def counterpart_of(subject: Subject) -> OptiModule | None:
    """The other half of a pair that exchanges auxiliary variables; None for a module without one.

    It gets the hyper-parameters that both halves have.

    Raises:
        ContractError: If there is none in the table.
    """
    ours = subject.plugin
    if not issubclass(ours, OptiModule) or ours.aux_name is None:
        return None
    for cls in list_optim_modules().values():
        if (
            cls is not ours
            and cls.aux_name == ours.aux_name
            and (cls.aux_var is None) != (ours.aux_var is None)
        ):
            theirs = {f.name: f.type for f in cls._hyper}
            mine = subject.hyper
            shared = {k: v for k, v in subject.config.items() if k in theirs and theirs[k] == mine[k].type}
            built = Subject(cls, shared).build()
            if isinstance(built, OptiModule):
                return built
    raise subject.broken(
        f"Expected a registered counterpart with aux_name={ours.aux_name!r} (one half sends what `aux_var` "
        "declares, the other's `aux_var` is None), got none."
    )


def for_one(offered: AuxVar | Mapping[str, AuxVar]) -> AuxVar:
    """What the first client gets of what a server offers."""
    return offered[ROSTER[0]] if isinstance(offered, Mapping) else offered


def _sent(subject: Subject, collected: Any) -> AuxVar:
    if not isinstance(collected, AuxVar):
        raise subject.broken(
            f"Expected an AuxVar from the client's half after a round, got {type(collected).__name__}."
        )
    return collected
