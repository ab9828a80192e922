"""The configuration of a run: floor 7, what `privopt init` writes and `privopt train` reads.

Contents: the tables (`Config` and its parts), `load` (defaults ← file ← ``key=value``), `check` (what types
alone cannot say), `template` (the commented file), `to_json`/`from_json` (what a run folder keeps).
Whatever a file leaves out has the default that the template shows. No source of randomness that privacy
rests on is ever configured: `seed` starts weights, partitions and the like, never noise or keys.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = [
    "Client",
    "Config",
    "ConfigError",
    "Data",
    "Dp",
    "Effort",
    "Masks",
    "MasksConfigError",
    "Model",
    "OptimizerSpec",
    "PrivacyConfigError",
    "Sampler",
    "Server",
    "check",
    "from_json",
    "load",
    "template",
    "to_json",
]

PlugIn: TypeAlias = str | tuple[str, dict[str, Any]]
"""A plug-in by name, or ``["name", {parameter = value}]``."""


class ConfigError(ValueError):
    """A configuration that cannot be run: unknown key, wrong type, or values that do not go together."""


class PrivacyConfigError(ConfigError):
    """A value under ``[dp]`` that no privacy guarantee can have."""


class MasksConfigError(ConfigError):
    """A value under ``[masks]``, or a number of clients, under which masks would hide nothing."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every table of the configuration is: frozen, by keyword, and closed to unknown keys."""


class Data(_Table, frozen=True):
    """Where the clients' rows come from.

    Attributes:
        name: A built-in data set, ``mnist`` by `path`, or ``own`` (set by itself when `clients` lists files).
        clients: Number of clients to deal the rows to, or one ``.csv`` or ``.npz`` file per client.
        alpha: Dirichlet concentration of the deal per label: small is skewed, large is even.
        min_rows: Fewest rows that the deal gives a client.
        path: Folder of the four MNIST idx files.
        target: Column that holds the label (CSV).
        classes: All labels that can occur, in order; public. Required for own data under DP.
        bounds: Public ``{feature: (low, high)}`` by which features are scaled to [-1, 1]; ``"*"`` stands for
            every feature that is not named. Required for own data under DP.
        test: A public file of the clients' format, to measure accuracy on.
    """

    name: Literal["digits", "breast_cancer", "mnist", "own"] = "digits"
    clients: int | tuple[str, ...] = 8
    alpha: float = 1.0
    min_rows: int = 10
    path: str | None = None
    target: str | None = None
    classes: tuple[int | str, ...] | None = None
    bounds: dict[str, tuple[float, float]] = {}
    test: str | None = None


class Model(_Table, frozen=True):
    """What is trained: ``linear``, ``mlp``, ``cnn`` or ``package.module:factory``.

    Attributes:
        name: The model.
        hidden: Widths of the layers of ``mlp``.
        channels: Channels of the convolutions of ``cnn``.
        options: Keyword arguments for a factory of one's own.
    """

    name: str = "linear"
    hidden: tuple[int, ...] = (64,)
    channels: tuple[int, ...] = (16, 32)
    options: dict[str, Any] = {}


class OptimizerSpec(_Table, frozen=True):
    """An optimizer as data: learning rate, decoupled weight decay, and plug-ins in order."""

    lrate: float = 1.0
    w_decay: float = 0.0
    modules: tuple[PlugIn, ...] = ()
    regularizers: tuple[PlugIn, ...] = ()


class Effort(_Table, frozen=True):
    """Local work a round: `steps`, or `epochs` (expected passes, so ``epochs / sampler.rate`` steps)."""

    steps: int | None = None
    epochs: float | None = None


class Client(_Table, frozen=True):
    """What each client does, and where it keeps what outlives a run.

    Attributes:
        home: Folder with ``{id}`` in it for keys, ledger and policy; None makes fresh ones for each run.
        optimizer: The client's optimizer.
        effort: Local work a round.
    """

    home: str | None = None
    optimizer: OptimizerSpec = OptimizerSpec(lrate=2.0, modules=("scaffold-client",))
    effort: Effort = Effort(steps=5)


