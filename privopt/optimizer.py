"""The optimizer: floor 5, one step of regularizers, modules, learning rate and decoupled decay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import numpy as np

from secagg.reductions import Averaged, Moments, Reduction

from .auxvar import AuxVar
from .executors import steps_eagerly
from .groups import Group, Grouping, config_of, groups_of, rate_of, verify_names, verify_settings
from .layout import Layout
from .plugin import OptiModule, Plugin, Regularizer
from .registry import OPTI_MODULES, REGULARIZERS, Registry
from .schedules import Schedule
from .step import Owned, Step, uninterrupted
from .vector import PerTensor, Vector, fractional

if TYPE_CHECKING:
    from .aggregators import Aggregator

__all__ = ["Optimizer"]

_P = TypeVar("_P", bound=Plugin)
ModuleSpec = OptiModule | str | tuple[str, Mapping[str, Any]] | Sequence[Any]
RateSpec = float | Schedule | str | tuple[str, Mapping[str, Any]] | Sequence[Any]
RegularizerSpec = Regularizer | str | tuple[str, Mapping[str, Any]] | Sequence[Any]

CONFIG_VERSION = 1


class StateMismatch(KeyError):  # noqa: N818  # what was found; named as such in tracebacks
    """A state of an optimizer with other plug-ins."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError shows its text as a string in quotes


