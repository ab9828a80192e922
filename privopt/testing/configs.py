"""Configurations: what is declared survives JSON, and what is wrong is refused by name.

Values are drawn by hypothesis from the annotations of the declared fields; what the constructor refuses is
left out. A field whose values an annotation does not tell gets them by name (`values`).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import json
import typing
import unittest
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..aggregators import WEIGHTS
from ..plugin import Plugin
from .subject import Subject, accepted, difference, expect, table_of

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["check_bad_configs", "check_config", "check_declaration", "configs_of"]

Values = Mapping[str, "SearchStrategy[Any]"]
"""Strategies by ``"field"``, or ``"plug-in.field"`` where it is one plug-in's alone."""


def check_declaration(subject: Subject) -> None:
    """It is found under its name, built from its name alone, and its config is what it declares."""
    cls = subject.plugin
    table = table_of(cls)
    expect(table is not None, subject, "Expected a module, regularizer, schedule or aggregator, got none.")
    entered = None if table is None else table.table().get(cls.name)
    if entered is not None and entered.__module__ == cls.__module__:
        expect(entered is cls, subject, f"Expected the table to hold this class, got {entered.__qualname__}.")
    expect(bool(cls.__doc__), subject, "Expected a docstring: `privopt modules` shows it.")
    _verify_hooks(subject)
    built = cls()
    _same_names(subject, built)
    expect(
        cls.name in repr(built) or cls.__name__ in repr(built),
        subject,
        f"Expected its name in its repr, got {built!r}.",
    )


def _verify_hooks(subject: Subject) -> None:
    """No method is called nearly as one that an optimizer or a federation calls."""
    kinds = [cls for cls in subject.plugin.__mro__ if cls is Plugin or Plugin in cls.__bases__]
    known = {name for kind in kinds for name, value in vars(kind).items() if inspect.isfunction(value)}
    for cls in subject.plugin.__mro__[: subject.plugin.__mro__.index(kinds[0])]:
        for name, value in vars(cls).items():
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if inspect.isfunction(value) and name[0] != "_" and name not in known and near:
                raise subject.broken(
                    f"Expected a method that is called, got {name!r}, which nobody calls. Did you mean "
                    f"{near[0]!r}? A method of its own begins with an underscore."
                )


def check_config(
    subject: Subject,
    values: Values | None = None,
    examples: int = 20,
    *,
    configs: SearchStrategy[dict[str, Any]] | None = None,
) -> None:
    """Every hyper-parameter survives JSON, with values other than the defaults.

    Args:
        subject: The plug-in; its own configuration is not used.
        values: See `configs_of`.
        examples: Configurations to try.
        configs: Whole configurations, instead of those of `configs_of`.
    """
    from hypothesis import HealthCheck, Phase, given, settings

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(config=configs_of(subject, values) if configs is None else configs)
    def survives(config: dict[str, Any]) -> None:
        _survives(subject, config)

    survives()