class Server(_Table, frozen=True):
    """What the server does with the clients' updates.

    Attributes:
        home: Folder of the server's identity; None makes a fresh one for each run.
        optimizer: Applied to the averaged update.
        weighting: What a client's update counts as: the same, its rows, or its steps.
    """

    home: str | None = None
    optimizer: OptimizerSpec = OptimizerSpec(lrate=1.0, modules=("scaffold-server",))
    weighting: Literal["uniform", "samples", "steps"] = "uniform"


class Sampler(_Table, frozen=True):
    """How batches are drawn: ``poisson`` takes each row with probability `rate`, with or without DP."""

    name: Literal["poisson"] = "poisson"
    rate: float = 0.2


class Dp(_Table, frozen=True):
    """Local differential privacy of every client.

    Attributes:
        enabled: False trains without noise and says so.
        unit: What is protected: one sample (row).
        epsilon: Most that a client spends over the run, nats.
        delta: Must lie below one over the client's own rows.
        clip_norm: L2 bound on one sample's gradient, gradient units.
        sampler: How batches are drawn.
        disclose: Names of what leaves without a price, which the audit lists.
    """

    enabled: bool = True
    unit: Literal["sample"] = "sample"
    epsilon: float = 8.0
    delta: float = 1e-3
    clip_norm: float = 0.5
    sampler: Sampler = Sampler()
    disclose: tuple[str, ...] = ()


class Masks(_Table, frozen=True):
    """Secure aggregation of what the clients send.

    Attributes:
        enabled: False sends in clear and says so.
        bits: Levels a value is rounded to: ``2**bits - 1``.
        bound: Largest absolute value of an update's entry, or ``adaptive``.
        min_clients: Fewest clients that a client takes part with.
        allow_small: Consent to 3 or 4 clients, where few must collude to see one.
    """

    enabled: bool = True
    bits: int = 16
    bound: float | Literal["adaptive"] = "adaptive"
    min_clients: int = 5
    allow_small: bool = False


class Config(_Table, frozen=True):
    """A whole run.

    Attributes:
        seed: Starts weights, partitions and rounding; never noise, batches or keys.
        rounds: Rounds of aggregation.
        out: Folder in which the run makes its own.
        twin: Also train without privacy for comparison; only ever on built-in public data.
        data: The rows.
        model: The model.
        client: The clients' side.
        server: The server's side.
        dp: Differential privacy.
        masks: Secure aggregation.
    """

    seed: int = 0
    rounds: int = 20
    out: str = "runs"
    twin: bool = True
    data: Data = Data()
    model: Model = Model()
    client: Client = Client()
    server: Server = Server()
    dp: Dp = Dp()
    masks: Masks = Masks()

    @property
    def num_clients(self) -> int:
        """Number of clients that the data is for."""
        return self.data.clients if isinstance(self.data.clients, int) else len(self.data.clients)

    @property
    def steps_per_round(self) -> int:
        """Local steps a round; epochs are expected passes, rounded to at least one step."""
        effort = self.client.effort
        if effort.steps is not None:
            return effort.steps
        return max(1, round((effort.epochs or 0.0) / self.dp.sampler.rate))


# Keys of one table that say the same thing in two ways: setting one drops what a lower layer said by the other.
_EITHER_OR: dict[tuple[str, ...], tuple[str, str]] = {("client", "effort"): ("steps", "epochs")}


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
    tree: dict[str, Any] = msgspec.to_builtins(Config())
    origins: dict[tuple[str, ...], str] = {}
    if path is not None:
        _merge(tree, _read_toml(Path(path)), (), f"in {path}", origins)
    for text in overrides:
        key, value = _parse_override(text)
        layer: Any = value
        for part in reversed(key):
            layer = {part: layer}
        _merge(tree, layer, (), "on the command line", origins)
    if not isinstance(tree["data"].get("clients"), int) and ("data", "name") not in origins:
        tree["data"]["name"] = "own"
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise _explained(error, tree, origins) from None
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


# --- layers -----------------------------------------------------------------------------------------------


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


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(
            f"Expected key=value, got {text!r}. For instance: rounds=20 dp.epsilon=4 data.name=breast_cancer."
        )
    return tuple(name.strip().split(".")), _parse_value(text, value.strip())


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