@verify_names
class Optimizer:
    """An SGD-based optimizer made of plug-ins, for any framework.

    One step alters the gradients by the regularizers, then by the modules, in order, and gives
    ``-(lrate * gradients + w_decay * weights)``.

    The decay is decoupled and **not** multiplied by the learning rate: for the same effect as
    ``torch.optim.AdamW(lr=a, weight_decay=b)`` take ``lrate=a, w_decay=a * b``.

    Args:
        lrate: Learning rate: a number, finite and >= 0, or a schedule (an instance, a name, or
            ``(name, config)``).
        w_decay: Decoupled weight decay, likewise.
        regularizers: Each an instance, a name, or ``(name, config)``.
        modules: Likewise.
        groups: What differs between layers; see `Group`.

    Guarantees:
        - ``from_config(get_config())`` builds an equal optimizer; the config is JSON and holds no
          source of randomness.
        - ``set_state(get_state())`` restores everything that changes: the next step is the same.
        - A step that raises or is interrupted changes neither states nor weights.
        - Gradients are never written to; states own their memory.
        - Executors (`privopt.executor`) give the same numbers.

    Raises:
        ValueError: If a name is unknown, a value out of range, two modules share one `aux_name`, or
            a noise module stands after a module that sends what it computes from gradients.
        TypeError: If a value has the wrong type.

    Example:
        >>> import numpy as np
        >>> opt = Optimizer(lrate=0.1, modules=[("momentum", {"beta": 0.5})])
        >>> grads = Vector.build({"w": np.array([1.0])})
        >>> opt.compute_updates(grads, grads).coefs["w"]
        array([-0.1])
    """

    def __init__(
        self,
        lrate: RateSpec,
        w_decay: RateSpec = 0.0,
        regularizers: Iterable[RegularizerSpec] | None = None,
        modules: Iterable[ModuleSpec] | None = None,
        groups: Iterable[Group | Mapping[str, Any]] | None = None,
    ) -> None:
        self._lrate: float | Schedule = rate_of("lrate", lrate)
        self._w_decay: float | Schedule = rate_of("w_decay", w_decay)
        self._regularizers = tuple(_plugins(regularizers, Regularizer, REGULARIZERS))
        self._modules = tuple(_plugins(modules, OptiModule, OPTI_MODULES))
        self._groups = groups_of(groups)
        verify_settings(self.groups, self.plugins)
        self._scheduled = self._find_schedules()
        for place, plugin in enumerate(self.plugins):
            plugin._place = place
        self._owned: Owned = {}
        self._turns = [None]
        self._grouped: Grouping | None = None
        self._steppable: Layout | None = None
        self._rounds = False  # whether a round has ever started, or a state was restored that may say so
        self._arrived = False  # whether the plug-ins know where the present round arrived
        self._verify_chain()

    @property
    def lrate(self) -> float | Schedule:
        """The learning rate as given: a number or a schedule; it may be set between steps."""
        return self._lrate

    @lrate.setter
    def lrate(self, value: RateSpec) -> None:
        self._lrate = rate_of("lrate", value)
        self._scheduled = self._find_schedules()

    @property
    def w_decay(self) -> float | Schedule:
        """The decay as given: a number or a schedule; it may be set between steps."""
        return self._w_decay

    @w_decay.setter
    def w_decay(self, value: RateSpec) -> None:
        self._w_decay = rate_of("w_decay", value)
        self._scheduled = self._find_schedules()

    def _find_schedules(self) -> list[tuple[str, Schedule]]:
        """Each schedule once, under the key of its state."""
        rates: list[tuple[str, Any]] = [("lrate", self.lrate), ("w_decay", self.w_decay)]
        for i, group in enumerate(self.groups):
            rates += [(f"groups.{i}.lrate", group.lrate), (f"groups.{i}.w_decay", group.w_decay)]
        found: dict[int, tuple[str, Schedule]] = {}
        for key, rate in rates:
            if isinstance(rate, Schedule):
                found[id(rate)] = key, rate
        return list(found.values())

    def _verify_chain(self) -> None:
        from .modules.noise import NoiseModule

        for plugin in self.plugins:
            if sum(other is plugin for other in self.plugins) > 1:
                raise ValueError(
                    f"Expected each plug-in once, got one {plugin.name!r} twice: it would share its state "
                    "with itself. Make two."
                )
        owners: dict[str, OptiModule] = {}
        for module in self.modules:
            if module.aux_name is not None:
                if module.aux_name in owners:
                    raise ValueError(
                        "Expected one module per aux_name in an optimizer, got "
                        f"{owners[module.aux_name].name!r} and {module.name!r}, both {module.aux_name!r}."
                    )
                owners[module.aux_name] = module
            sender = next((m for m in owners.values() if m.aux_var is not None), None)
            if isinstance(module, NoiseModule) and sender is not None:
                raise ValueError(
                    f"Expected noise before {sender.name!r}, got {module.name!r} after it: what "
                    f"{sender.name!r} sends would be computed from gradients without the noise. "
                    f"Put {module.name!r} first."
                )

    @property
    def regularizers(self) -> tuple[Regularizer, ...]:
        """Regularizers in the order in which they run; fixed, because all was verified together."""
        return self._regularizers

    @regularizers.setter
    def regularizers(self, value: object) -> NoReturn:
        raise _fixed("regularizers")

    @property
    def modules(self) -> tuple[OptiModule, ...]:
        """Modules in the order in which they run, fixed likewise; their hyper-parameters may be set."""
        return self._modules

    @modules.setter
    def modules(self, value: object) -> NoReturn:
        raise _fixed("modules")

    @property
    def groups(self) -> tuple[Group, ...]:
        """What differs between layers, fixed likewise."""
        return self._groups

    @groups.setter
    def groups(self, value: object) -> NoReturn:
        raise _fixed("groups")

    @property
    def plugins(self) -> list[Plugin]:
        """Regularizers and modules in the order in which they run."""
        return [*self.regularizers, *self.modules]

    def __repr__(self) -> str:
        return (
            f"Optimizer(lrate={self.lrate!r}, w_decay={self.w_decay!r}, "
            f"regularizers={list(self.regularizers)!r}, modules={list(self.modules)!r}"
            f"{f', groups={list(self.groups)!r}' if self.groups else ''})"
        )

    # ---- steps ----------------------------------------------------------------------------------------

    def compute_updates(self, gradients: Vector, weights: Vector) -> Vector:
        """Return the updates, to be added to the weights.

        Args:
            gradients: Gradients of the loss, laid out as the weights.
            weights: The weights at which they were taken; not changed.

        Dtypes may differ: states are of the gradients' dtype, what combines gradients and weights is computed
        in the wider of the two, and weights that are stepped keep their own. ``gradients.to(weights)`` gives
        float64 gradients for float64 weights.

        Raises:
            TypeError: If either is no Vector, or they are of two frameworks.
            ValueError: If their layouts differ.
        """
        return self._advance(gradients, weights, in_place=False)

    def step(self, gradients: Vector, weights: Vector) -> None:
        """Apply one step to the weights, in their own memory (where the framework's arrays have one).

        Takes and raises what `compute_updates` does; dtypes may differ likewise, and the weights keep theirs.
        """
        self._advance(gradients, weights, in_place=True)

    def _advance(self, gradients: Vector, weights: Vector, *, in_place: bool) -> Vector:
        """One step, wholly or not at all."""
        for what, value in (("gradients", gradients), ("weights", weights)):
            if not isinstance(value, Vector):
                raise TypeError(f"Expected {what} as a Vector, got {type(value).__name__}.")
        gradients._verify(weights)
        if gradients._backend is not weights._backend:
            raise gradients._foreign(weights)
        gradients._gather()
        self.verify(weights.layout)
        try:
            turn = self._turns.pop()  # one bytecode: two threads cannot both have it
        except IndexError:
            raise RuntimeError(
                "Expected one step of an optimizer at a time, got one inside another or in another thread. "
                "Give each thread an optimizer of its own."
            ) from None
        try:
            return self._stepped(gradients, weights, in_place=in_place)
        finally:
            self._turns.append(turn)

    def _stepped(self, gradients: Vector, weights: Vector, *, in_place: bool) -> Vector:
        plugins = self.plugins
        changing: list[Plugin] = [*plugins, *self._schedules()]
        before = [(plugin, dict(plugin.__dict__)) for plugin in changing]
        grouping = self._grouped
        eager = steps_eagerly(weights._backend, weights.size)
        try:
            with np.errstate(all="ignore"):
                step = Step(plugins, gradients, weights, self._owned, eager=eager)
                try:
                    step.bind()
                except ValueError as error:
                    self._verify_states(gradients.layout, error)
                    raise
                if grouping is not None:
                    for plugin, name, values in grouping.settings:
                        plugin.__dict__[name] = values
                updates = self._updates(step, grouping)
                if grouping is not None:
                    # Hyper-parameters themselves stay as they were configured.
                    attributes = {id(plugin): kept for plugin, kept in before}
                    for plugin, name, _ in grouping.settings:
                        plugin.__dict__[name] = attributes[id(plugin)][name]
                commit, result = step.settle(updates, in_place=in_place)
                with uninterrupted():
                    commit()
                    before = []  # from here on there is nothing to go back to
        except BaseException:
            for plugin, kept in before:
                plugin.__dict__.clear()
                plugin.__dict__.update(kept)
            raise
        return result[0]

    def _verify_states(self, layout: Layout, cause: ValueError) -> None:
        """Say so if a state is another model's."""
        for plugin in self.plugins:
            for name in (field.name for field in plugin._state):
                value = getattr(plugin, name)
                difference = value.layout.difference(layout) if isinstance(value, Vector) else None
                if difference is not None:
                    raise ValueError(
                        f"Expected gradients of the model that state {name!r} of {plugin._kind()} "
                        f"{plugin.name!r} belongs to, got others: in the state, {difference}. It was "
                        "restored, or comes from steps on another model; reset() forgets it."
                    ) from cause

    def verify(self, layout: Layout | Vector) -> None:
        """Check what needs a model's layout (or its weights), before anything is spent on a first step.

        Raises:
            ValueError: If a group matches no tensor, or one of its settings belongs to no plug-in or to two.
            TypeError: If a tensor holds integers, or a setting cannot differ between tensors.
        """
        if isinstance(layout, Vector):
            layout = layout.layout
        elif not isinstance(layout, Layout):
            raise TypeError(f"Expected a Vector or its layout, got {type(layout).__name__}.")
        if layout is not self._steppable or (self._grouped is not None and self._grouped.is_stale()):
            _verify_fractional(layout)
            self._grouped = Grouping(self.groups, layout, self.plugins) if self.groups else None
            self._steppable = layout

    def _updates(self, step: Step, grouping: Grouping | None) -> Vector:
        weights, gradients = step.weights, step.gradients
        lrate, w_decay = self._rates(grouping)
        active = None if grouping is None else grouping.active
        if active is not None:
            gradients = gradients.keep(active)
        gradients = step.view(gradients)
        for regularizer in self.regularizers:
            gradients = _verified(regularizer, regularizer.run(gradients, step.view(weights)), weights)
        if active is not None and self.regularizers:
            gradients = gradients.keep(active)  # penalties on frozen tensors count for no norm
        given = {"weights": weights, "raw_gradients": gradients}
        gradients = step.view(gradients)
        for module in self.modules:
            extra = {name: step.view(given[name]) for name in module.takes}
            gradients = _verified(module, module.run(gradients, **extra), weights)
            if active is not None:  # noise and decay inside a module are nothing to frozen tensors either
                gradients = gradients.keep(active)
        updates = gradients * -lrate
        if isinstance(w_decay, PerTensor) or w_decay:
            updates = updates - weights * w_decay
        if active is not None:
            updates = updates.keep(active)
        for module in self.modules:
            if type(module).finish is not OptiModule.finish:
                updates = _verified(module, module.finish(updates, step.view(weights)), weights)
        return updates if active is None else updates.keep(active)

    def _rates(self, grouping: Grouping | None) -> tuple[float | PerTensor, float | PerTensor]:
        """The rates of this step; counts it."""
        for schedule in self._schedules():
            schedule.advance()
        lrate, w_decay = self.current_lrate, self.current_w_decay
        if grouping is None:
            return lrate, w_decay
        return grouping.rate("lrate", lrate), grouping.rate("w_decay", w_decay)

    @property
    def current_lrate(self) -> float:
        """The learning rate of the last step; before the first, the one that it will have."""
        return self.lrate.current if isinstance(self.lrate, Schedule) else self.lrate

    @property
    def current_w_decay(self) -> float:
        """The decay of the last step; before the first, the one that it will have."""
        return self.w_decay.current if isinstance(self.w_decay, Schedule) else self.w_decay

    def feed(self, metric: float) -> None:
        """Tell the schedules how training goes (`reduce-on-plateau` listens).

        Raises:
            TypeError: If the metric is no number.
        """
        if isinstance(metric, bool) or not isinstance(metric, int | float | np.number):
            raise TypeError(f"Expected a metric as a number, got {metric!r} ({type(metric).__name__}).")
        for schedule in self._schedules():
            schedule.feed(float(metric))

    def _schedules(self) -> list[Schedule]:
        return [schedule for _, schedule in self._scheduled]

    # ---- rounds and auxiliary variables -----------------------------------------------------------------
    #
    # All that a federation tells an optimizer, and with it every plug-in, so that who writes a loop of their
    # own need not know the plug-ins. In the order of calls:
    #
    #   once, on clients      on_weighting
    #   once, on the server   on_weighting, on_roster, verify_clients
    #   a client's round      process_aux_var, start_round, the steps, collect_aux_var(weights),
    #                         under masks on_update_sent and on_aux_vars_sent, end_round
    #   the server's round    collect_aux_var; when the clients have answered on_participation,
    #                         start_round, process_aux_var, one step, end_round

    def on_weighting(self, weight: int, largest: int) -> None:
        """Tell every plug-in, before the first round, what a client counts in the mean.

        Without a call all clients count 1.

        Args:
            weight: What this client counts as; on the server the same as `largest`.
            largest: The most that any client does.
        """
        for plugin in self.plugins:
            plugin.on_weighting(weight, largest)

    def on_roster(self, clients: Sequence[str]) -> None:
        """Tell every plug-in of a server, before the first round, the ids of all clients."""
        for plugin in self.plugins:
            plugin.on_roster(tuple(clients))

    def verify_clients(self, clients: Optimizer, aggregator: Aggregator | None = None) -> None:
        """Check, on a server and before the first round, that the clients' optimizer goes with this one.

        Args:
            clients: An optimizer like the clients'.
            aggregator: How updates become one, where it is known: some modules need the mean.

        Raises:
            ValueError: If one has half of a method without the other half, or two halves differ in a
                parameter; the message names the plug-in and what it needs.
        """
        owners = {m.aux_name: m.name for m in self.modules if m.aux_name is not None}
        for name in clients.aux_vars():
            if name not in owners:
                raise ValueError(
                    f"Expected a server module with aux_name {name!r} beside the clients', got "
                    f"{sorted(owners) or 'none'}. Add its counterpart on the server (such as {name}-server)."
                )
        found = [module.name for module in self.modules]
        for plugin in clients.plugins:
            if plugin.counterpart is not None and plugin.counterpart not in found:
                raise ValueError(
                    f"Expected the server module {plugin.counterpart!r} beside the clients' {plugin.name!r}, "
                    f"got {found}. Add it to the server's modules."
                )
        shared = {m.aux_name for m in clients.modules}
        for module in self.modules:
            if module.aux_name is not None and module.aux_name not in shared:
                raise ValueError(
                    f"Expected a clients' module with aux_name {module.aux_name!r} beside the server's "
                    f"{module.name!r}, got {[m.name for m in clients.modules]}. Add its counterpart on the "
                    f"clients (such as {module.aux_name}-client), or take {module.name!r} out."
                )
            if aggregator is not None and module.needs_mean and not aggregator.is_mean:
                raise ValueError(
                    f"Expected the aggregator 'mean' beside the server module {module.name!r}, got "
                    f"{aggregator.name!r}. Change one of them."
                )
            module.verify_clients(clients)

    def start_round(self) -> None:
        """Tell every plug-in and schedule that a round starts.

        Raises:
            ValueError: If a plug-in (FedDyn) was not told where the last round arrived.
        """
        for plugin in [*self.plugins, *self._schedules()]:
            plugin.on_round_start()
        self._rounds, self._arrived = True, False

    def end_round(self, accepted: bool = True) -> None:
        """Tell every plug-in whether the last round's result was used.

        Raises:
            ValueError: If a plug-in (FedDyn) was not told where an accepted round arrived, or a regularizer
                that looks at where a round started (FedProx, FedDyn) was never told of a start.
        """
        if accepted:
            self._verify_started()
        for plugin in self.plugins:
            plugin.on_round_end(accepted)

    def on_round_trained(self, weights: Vector) -> None:
        """Tell every plug-in of a client, after a round's last step, the weights that it arrived at.

        `collect_aux_var` does so when it is given the weights.

        Raises:
            ValueError: If a regularizer looks at where a round started, and was never told of a start.
        """
        self._verify_started()
        for plugin in self.plugins:
            plugin.on_round_trained(weights)
        self._arrived = True

    def collect_aux_var(self, weights: Vector | None = None) -> dict[str, Any]:
        """What the modules share, by `aux_name`; modules with nothing to share are left out.

        Args:
            weights: On a client, the weights after its last local step: plug-ins that depend on where the
                round arrived (FedDyn) see them first (`on_round_trained`).

        Raises:
            ValueError: If a plug-in needs the weights and has not seen them.
        """
        if weights is not None:
            self.on_round_trained(weights)
        needing = [p.name for p in self.plugins if type(p).on_round_trained is not Plugin.on_round_trained]
        if needing and not self._arrived:
            raise ValueError(
                f"Expected the weights that the round arrived at, which {needing[0]!r} needs, got none. Call "
                "collect_aux_var(weights) after the round's last step."
            )
        found: dict[str, Any] = {}
        for module in self.modules:
            if module.aux_name is None or (value := module.collect_aux_var()) is None:
                continue
            wanted = module.aux_var
            if wanted is not None and not isinstance(value, wanted):
                raise TypeError(
                    f"Expected {wanted.__name__} from {module.name!r}.collect_aux_var, got "
                    f"{type(value).__name__}."
                )
            found[module.aux_name] = value
        return found

    def _verify_started(self) -> None:
        """Refuse the end of a round that never started, where a regularizer looks at where it did."""
        if self._rounds:
            return
        for plugin in self.regularizers:
            if type(plugin).on_round_start is not Plugin.on_round_start:
                raise ValueError(
                    "Expected start_round() before the first step of a round, got the end of one that never "
                    f"started: {plugin.name!r} would keep looking at the first weights that it saw. Call "
                    "start_round() in every round."
                )

    def on_update_sent(self, update: Vector) -> None:
        """Tell every plug-in of a client its update as it will arrive: under masks clipped and rounded.

        Where the aggregator is the mean, and the client counts more than 0.
        """
        for plugin in self.plugins:
            plugin.on_update_sent(update)

    def on_aux_vars_sent(self, sent: Mapping[str, AuxVar]) -> None:
        """Tell each module what of its auxiliary variables will really arrive."""
        for module in self.modules:
            if module.aux_name is not None and module.aux_name in sent:
                module.on_aux_var_sent(sent[module.aux_name])

    def on_participation(self, share: float) -> None:
        """Tell every plug-in of a server, before its step, which share of all clients' weight took part."""
        for plugin in self.plugins:
            plugin.on_participation(share)

    def process_aux_var(self, aux_vars: Mapping[str, AuxVar]) -> None:
        """Hand each module what its counterpart shared.

        Raises:
            ValueError: If an `aux_name` belongs to no module here; nothing is processed then.
        """
        owners = {m.aux_name: m for m in self.modules if m.aux_name is not None}
        for name in aux_vars:
            if name not in owners:
                raise ValueError(
                    f"Expected auxiliary variables for {sorted(owners) or 'no module'}, got {name!r}. "
                    "Client and server need counterpart modules."
                )
        for name, aux_var in aux_vars.items():
            owners[name].process_aux_var(aux_var)

    def aux_vars(self) -> dict[str, type[AuxVar]]:
        """The class of what each module sends at the end of a round, by `aux_name`."""
        return {
            m.aux_name: m.aux_var for m in self.modules if m.aux_name is not None and m.aux_var is not None
        }

    def aux_reductions(self, layout: Layout) -> dict[str, Reduction]:
        """How each sent field sums, as ``{"aux_name.field": reduction}``, for a model's layout."""
        return {
            f"{name}.{field}": _scoped(reduction, name)
            for name, cls in self.aux_vars().items()
            for field, reduction in cls.reductions(layout).items()
        }

    # ---- config and state ---------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The optimizer as JSON values."""
        config: dict[str, Any] = {
            "version": CONFIG_VERSION,
            "lrate": config_of(self.lrate),
            "w_decay": config_of(self.w_decay),
            "regularizers": [[p.name, p.get_config()] for p in self.regularizers],
            "modules": [[p.name, p.get_config()] for p in self.modules],
        }
        if self.groups:
            config["groups"] = [group.get_config() for group in self.groups]
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build an optimizer from `get_config`'s output.

        Raises:
            ValueError: If the version is not known.
            TypeError: If a key is.
        """
        known = {"version", "lrate", "w_decay", "regularizers", "modules", "groups"}
        extra = sorted(set(config) - known)
        if extra:
            raise TypeError(f"Expected the keys {sorted(known)} in an optimizer's config, got also {extra}.")
        if config.get("version", CONFIG_VERSION) != CONFIG_VERSION:
            raise ValueError(
                f"Expected an optimizer's config of version {CONFIG_VERSION}, got {config['version']!r}. "
                "Upgrade privopt to read it."
            )
        return cls(**{k: v for k, v in config.items() if k != "version"})

    def get_state(self) -> dict[str, Any]:
        """Everything that changes, plug-in by plug-in (keys such as ``"modules.0.adam"``)."""
        return {key: plugin.get_state() for key, plugin in self._keyed()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `get_state` of an optimizer with the same plug-ins.

        Raises:
            KeyError: If a plug-in's state is missing, or there is one too many; no plug-in is changed then.
            TypeError: If it is no mapping, or a value has another type than declared; nor then.
        """
        keyed = self._keyed()
        expected = [key for key, _ in keyed]
        if not isinstance(state, Mapping):
            raise TypeError(f"Expected a state as `get_state` gives it, got {type(state).__name__}.")
        if sorted(state) != sorted(expected):
            raise StateMismatch(
                f"Expected the states {expected}, got {sorted(state)}. Were the plug-ins changed?"
            )
        before = self.get_state()
        try:
            for key, plugin in keyed:
                plugin.set_state(state[key])
        except BaseException as error:
            for key, plugin in keyed:
                plugin.set_state(before[key])
            if isinstance(error, KeyError) and error.args:
                raise StateMismatch(error.args[0]) from error
            raise
        self._rounds = True

    def reset(self) -> None:
        """Forget everything that changed since construction."""
        for _, plugin in self._keyed():
            plugin.reset()
        self._rounds = self._arrived = False

    def _keyed(self) -> list[tuple[str, Plugin]]:
        keyed: list[tuple[str, Plugin]] = []
        keyed += [(f"regularizers.{i}.{p.name}", p) for i, p in enumerate(self.regularizers)]
        keyed += [(f"modules.{i}.{p.name}", p) for i, p in enumerate(self.modules)]
        keyed += self._scheduled
        return keyed


