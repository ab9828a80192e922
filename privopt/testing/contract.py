"""The contract as test classes for pytest, and as one function for everything else.

`PluginContract` is all of it. Its parts can be taken alone: `ConfigContract`, `StepContract`,
`StateContract`, `AgreementContract`, `SharingContract`.
"""

from __future__ import annotations

import importlib.util
import itertools
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from ..aggregators import Aggregator
from ..executors import EXECUTORS
from ..plugin import OptiModule, Plugin, Regularizer
from ..schedules import Schedule
from . import agreement, configs, counting, resume, sharing, steps
from .inputs import DTYPES, FRAMEWORKS, SHAPES
from .subject import ContractError, Subject

__all__ = [
    "AgreementContract",
    "ConfigContract",
    "Contract",
    "PluginContract",
    "SharingContract",
    "StateContract",
    "StepContract",
    "check_plugin",
]

Test = TypeVar("Test", bound=Callable[..., None])
Plugins = Sequence[type[Plugin]]


def _about(
    *kinds: type[Plugin], once: bool = False, where: Callable[[Subject], bool] = lambda subject: True
) -> Callable[[Test], Test]:
    """Say which plug-ins a test is about; `once` leaves out their further configurations."""

    def applies(subject: Subject) -> bool:
        if once and subject.config:
            return False
        return issubclass(subject.plugin, kinds) and where(subject)

    def mark(test: Test) -> Test:
        test.applies = applies  # type: ignore[attr-defined]  # a mark on our own functions
        return test

    return mark


class Contract:
    """Base of the test classes: what is tested, and where.

    A subclass whose name begins with ``Test`` is found by pytest. Tests that none of its plug-ins needs are
    left out of it.

    Attributes:
        plugins: The classes; `registered` finds all of a package.
        configs: Further configurations to test beside the defaults, by the plug-in's name: those that take
            another way through it.
        values: Strategies of hypothesis by hyper-parameter, ``"field"`` or ``"plug-in.field"``, where the
            annotation does not tell its values (a string that must be one of a few).
        makers: How an instance is made from a configuration, by the plug-in's name, where
            ``plugin(**config)`` does not do.
        frameworks: That must agree with numpy; those that are not installed are skipped.
        executors: That must agree with eager.
        dtypes: In which frameworks and executors must agree.
        examples: Configurations that hypothesis tries for each plug-in.
    """

    plugins: ClassVar[Plugins] = ()
    configs: ClassVar[Mapping[str, Sequence[Mapping[str, Any]]]] = {}
    values: ClassVar[Mapping[str, Any]] = {}
    makers: ClassVar[Mapping[str, Callable[..., Plugin]]] = {}
    frameworks: ClassVar[Sequence[str]] = FRAMEWORKS
    executors: ClassVar[Sequence[str]] = agreement.EXECUTORS
    dtypes: ClassVar[Sequence[str]] = ("float32", "float64")
    examples: ClassVar[int] = 20

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "plugins" not in cls.__dict__:
            return
        if isinstance(cls.plugins, type) or not all(map(_is_plugin, cls.plugins)):
            raise TypeError(
                f"Expected a list of plug-in classes as {cls.__name__}.plugins, got {cls.plugins!r}."
            )
        _verify_names("frameworks", cls.frameworks, FRAMEWORKS)
        _verify_names("executors", cls.executors, EXECUTORS)
        _verify_names("dtypes", cls.dtypes, DTYPES)
        unknown = {*cls.configs, *cls.makers} - {plugin.name for plugin in cls.plugins}
        if unknown:
            raise ValueError(
                f"Expected configs and makers of {cls.__name__}'s plug-ins, got those of {sorted(unknown)}."
            )
        for name in cls.promises():
            if not any(True for _ in cls.cases(name)):
                setattr(cls, name, None)

    @classmethod
    def subjects(cls) -> list[Subject]:
        """Each plug-in with its defaults, then with its further configurations."""
        return [
            Subject(plugin, config, cls.makers.get(plugin.name))
            for plugin in cls.plugins
            for config in ({}, *cls.configs.get(plugin.name, ()))
        ]

    @classmethod
    def promises(cls) -> list[str]:
        """Names of the tests, in order."""
        return [name for name in dir(cls) if name.startswith("test_") and callable(getattr(cls, name))]

    @classmethod
    def cases(cls, test: str) -> Iterator[dict[str, Any]]:
        """The arguments of each case of a test."""
        function = getattr(cls, test)
        wanted = function.__code__.co_varnames[1 : function.__code__.co_argcount]
        choices: list[Sequence[Any]] = [
            [s for s in cls.subjects() if function.applies(s)] if name == "subject" else cls._choices(name)
            for name in wanted
        ]
        for chosen in itertools.product(*choices):
            case = dict(zip(wanted, chosen, strict=True))
            if cls._makes_sense(case):
                yield case

    @classmethod
    def _choices(cls, name: str) -> Sequence[Any]:
        known: Mapping[str, Sequence[Any]] = {
            "shapes": list(SHAPES),
            "held": [d for d in DTYPES if d != "bfloat16" or importlib.util.find_spec("torch") is not None],
            "dtype": cls.dtypes,
            "framework": [f for f in cls.frameworks if f != "numpy"],  # which the others are compared with
            "array": cls.frameworks if cls.executors else (),
            "recording": ("eager", "blocked"),
        }
        return known[name]

    @classmethod
    def _makes_sense(cls, case: Mapping[str, str]) -> bool:
        # The model of several tensors holds one of every shape.
        return "held" not in case or case["shapes"] == "several" or case["held"] == "float32"

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Give pytest the cases of each test."""
        cases = list(self.cases(metafunc.function.__name__))
        if cases:
            names = list(cases[0])
            ids = ["-".join(str(value) for value in case.values()) for case in cases]
            metafunc.parametrize(names, [tuple(case.values()) for case in cases], ids=ids)


def _is_plugin(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, Plugin)


def _verify_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that nothing answers to: their cases would be left out without a word."""
    if isinstance(given, str):
        raise TypeError(f"Expected a list of {what}, got {given!r}. Write [{given!r}].")
    for name in given:
        if name not in known:
            raise ValueError(f"Expected {what} among {list(known)}, got {name!r}.")