def _merge(
    tree: dict[str, Any], layer: dict[str, Any], path: tuple[str, ...], where: str, origins: dict[tuple[str, ...], str]
) -> None:
    """Lay `layer` over `tree`, table by table; lists and free-form tables are replaced whole."""
    fields = _fields(_type_at(path))
    for key, value in layer.items():
        here = (*path, key)
        if key not in fields:
            raise _unknown_key(here, fields, where)
        for pair in (_EITHER_OR.get(path, ()),):
            for other in pair:
                if key in pair and other != key and other not in layer:
                    tree[other] = None
        if _is_table(fields[key]) and isinstance(value, dict):
            # A table set to something else by a lower layer is an error of that layer; start it afresh.
            below = tree[key] if isinstance(tree.get(key), dict) else {}
            tree[key] = below
            _merge(below, value, here, where, origins)
        elif fields[key] == dict[str, Any] or typing.get_origin(fields[key]) is dict:
            tree[key] = value if where.startswith("in ") or not isinstance(value, dict) else {**tree[key], **value}
            origins[here] = where
        else:
            tree[key] = value
            origins[here] = where


def _fields(table: Any) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(table)}


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _type_at(path: Sequence[str]) -> Any:
    kind: Any = Config
    for part in path:
        kind = _fields(kind)[part]
    return kind


def _all_keys(table: Any = Config, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, kind in _fields(table).items():
        yield ".".join((*path, name))
        if _is_table(kind):
            yield from _all_keys(kind, (*path, name))


# --- errors -----------------------------------------------------------------------------------------------


def _unknown_key(path: tuple[str, ...], fields: Mapping[str, Any], where: str) -> ConfigError:
    key = ".".join(path)
    everywhere = list(_all_keys())
    near = [name for name in everywhere if name.rpartition(".")[2] == path[-1]]
    near = near or difflib.get_close_matches(key, everywhere, n=2, cutoff=0.75)
    near = near or [
        name
        for last in difflib.get_close_matches(path[-1], [name.rpartition(".")[2] for name in everywhere], n=1)
        for name in everywhere
        if name.rpartition(".")[2] == last
    ]
    hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
    table = f"[{'.'.join(path[:-1])}]" if path[:-1] else "the top level"
    return ConfigError(f"Expected a known key, got {key!r} {where}.{hint} Keys of {table}: {', '.join(fields)}.")


_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "none",
}


def _explained(
    error: msgspec.ValidationError, tree: dict[str, Any], origins: Mapping[tuple[str, ...], str]
) -> ConfigError:
    """msgspec's one-line message, told with the key's full name, the value, and where it was set."""
    text = str(error)
    match = re.search(r" - at `\$?\.?(.*)`$", text)
    shown = match.group(1) if match else ""
    path = tuple(part for part in re.split(r"\.|\[.*?\]\.?", shown) if part)
    value: Any = tree
    known: list[str] = []
    for part in path:
        if not isinstance(value, dict) or part not in value:
            break
        value = value[part]
        known.append(part)
    places = [where for key, where in origins.items() if key[: len(known)] == tuple(known)]
    kind = _type_at(known) if not isinstance(value, dict) or known else Config
    wanted = _expectation(kind, text)
    return ConfigError(
        f"Expected {wanted} for {'.'.join(known) or 'the configuration'}, got {value!r}"
        f"{' ' + places[-1] if places else ''}. {_EXAMPLES.get(tuple(known), 'See `privopt init` for an example.')}"
    )


_LIST_HINT = 'Write a list, such as ["adam"] or [["l2-global-clipping", {max_norm = 1.0}], "adam"].'
_EXAMPLES = {
    (side, "optimizer", plugins): _LIST_HINT for side in ("client", "server") for plugins in ("modules", "regularizers")
} | {
    ("data", "clients"): 'Write a number of clients, or a list of files: ["a.csv", "b.csv"].',
    ("data", "bounds"): "Write {age = [0, 110]}.",
}


def _expectation(kind: Any, text: str) -> str:
    choices = list(_choices(kind))
    if choices and "enum" in text:
        return "one of " + ", ".join(choices)
    match = re.match(r"Expected `(.+?)`", text)
    if not match:
        return "another value (" + text.partition(" - at")[0] + ")"
    return " or ".join(_NAMES.get(part.strip(), part.strip()) for part in match.group(1).split("|"))