def _fixed(what: str) -> AttributeError:
    return AttributeError(
        f"Expected an optimizer's {what} to stay as they were verified, got an assignment. Build another "
        f"Optimizer with the {what} that you want."
    )


def _scoped(reduction: Reduction, aux_name: str) -> Reduction:
    """The reduction as it stands in a round's schema, where its weight is named in full."""
    if isinstance(reduction, Averaged | Moments) and reduction.weight is not None:
        return dataclasses.replace(reduction, weight=f"{aux_name}.{reduction.weight}")
    return reduction


def _verify_fractional(layout: Layout) -> None:
    for spec in layout:
        dtype = layout.blocks[spec.block].dtype
        if fractional(dtype) != dtype:
            raise TypeError(
                f"Expected weights with fractions, got {spec.name!r} of dtype {dtype}. Leave it out of the "
                "Vector: nothing here can step on integers."
            )


def _verified(plugin: Plugin, result: object, weights: Vector) -> Vector:
    """What a plug-in returned, if it is a Vector of the model's layout."""
    if not isinstance(result, Vector):
        raise TypeError(
            f"Expected a Vector from {plugin._kind()} {plugin.name!r}, got {type(result).__name__}. "
            "Does its method return what it computed?"
        )
    if result.layout is not weights.layout:
        difference = result.layout.difference(weights.layout)
        if difference is not None:
            raise ValueError(
                f"Expected {plugin._kind()} {plugin.name!r} to keep the layout, got another: {difference}."
            )
    return result


