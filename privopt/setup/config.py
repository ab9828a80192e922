"""Reads and writes the configuration of a run: floor 7, between a TOML file and `privopt.setup.tables`.

A configuration is laid up in layers: the defaults, then the file, then each ``key=value`` of the command
line. Whatever a layer leaves out stays as the layer below has it, so a file holds only what it changes.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .tables import Client as Client
from .tables import Config as Config
from .tables import ConfigError as ConfigError
from .tables import Data as Data
from .tables import Dp as Dp
from .tables import Effort as Effort
from .tables import Masks as Masks
from .tables import MasksConfigError as MasksConfigError
from .tables import Model as Model
from .tables import OptimizerSpec as OptimizerSpec
from .tables import PrivacyConfigError as PrivacyConfigError
from .tables import Sampler as Sampler
from .tables import Selection as Selection
from .tables import Server as Server
from .tables import Stop as Stop
from .tables import check as check

if TYPE_CHECKING:
    from ..aggregators import Aggregator

# Keys of one table that say one thing in two ways: setting one drops what a lower layer said by the other.
_EITHER_OR: dict[tuple[str, ...], tuple[str, ...]] = {("client", "effort"): ("steps", "epochs", "seconds")}

_NAMES = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"} | {
    "array": "a list",
    "object": "a table",
    "null": "none",
}
_LIST_HINT = 'Write a list, such as ["adam"] or [["l2-global-clipping", {max_norm = 1.0}], "adam"].'
_RATE_HINT = 'Write a number, or a schedule: ["cosine", {base = 0.1, duration = 100}].'
_GROUP_HINT = 'Write a list of tables: [{match = ".*bias", w_decay = 0.0}].'
_EXAMPLES = {
    ("client", "optimizer", "lrate"): _RATE_HINT,
    ("server", "optimizer", "lrate"): _RATE_HINT,
    ("client", "optimizer", "groups"): _GROUP_HINT,
    ("server", "optimizer", "groups"): _GROUP_HINT,
    ("client", "optimizer", "modules"): _LIST_HINT,
    ("client", "optimizer", "regularizers"): _LIST_HINT,
    ("server", "optimizer", "modules"): _LIST_HINT,
    ("server", "optimizer", "regularizers"): _LIST_HINT,
    ("data", "clients"): 'Write a number of clients, or a list of files: ["a.csv", "b.csv"].',
    ("data", "bounds"): "Write {age = [0, 110]}.",
}


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration: the defaults, then the file, then each ``key.path=value``.

    Args:
        path: A TOML file; None for the built-in default run.
        overrides: Such as ``"rounds=20"`` or ``'client.optimizer.modules=["adam"]'``: TOML values, where a
            bare word is a string and ``none`` unsets a key.

    Returns:
        A checked configuration.

    Raises:
        ConfigError: With the key, where it was set, what was expected, what came, and what to do.

    Example:
        >>> load(None, ["rounds=3", "dp.epsilon=4"]).dp.epsilon
        4.0
    """
    layers = _Layers()
    if path is not None:
        layers.add(_read_toml(Path(path)), f"in {path}")
    for text in overrides:
        layers.add(_parse_override(text), "on the command line")
    config = layers.decode()
    check(config)
    return config


def from_json(text: str | bytes) -> Config:
    """The configuration that `to_json` wrote, checked."""
    try:
        config = msgspec.json.decode(text, type=Config)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"Expected the config.json that a run wrote, got something else: {error}. "
            "It was edited or is of another version; start a new run from the TOML file."
        ) from None
    check(config)
    return config