def _choices(kind: Any) -> Iterator[str]:
    if typing.get_origin(kind) is Literal:
        yield from (repr(choice) for choice in typing.get_args(kind))
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        for part in typing.get_args(kind):
            yield from _choices(part)


# --- what types alone cannot say --------------------------------------------------------------------------


def check(config: Config) -> None:
    """Refuse values that cannot be run, or under which privacy or masks would mean nothing.

    Raises:
        ConfigError: For a value out of range, or keys that do not go together.
        PrivacyConfigError: For one under ``[dp]``.
        MasksConfigError: For one under ``[masks]``, or too few clients for masks.
    """
    _check_run(config)
    _check_data(config.data)
    if config.dp.enabled:
        _check_dp(config.dp)
    if config.masks.enabled:
        _check_masks(config)


def _require(
    holds: bool, expected: str, key: str, value: Any, remedy: str, error: type[ConfigError] = ConfigError
) -> None:
    if not holds:
        raise error(f"Expected {expected}, got {key} = {_shown(value)}. {remedy}")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _check_run(config: Config) -> None:
    _require(config.seed >= 0, "a seed of at least 0", "seed", config.seed, "It starts weights and partitions.")
    _require(config.rounds >= 1, "at least one round", "rounds", config.rounds, "The default is 20.")
    _require(bool(config.out), "a folder", "out", repr(config.out), 'Runs go below it; the default is "runs".')
    effort = config.client.effort
    given = [name for name in ("steps", "epochs") if getattr(effort, name) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"Expected one of steps and epochs in client.effort, got {' and '.join(given) or 'neither'}. "
            "Write {steps = 5} or {epochs = 1}."
        )
    value = getattr(effort, given[0])
    _require(_positive(value), "effort > 0", f"client.effort.{given[0]}", value, "Write {steps = 5} or {epochs = 1}.")
    for side in ("client", "server"):
        table: Client | Server = getattr(config, side)
        spec = table.optimizer
        _require(
            _positive(spec.lrate), "a finite learning rate > 0", f"{side}.optimizer.lrate", spec.lrate, "Try 1.0."
        )
        _require(
            math.isfinite(spec.w_decay) and spec.w_decay >= 0,
            "a finite weight decay >= 0",
            f"{side}.optimizer.w_decay",
            spec.w_decay,
            "0 turns it off.",
        )
    if config.client.home is not None:
        _require(
            config.num_clients == 1 or "{id}" in config.client.home,
            "{id} in a home that several clients would share",
            "client.home",
            repr(config.client.home),
            'Each client keeps keys and a ledger of its own: "homes/{id}".',
        )
    rate = config.dp.sampler.rate
    _require(0 < rate <= 1, "a sampling rate in (0, 1]", "dp.sampler.rate", rate, "0.2 takes a fifth of the rows a step.",
             PrivacyConfigError)  # fmt: skip
    for name in ("hidden", "channels"):
        widths = getattr(config.model, name)
        _require(all(w >= 1 for w in widths), "widths of at least 1", f"model.{name}", list(widths), "Try [64].")


def _check_data(data: Data) -> None:
    own = data.name == "own"
    if own == isinstance(data.clients, int):
        raise ConfigError(
            f'Expected data.clients to be {"a list of files" if own else "a number of clients"} with data.name = '
            f'"{data.name}", got {data.clients if own else list(data.clients)}. '  # type: ignore[arg-type]  # a list unless own
            'One\'s own data is named "own" and lists a file per client; the built-in sets take a number.'
        )
    number = data.clients if isinstance(data.clients, int) else len(data.clients)
    _require(number >= 1, "at least one client", "data.clients", number, "Name one file per client, or a number.")
    _require(_positive(data.alpha), "a finite concentration > 0", "data.alpha", data.alpha, "1 is skewed, 100 even.")
    _require(data.min_rows >= 1, "at least one row a client", "data.min_rows", data.min_rows, "The default is 10.")
    _require(
        data.name != "mnist" or data.path is not None,
        "the folder of the four MNIST idx files",
        "data.path",
        data.path,
        "Nothing is downloaded: say where they lie, for instance data.path=mnist.",
    )
    if data.classes is not None and len({str(c) for c in data.classes}) < max(2, len(data.classes)):
        raise ConfigError(
            f"Expected two or more distinct labels, got data.classes = {list(data.classes)}. List each label once."
        )
    for feature, (low, high) in data.bounds.items():
        _require(
            math.isfinite(low) and math.isfinite(high) and low < high,
            "finite bounds, low below high",
            f"data.bounds.{feature}",
            [low, high],
            "Take them from public knowledge, never from the data.",
        )