class ConfigContract(Contract):
    """Hyper-parameters: declared, told, checked."""

    @_about(Plugin, once=True)
    def test_it_is_found_by_its_name_and_tells_what_it_declares(self, subject: Subject) -> None:
        """See `privopt.testing.configs`."""
        configs.check_declaration(subject)

    @_about(Plugin, once=True)
    def test_config_survives_json_with_values_other_than_the_defaults(self, subject: Subject) -> None:
        """See `privopt.testing.configs`."""
        configs.check_config(subject, self.values, self.examples)

    @_about(Plugin, once=True)
    def test_wrong_types_and_unknown_keys_are_refused_by_name(self, subject: Subject) -> None:
        """See `privopt.testing.configs`."""
        configs.check_bad_configs(subject)


class StepContract(Contract):
    """Steps: layouts and dtypes stay, others' memory is left alone, failed steps leave nothing behind."""

    @_about(OptiModule, Regularizer)
    def test_layout_and_dtype_are_kept_and_numbers_stay_finite(
        self, subject: Subject, shapes: str, held: str
    ) -> None:
        """See `privopt.testing.steps`."""
        framework = "torch" if held == "bfloat16" else "numpy"
        steps.check_layout(subject, SHAPES[shapes], held, framework)

    @_about(OptiModule, Regularizer)
    def test_the_callers_arrays_are_never_written_to(self, subject: Subject) -> None:
        """See `privopt.testing.steps`."""
        steps.check_caller_arrays(subject)

    @_about(OptiModule, Regularizer)
    def test_states_own_their_memory(self, subject: Subject) -> None:
        """See `privopt.testing.steps`."""
        steps.check_memory(subject)

    @_about(OptiModule, Regularizer)
    def test_a_step_that_fails_changes_nothing(self, subject: Subject, recording: str) -> None:
        """See `privopt.testing.steps`."""
        steps.check_failed_steps(subject, recording)

    @_about(OptiModule, Regularizer)
    def test_a_groups_setting_acts_or_is_refused(self, subject: Subject) -> None:
        """See `privopt.testing.steps`."""
        steps.check_groups(subject)

    @_about(OptiModule, Regularizer, once=True)
    def test_integer_weights_are_refused(self, subject: Subject) -> None:
        """See `privopt.testing.steps`."""
        steps.check_integers(subject)


class StateContract(Contract):
    """State: declared, saved, resumed, reset; nothing else is remembered."""

    @_about(OptiModule, Regularizer)
    def test_a_run_that_stops_anywhere_resumes_bit_for_bit(self, subject: Subject, recording: str) -> None:
        """See `privopt.testing.resume`."""
        # In and between rounds, those that counted and those that did not.
        stops = (0, 1, 3, 5, 6, 9, 12) if recording == "eager" else (2, 8)
        resume.check_resume(subject, by=recording, stops=stops)

    @_about(OptiModule, Regularizer)
    def test_equal_instances_do_equal_things(self, subject: Subject) -> None:
        """See `privopt.testing.resume`."""
        resume.check_determinism(subject)

    @_about(OptiModule, Regularizer)
    def test_what_changes_is_declared(self, subject: Subject) -> None:
        """See `privopt.testing.resume`."""
        resume.check_declared_state(subject)

    @_about(OptiModule, Regularizer)
    def test_reset_makes_it_fresh(self, subject: Subject) -> None:
        """See `privopt.testing.resume`."""
        resume.check_reset(subject)

    @_about(OptiModule, Regularizer, where=lambda subject: "round_reset" in subject.hyper)
    def test_round_reset_forgets_when_a_round_starts(self, subject: Subject) -> None:
        """See `privopt.testing.resume`."""
        resume.check_round_reset(subject)

    @_about(Schedule)
    def test_rates_follow_from_counts_and_go_on_from_a_saved_state(self, subject: Subject) -> None:
        """See `privopt.testing.counting`."""
        counting.check_schedule(subject)