def to_json(config: Config) -> str:
    """The configuration as JSON, every default written out, one key a line."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode() + "\n"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Expected a readable configuration file, got {path}: {error.strerror}. "
            "`privopt init my.toml` writes one to start from."
        ) from error
    except UnicodeDecodeError:
        raise ConfigError(f"Expected UTF-8 text in {path}, got other bytes. Is it a TOML file?") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"Expected TOML in {path}, got a syntax error: {error}. Text needs quotes, lists need brackets: "
            'name = "digits", modules = ["adam"].'
        ) from None


def _parse_override(text: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(
            f"Expected key=value, got {text!r}. For instance: rounds=20 dp.epsilon=4 data.name=breast_cancer."
        )
    layer = _parse_value(text, value.strip())
    for part in reversed(name.strip().split(".")):
        layer = {part: layer}
    assert isinstance(layer, dict)  # noqa: S101  # the name has at least one part
    return layer


def _parse_value(text: str, value: str) -> Any:
    """A TOML value, with what a shell's user leaves out: quotes around a word, the zero of ``.5``."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        if value[:1] in ("[", "{", '"', "'"):
            raise ConfigError(
                f"Expected a TOML value, got {text!r} on the command line. Strings inside lists keep their "
                """quotes, so quote the whole for the shell: 'client.optimizer.modules=["adam"]'."""
            ) from None
    if value.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[value.lower()]
    try:
        return float(value)
    except ValueError:
        return value


def check_plugins(config: Config) -> None:
    """Refuse plug-ins that do not exist, parameters that they do not take, and halves of pairs.

    Raises:
        ConfigError: Naming the key, the plug-in and the nearest name.
    """
    from ..optimizer import Optimizer

    optimizers = []
    for side, spec in (("client", config.client.optimizer), ("server", config.server.optimizer)):
        try:
            optimizer = Optimizer(
                spec.lrate, spec.w_decay, list(spec.regularizers), list(spec.modules), spec.groups
            )
        except (TypeError, ValueError, KeyError) as error:
            text = error.args[0] if error.args else type(error).__name__
            raise ConfigError(f"{side}.optimizer: {text}") from error
        optimizers.append(optimizer)
    for side, optimizer in zip(("client", "server"), optimizers, strict=True):
        for key, schedule in optimizer._scheduled:
            if "reduce-on-plateau" in (schedule.name, getattr(getattr(schedule, "then", None), "name", "")):
                raise ConfigError(
                    f"Expected a schedule of steps or rounds for {side}.optimizer.{key}, got "
                    "'reduce-on-plateau': nothing measures a metric for it in a run. Take 'cosine' or "
                    "'exponential', or end the run early with server.stop.metric."
                )
    client, server = optimizers
    halves = [("client", "server", m) for m in client.modules if m.aux_name and m.aux_var is None]
    halves += [("server", "client", m) for m in server.modules if m.aux_var is not None]
    for here, there, module in halves:
        raise ConfigError(
            f"Expected {module.name!r} in {there}.optimizer.modules, got it in {here}.optimizer.modules: it "
            f"is the {there}'s half of a method. Move it."
        )
    try:
        aggregator = chosen_aggregator(config.server)
        if aggregator.weight == "steps" and config.client.effort.seconds is not None:
            raise ValueError(
                'Expected weights that are known before a round, got weighting = "steps" with '
                'client.effort.seconds. Weigh by "uniform" or "samples".'
            )
        server.verify_clients(client, aggregator)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"server: {error}") from error


def chosen_aggregator(server: Server) -> Aggregator:
    """The aggregator of a configuration; `weighting` is its ``weight`` where its own parameters say none.

    Raises:
        ValueError: If there is none of that name, or a parameter is wrong.
        TypeError: If a parameter is unknown or has the wrong type.
    """
    from ..aggregators import make_aggregator

    spec = server.aggregator
    own = not isinstance(spec, str) and "weight" in spec[1]
    return make_aggregator(spec, None if own and server.weighting == "uniform" else server.weighting)


# --- layers -----------------------------------------------------------------------------------------------