def _check_dp(dp: Dp) -> None:
    _require(_positive(dp.epsilon), "a finite epsilon > 0", "dp.epsilon", dp.epsilon,
             "1 to 8 is usual; dp.enabled=false trains without privacy.", PrivacyConfigError)  # fmt: skip
    _require(0 < dp.delta < 1, "a delta in (0, 1), below one over every client's rows", "dp.delta", dp.delta,
             "1e-5 suits ten thousand rows.", PrivacyConfigError)  # fmt: skip
    _require(_positive(dp.clip_norm), "a finite clip_norm > 0", "dp.clip_norm", dp.clip_norm,
             "It bounds the L2 norm of one sample's gradient; 0.1 to 10 is usual.", PrivacyConfigError)  # fmt: skip


def _check_masks(config: Config) -> None:
    masks, number = config.masks, config.num_clients
    _require(2 <= masks.bits <= 32, "2 to 32 bits", "masks.bits", masks.bits, "16 keeps 4 decimals of the bound.",
             MasksConfigError)  # fmt: skip
    if masks.bound != "adaptive":
        _require(_positive(masks.bound), 'a finite bound > 0 or "adaptive"', "masks.bound", masks.bound,
                 "It is the largest absolute value of an update's entry.", MasksConfigError)  # fmt: skip
    _require(masks.min_clients >= 3, "min_clients of at least 3", "masks.min_clients", masks.min_clients,
             "Between two, each learns the other's vector by taking its own from the sum.", MasksConfigError)  # fmt: skip
    off = "masks.enabled=false sends in clear, which is then what the report says"
    _require(number >= 3, "at least 3 clients with masks on", "data.clients", number,
             f"Between two, each learns the other's vector from the sum. Add clients, or {off}.", MasksConfigError)  # fmt: skip
    small = min(number, masks.min_clients)
    _require(small >= 5 or masks.allow_small, "at least 5 clients, or consent to fewer",
             "masks.min_clients" if masks.min_clients < 5 else "data.clients", small,
             f"Two who collude among 3 see the third: masks.allow_small=true accepts that; {off}.", MasksConfigError)  # fmt: skip
    _require(number >= masks.min_clients, f"at least masks.min_clients = {masks.min_clients} clients", "data.clients",
             number, "Add clients, or lower masks.min_clients (3 and 4 need masks.allow_small=true).", MasksConfigError)  # fmt: skip


# --- the file that `privopt init` writes ------------------------------------------------------------------


def template() -> str:
    """The commented configuration that loads to exactly the defaults."""
    return _TEMPLATE


_TEMPLATE = '''\
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
# `privopt modules` lists what can be plugged in, as "name" or ["name", {parameter = value}].
optimizer = {lrate = 2.0, w_decay = 0.0, modules = ["scaffold-client"], regularizers = []}
effort = {steps = 5}     # local steps a round, or {epochs = 1.0}

[server]
# home = "homes/server"
optimizer = {lrate = 1.0, w_decay = 0.0, modules = ["scaffold-server"], regularizers = []}
weighting = "uniform"    # what an update counts: "uniform", "samples" (then rows are public), "steps"

[dp]
enabled = true
unit = "sample"          # what is protected: one row
epsilon = 8.0            # most that any client spends over the run
delta = 1e-3             # must lie below one over each client's own rows
clip_norm = 0.5          # L2 bound on one sample's gradient
sampler = {name = "poisson", rate = 0.2}   # each row joins a batch with this probability
disclose = []            # what may leave without a price; the audit lists it

[masks]
enabled = true
bits = 16                # a value is rounded to 2^bits - 1 levels
bound = "adaptive"       # largest absolute value of an update's entry, or a number
min_clients = 5          # a client takes part only with at least so many
allow_small = false      # consent to 3 or 4 clients, where few must collude to see one
'''