class AgreementContract(Contract):
    """The same numbers in every framework and by every executor."""

    @_about(OptiModule, Regularizer)
    def test_frameworks_agree(self, subject: Subject, framework: str, dtype: str) -> None:
        """See `privopt.testing.agreement`."""
        agreement.check_frameworks(subject, framework, dtype)

    @_about(OptiModule, Regularizer)
    def test_executors_agree(self, subject: Subject, array: str, dtype: str) -> None:
        """See `privopt.testing.agreement`."""
        agreement.check_executors(subject, array, dtype, self.executors)


def _exchanges(subject: Subject) -> bool:
    return getattr(subject.plugin, "aux_name", None) is not None


class SharingContract(Contract):
    """What clients share adds up as declared, in clear and under masks."""

    @_about(OptiModule, where=lambda subject: getattr(subject.plugin, "aux_var", None) is not None)
    def test_what_is_sent_adds_up_as_declared(self, subject: Subject) -> None:
        """See `privopt.testing.sharing`."""
        sharing.check_aux_var(subject)

    @_about(OptiModule, once=True, where=_exchanges)
    def test_what_is_received_is_verified(self, subject: Subject) -> None:
        """See `privopt.testing.sharing`."""
        sharing.check_foreign_aux_var(subject)

    @_about(OptiModule, once=True, where=_exchanges)
    def test_what_is_received_is_copied(self, subject: Subject) -> None:
        """See `privopt.testing.sharing`."""
        sharing.check_received_memory(subject)

    @_about(Aggregator)
    def test_updates_combine_in_any_order_and_under_masks(self, subject: Subject) -> None:
        """See `privopt.testing.sharing`."""
        sharing.check_aggregator(subject)


class PluginContract(ConfigContract, StepContract, StateContract, AgreementContract, SharingContract):
    """Everything that a plug-in promises.

    Example:
        A package's test file, complete::

            from privopt.testing import PluginContract, registered

            class TestMyPlugins(PluginContract):
                plugins = registered("my_package")
    """


def check_plugin(plugin: type[Plugin], **settings: Any) -> int:
    """Run the whole contract for one plug-in, without pytest.

    Args:
        plugin: The class.
        settings: What `Contract`'s attributes say of all plug-ins: ``configs`` (a list, here), ``values``,
            ``make`` (one function, here), ``frameworks``, ``executors``, ``dtypes``, ``examples``.

    Returns:
        How many cases held; what needs a package that is not installed is not counted.

    Raises:
        ContractError: At the first case that does not hold.
        TypeError: If it is given no class, or a setting that there is none of.
        ValueError: If there is no framework, executor or dtype of a name.

    Example:
        >>> from privopt.modules import Momentum
        >>> check_plugin(Momentum, frameworks=[], executors=["blocked"], examples=5) > 20
        True
    """
    if not _is_plugin(plugin):
        got: Any = plugin
        hint = " `list_optim_modules()[name]` finds one by its name." if isinstance(got, str) else ""
        if isinstance(got, Plugin):
            hint = f" Write {type(got).__name__}."
        raise TypeError(f"Expected a plug-in class, got {got!r} ({type(got).__name__}).{hint}")
    given = dict(settings)
    if "configs" in given:
        given["configs"] = {plugin.name: given["configs"]}
    if "make" in given:
        given["makers"] = {plugin.name: given.pop("make")}
    known = set(Contract.__annotations__) - {"plugins"}
    if not set(given) <= known:
        raise TypeError(f"Expected settings among {sorted(known)}, got {sorted(set(given) - known)}.")
    name = f"TestPlugin{plugin.__name__}"
    contract: type[Contract] = type(name, (PluginContract,), {**given, "plugins": [plugin]})
    held = 0
    for test in contract.promises():
        for case in contract.cases(test):
            try:
                getattr(contract(), test)(**case)
            except unittest.SkipTest:
                continue
            except ContractError as error:
                error.add_note(f"{test}, {case}")
                raise
            held += 1
    return held