class _Layers:
    """Tables laid over each other, and where each key was last set, so that an error can say it."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = msgspec.to_builtins(Config())
        self.set_at: dict[tuple[str, ...], str] = {}

    def add(self, layer: dict[str, Any], where: str) -> None:
        """Lay a layer on top; tables are merged key by key, lists replaced whole."""
        self._merge(Config, self.tree, layer, (), where)

    def decode(self) -> Config:
        """The typed configuration of all layers."""
        data = self.tree["data"]
        if isinstance(data.get("clients"), list | tuple) and ("data", "name") not in self.set_at:
            data["name"] = "own"
        try:
            return msgspec.convert(self.tree, Config)
        except msgspec.ValidationError as error:
            raise self._explained(str(error)) from None

    def _merge(
        self, table: Any, below: dict[str, Any], layer: dict[str, Any], path: tuple[str, ...], where: str
    ) -> None:
        fields = _fields(table)
        for key, value in layer.items():
            here = (*path, key)
            if key not in fields:
                raise _unknown_key(here, list(fields), where)
            if _is_table(fields[key]) and isinstance(value, dict):
                if not isinstance(below[key], dict):  # a lower layer put something else here
                    below[key] = msgspec.to_builtins(fields[key]())
                self._merge(fields[key], below[key], value, here, where)
                continue
            free_form = typing.get_origin(fields[key]) is dict and isinstance(value, dict)
            below[key] = {**below[key], **value} if free_form and isinstance(below[key], dict) else value
            self.set_at[here] = where
            ways = _EITHER_OR.get(path, ())
            for other in ways if key in ways else ():
                if other not in layer:
                    below[other] = None

    def _explained(self, text: str) -> ConfigError:
        """The decoder's one-line message, with the key's full name, the value, and where it was set."""
        match = re.search(r" - at `\$\.(.*)`$", text)
        parts = [part for part in re.split(r"\.|\[.*?\]", match.group(1)) if part] if match else []
        kind: Any = Config
        value: Any = self.tree
        path: tuple[str, ...] = ()
        for part in parts:
            if not _is_table(kind) or part not in value:
                break
            kind, value, path = _fields(kind)[part], value[part], (*path, part)
        where = self.set_at.get(path, "")
        remedy = _EXAMPLES.get(path, "`privopt init` writes an example.")
        return ConfigError(
            f"Expected {_expectation(kind, text)} for {'.'.join(path)}, got {value!r}"
            f"{' ' + where if where else ''}. {remedy}"
        )


def _fields(table: Any) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(table)}


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _all_keys(table: Any = Config, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, kind in _fields(table).items():
        yield ".".join((*path, name))
        if _is_table(kind):
            yield from _all_keys(kind, (*path, name))


# --- errors -----------------------------------------------------------------------------------------------


def _unknown_key(path: tuple[str, ...], siblings: Sequence[str], where: str) -> ConfigError:
    key, last = ".".join(path), path[-1]
    everywhere = list(_all_keys())
    near = [name for name in everywhere if name.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(key, everywhere, n=2, cutoff=0.7)
    if not near:
        ends = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in everywhere}, n=1)
        near = [name for name in everywhere if name.rpartition(".")[2] in ends]
    hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
    table = f"[{'.'.join(path[:-1])}]" if path[:-1] else "the top level"
    return ConfigError(
        f"Expected a known key, got {key!r} {where}.{hint} Keys of {table}: {', '.join(siblings)}."
    )


def _expectation(kind: Any, text: str) -> str:
    if typing.get_origin(kind) is tuple and "[" in text.partition(" - at")[2]:
        return "a list of " + _expectation(typing.get_args(kind)[0], text.replace("[", ""))
    choices = list(_choices(kind))
    if choices:
        plain = ["a number"] if float in typing.get_args(kind) else []
        return " or ".join([*plain, *choices])
    match = re.match(r"Expected `(.+?)`", text)
    if not match:
        return f"another value ({text.partition(' - at')[0]})"
    return " or ".join(_NAMES.get(part.strip(), part.strip()) for part in match.group(1).split("|"))


def _choices(kind: Any) -> Iterator[str]:
    if typing.get_origin(kind) is Literal:
        yield from (f'"{choice}"' for choice in typing.get_args(kind))
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        for part in typing.get_args(kind):
            yield from _choices(part)


# --- the file that `privopt init` writes ------------------------------------------------------------------


def template() -> str:
    """The commented configuration that loads to exactly the defaults."""
    return _TEMPLATE


_TEMPLATE = """\
# A federation that trains with local differential privacy under masks.
#
#   privopt train THIS.toml                        run it
#   privopt train THIS.toml rounds=5 dp.epsilon=4  any key, overridden
#   privopt explain THIS.toml                      what the server would learn
#
# Every value here is the default; delete what you do not change.