def _plugins(specs: Iterable[Any] | None, base: type[_P], registry: Registry) -> list[_P]:
    if isinstance(specs, str | Plugin | Mapping):
        raise TypeError(f"Expected a list of {registry.what}s, got {specs!r}. Write [{specs!r}].")
    if specs is not None and not isinstance(specs, Iterable):
        raise TypeError(f"Expected a list of {registry.what}s, got {specs!r} ({type(specs).__name__}).")
    if isinstance(specs, Sequence) and len(specs) == 2 and isinstance(specs[1], Mapping):
        spec = tuple(specs)
        raise TypeError(
            f"Expected a list of {registry.what}s, got a name and its parameters. Wrap it: [{spec!r}]."
        )
    return [_plugin(spec, base, registry) for spec in specs or ()]


def _plugin(spec: Any, base: type[_P], registry: Registry) -> _P:
    if isinstance(spec, base):
        return spec
    if isinstance(spec, Plugin):
        raise TypeError(f"Expected {registry.one}, got the {spec._kind()} {spec.name!r}.")
    if isinstance(spec, type) and issubclass(spec, Plugin):
        raise TypeError(
            f"Expected {registry.one} as an instance, got the class {spec.__name__}. Write {spec.__name__}()."
        )
    if isinstance(spec, str):
        spec = (spec, {})
    if not (isinstance(spec, Sequence) and len(spec) == 2 and isinstance(spec[0], str)):
        raise TypeError(f"Expected {registry.one} as an instance, a name, or (name, config), got {spec!r}.")
    find: Callable[[str], Any] = registry.find
    built: _P = find(spec[0]).from_config(spec[1])
    return built