def _survives(subject: Subject, config: Mapping[str, Any]) -> None:
    built = subject.build_with(config)
    _same_names(subject, built)
    for name in config:
        given, kept = config[name], built.get_config()[name]
        # A field of another type may be normalized (a name into a nested plug-in).
        if _spelled(subject.hyper[name]) in _WRONG:
            expect(
                kept == given, subject, f"Expected get_config to tell {name}={given!r}, got {name}={kept!r}."
            )
    try:
        text = json.dumps(built.get_config(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise subject.broken(
            f"Expected a config of JSON values, got {built.get_config()!r} ({error})."
        ) from error
    again = type(built).from_config(json.loads(text))
    gap = difference(built.get_config(), again.get_config())
    expect(gap is None, subject, f"Expected the config to survive JSON and from_config, got {gap}.")
    for name in subject.hyper:
        left, right = getattr(built, name), getattr(again, name)
        if not isinstance(left, Plugin):
            gap = difference(_plain(left), _plain(right), name)
            expect(gap is None, subject, f"Expected hyper-parameters to survive JSON, got {gap}.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _same_names(subject: Subject, built: Plugin) -> None:
    declared, told = set(subject.hyper), set(built.get_config())
    expect(
        declared == told,
        subject,
        f"Expected get_config to tell each hyper-parameter, got {sorted(told)} where {sorted(declared)} are "
        "declared. Leave get_config as it is inherited, or extend what it gives.",
    )


def configs_of(subject: Subject, values: Values | None = None) -> SearchStrategy[dict[str, Any]]:
    """Configurations that the constructor accepts, each field away from its default where it can be.

    Args:
        subject: The plug-in.
        values: Strategies by ``"field"`` or ``"plug-in.field"``, where an annotation does not tell the
            values (a string that must be one of a few), or tells too many.

    Raises:
        ContractError: If no value but the default is known for a field.
        unittest.SkipTest: If hypothesis is not installed.
    """
    if importlib.util.find_spec("hypothesis") is None:
        raise unittest.SkipTest("hypothesis is not installed")
    from hypothesis import strategies as st

    values = values or {}
    fields = {name: _values(subject, hyper, values) for name, hyper in subject.hyper.items()}
    return st.fixed_dictionaries(fields).filter(lambda config: accepted(subject, config))


def _values(subject: Subject, hyper: dataclasses.Field[Any], values: Values) -> SearchStrategy[Any]:
    from hypothesis import strategies as st

    name = hyper.name
    known = values if f"{subject.kind}.{name}" not in _KNOWN else {name: _known(subject, name), **values}
    own = values.get(f"{subject.plugin.name}.{name}", known.get(name))
    if own is not None:
        return own
    default = getattr(subject.plugin(), name)
    branches = [
        drawn for drawn, probe in _branches(subject, hyper, default) if accepted(subject, {name: probe})
    ]
    if not branches:
        raise subject.broken(
            f"Expected values other than the default for {name!r}, and its annotation "
            f"{hyper.type!r} tells none that the constructor takes. Give them: values={{{name!r}: "
            "hypothesis.strategies.sampled_from([...])}."
        )
    return st.one_of(branches).filter(lambda value: value != default and accepted(subject, {name: value}))


def _resolved(subject: Subject, hyper: dataclasses.Field[Any]) -> Any:
    """The annotation as a type; as it is spelled where it names what is there for type checkers alone."""
    if not isinstance(hyper.type, str):
        return hyper.type
    owner = next(c for c in subject.plugin.__mro__ if hyper.name in inspect.get_annotations(c))
    alone = type("_", (), {"__annotations__": {hyper.name: hyper.type}, "__module__": owner.__module__})
    try:
        return typing.get_type_hints(alone)[hyper.name]
    except NameError:
        return hyper.type


_KNOWN: Mapping[str, Sequence[str]] = {"schedule.by": ("step", "round"), "aggregator.weight": WEIGHTS}
"""What all plug-ins of a kind have from their base class."""


def _known(subject: Subject, name: str) -> SearchStrategy[Any]:
    from hypothesis import strategies as st

    return st.sampled_from(_KNOWN[f"{subject.kind}.{name}"])


def _branches(
    subject: Subject, hyper: dataclasses.Field[Any], default: Any
) -> list[tuple[SearchStrategy[Any], Any]]:
    """Kinds of values that an annotation allows, each with one of its kind to try the constructor on."""
    from hypothesis import strategies as st

    kind = _resolved(subject, hyper)
    if typing.get_origin(kind) is typing.Literal:
        return [(st.just(value), value) for value in typing.get_args(kind) if value != default]
    if kind in (bool, "bool"):
        return [(st.just(not default), not default)]
    if kind in (int, "int"):
        spans = [(1, 3), (4, 1000), (-1000, -1)]
        # One by one the smallest: often they stand for one of a few ways.
        few: list[tuple[SearchStrategy[Any], Any]] = [(st.just(n), n) for n in range(4) if n != default]
        return few + [(st.integers(low, high), high) for low, high in spans]
    if kind in (float, "float"):
        # Most ranges are [0, 1), (0, inf) or near zero.
        reals = [(1e-9, 1e-3), (0.01, 0.99), (1.0, 100.0), (-100.0, -1e-3)]
        return [(st.floats(low, high), (low + high) / 2) for low, high in reals]
    if kind in (str, "str"):
        return [(st.text(max_size=8), "another")]
    return []


_WRONG: Mapping[str, Any] = {"float": "0.5", "int": 0.5, "bool": 1, "str": 1}


def check_bad_configs(subject: Subject) -> None:
    """Values of the wrong type, NaN, unknown keys and configs that are none are refused by name."""
    cls = subject.plugin
    for name, hyper in subject.hyper.items():
        kind = _spelled(hyper)
        if kind in _WRONG:
            _refused(subject, {name: _WRONG[kind]}, (TypeError,), (cls.name, name))
        if kind == "float":
            _refused(subject, {name: float("nan")}, (ValueError,), (name,))
            _refused(subject, {name: True}, (TypeError,), (cls.name, name))
    _refused(subject, {"no_such_parameter": 1}, (TypeError,), (cls.name, "no_such_parameter"))
    _refused(subject, ["a list"], (TypeError,), (cls.name,))


def _spelled(hyper: dataclasses.Field[Any]) -> str:
    return hyper.type if isinstance(hyper.type, str) else getattr(hyper.type, "__name__", "")


def _refused(
    subject: Subject, config: Any, errors: tuple[type[Exception], ...], words: tuple[str, ...]
) -> None:
    expected = " or ".join(error.__name__ for error in errors)
    try:
        subject.plugin.from_config(config)
    except errors as error:
        for word in words:
            expect(
                word in str(error), subject, f"Expected {word!r} in the error about {config!r}, got: {error}"
            )
    except Exception as error:
        raise subject.broken(
            f"Expected {expected} for the config {config!r}, got {error!r}. "
            "Call super().__post_init__() before the plug-in's own checks."
        ) from error
    else:
        raise subject.broken(
            f"Expected {expected} for the config {config!r}, got an instance. "
            "Call super().__post_init__() in __post_init__."
        )