seed = 0                 # starts weights and partitions; noise and keys come from the operating system
rounds = 20
out = "runs"             # each run makes a folder of its own in it
twin = true              # also train without privacy, to compare; built-in public data only
dropout = 0.0            # share of the clients that vanish in each round at some stage: a trial of real life

[data]
name = "digits"          # "digits", "breast_cancer", or "mnist" with path = "folder of the four idx files"
clients = 8              # a number, or your own data, a file per client: ["north.csv", "south.csv"]
alpha = 1.0              # how evenly labels are dealt to clients: 0.1 very skewed, 100 even
min_rows = 10            # fewest rows that a client is dealt
# For your own data (.csv, or .npz with arrays x and y):
# target = "outcome"     # the column of labels
# classes = ["no", "yes"]              # every label, in order; public, required under DP
# bounds = {age = [0, 110], "*" = [0, 1]}   # public ranges that features are scaled by; required under DP
# test = "public.csv"    # public rows to measure accuracy on

[model]
name = "linear"          # "linear", "mlp", "cnn", or a factory of your own: "mypackage.models:make"
hidden = [64]            # mlp: widths of its layers
channels = [16, 32]      # cnn: channels of its convolutions

[client]
# home = "homes/{id}"    # kept between runs: keys, ledger. Without it each run makes fresh ones
# `privopt modules` lists what can be plugged in, as "name" or ["name", {parameter = value}]. lrate takes a
# number or a schedule: ["cosine", {base = 2.0, duration = 100}]. Layers may differ:
# groups = [{match = ".*bias", w_decay = 0.0}, {match = "embed", frozen = true}]
optimizer = {lrate = 2.0, w_decay = 0.0, modules = ["scaffold-client"], regularizers = [], groups = []}
effort = {steps = 5}     # local steps a round, or {epochs = 1.0}; without dp also {seconds = 10.0}

[server]
# home = "homes/server"
optimizer = {lrate = 1.0, w_decay = 0.0, modules = ["scaffold-server"], regularizers = [], groups = []}
aggregator = "mean"      # or "sum", "masked-mean", "fednova", or ["fednova", {momentum = 0.9}]
weighting = "uniform"    # what an update counts: "uniform", "samples" (then rows are public), "steps"
selection = {how = "all"}              # or {how = "uniform", clients = 5}, "weighted", "round-robin"
stop = {patience = 5, min_change = 0.0}   # with metric = "accuracy": end when it stops improving

[dp]
enabled = true
unit = "sample"          # what is protected: one row
epsilon = 8.0            # most that any client spends over the run
delta = 1e-4             # must lie below one over each client's own rows
clip_norm = 0.5          # L2 bound on one sample's gradient
sampler = {name = "poisson", rate = 0.2}   # each row joins a batch with this probability
disclose = []            # what may leave without a price: "loss" (of training); the audit lists it

[masks]
enabled = true
bits = 16                # a value is rounded to 2^bits - 1 levels
bound = "adaptive"       # largest absolute value of an update's entry, or a number
min_clients = 5          # a client takes part only with at least so many, and a sum is over no fewer
allow_three = false      # consent to 3 clients, where two that collude see the third
# threshold = 0.75       # share of a round's clients that must stay to its end; two thirds without it
colluders = 0.2          # may collude with the server and see nobody's value: a share, or a number
hybrid = false           # keys by X25519 and ML-KEM-768 together, against quantum computers to come
"""
