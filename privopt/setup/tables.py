"""What a configuration may say: floor 7, the tables of a run and the rules that their values obey.

`privopt.setup.config` reads and writes them. Randomness that privacy rests on is never configured:
`seed` starts weights, partitions and the like, never noise, batches or keys.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    import secagg

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
    "Selection",
    "Server",
    "Stop",
    "check",
    "mask_policy",
]

MOST_STEPS = 1 << 20
"""Most steps of a round whose steps are not known before it: where time is what ends it."""

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
    """An optimizer as data: learning rate and decay (numbers or schedules), plug-ins in order, groups."""

    lrate: float | PlugIn = 1.0
    w_decay: float | PlugIn = 0.0
    modules: tuple[PlugIn, ...] = ()
    regularizers: tuple[PlugIn, ...] = ()
    groups: tuple[dict[str, Any], ...] = ()


class Effort(_Table, frozen=True):
    """Local work a round.

    Attributes:
        steps: Gradient steps.
        epochs: Expected passes over the rows, so ``epochs / sampler.rate`` steps.
        seconds: Time after which no further step is taken; at least one is. Not under DP, which must know the
            steps before a round, and not to be repeated bit for bit.
    """

    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None


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


class Selection(_Table, frozen=True):
    """Which clients are asked in a round; no privacy is claimed from it.

    Attributes:
        how: All, each as likely, by their rows (declared public), or in turn.
        clients: How many, but for ``all``.
    """

    how: Literal["all", "uniform", "weighted", "round-robin"] = "all"
    clients: int | None = None


class Stop(_Table, frozen=True):
    """When a run ends before its last round: a public metric has not improved for some rounds.

    Attributes:
        metric: Accuracy or loss on the public test rows, or the mean training loss where it may leave the
            clients; None never ends a run early.
        patience: Rounds without improvement.
        min_change: What an improvement must exceed.
    """

    metric: Literal["accuracy", "loss", "training_loss"] | None = None
    patience: int = 5
    min_change: float = 0.0


class Server(_Table, frozen=True):
    """What the server does with the clients' updates.

    Attributes:
        home: Folder of the server's identity; None makes a fresh one for each run.
        optimizer: Applied to the aggregated update.
        aggregator: How the clients' updates become one: ``mean``, ``sum``, ``masked-mean``, ``fednova``, ...
        weighting: What a client's update counts as: the same, its rows, or its steps.
        selection: Which clients are asked in a round.
        stop: When a run ends early.
    """

    home: str | None = None
    optimizer: OptimizerSpec = OptimizerSpec(lrate=1.0, modules=("scaffold-server",))
    aggregator: PlugIn = "mean"
    weighting: Literal["uniform", "samples", "steps"] = "uniform"
    selection: Selection = Selection()
    stop: Stop = Stop()


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
        disclose: What may leave without a price, which the audit lists: ``loss``, the mean training loss.
    """

    enabled: bool = True
    unit: Literal["sample"] = "sample"
    epsilon: float = 8.0
    delta: float = 1e-4
    clip_norm: float = 0.5
    sampler: Sampler = Sampler()
    disclose: tuple[Literal["loss"], ...] = ()


class Masks(_Table, frozen=True):
    """Secure aggregation of what the clients send.

    Attributes:
        enabled: False sends in clear and says so.
        bits: Levels a value is rounded to: ``2**bits - 1``.
        bound: Largest absolute value of an update's entry, or ``adaptive``.
        min_clients: Fewest clients that a client takes part with, and fewest in a sum.
        allow_three: Consent to 3 clients, where two that collude see the third.
        threshold: Share of a round's clients that must stay to its end; more than half. None is two thirds.
        colluders: Clients that may collude with the server and still see nobody's value: a share below 1 of
            the round's clients, rounded down, or a number.
        hybrid: Agree on keys by X25519 and ML-KEM-768 together, against quantum computers to come.
    """

    enabled: bool = True
    bits: int = 16
    bound: float | Literal["adaptive"] = "adaptive"
    min_clients: int = 5
    allow_three: bool = False
    threshold: float | None = None
    colluders: float = 0.2
    hybrid: bool = False


class Config(_Table, frozen=True):
    """A whole run.

    Attributes:
        seed: Starts weights, partitions and rounding; never noise, batches or keys.
        rounds: Rounds of aggregation.
        out: Folder in which the run makes its own.
        twin: Also train without privacy for comparison; only ever on built-in public data.
        dropout: Share of the clients, rounded down, that vanish in each round at a stage drawn from `seed`: a
            trial of what a deployment meets.
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
    dropout: float = 0.0
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
        """Local steps a round, the most where time ends it; epochs are rounded to at least one step."""
        effort = self.client.effort
        if effort.seconds is not None:
            return MOST_STEPS
        if effort.steps is not None:
            return effort.steps
        return max(1, round((effort.epochs or 0.0) / self.dp.sampler.rate))


def check(config: Config) -> None:
    """Refuse values that cannot be run, or under which privacy or masks would mean nothing.

    Args:
        config: A configuration of the right types, from a file or made in Python.

    Raises:
        ConfigError: For a value out of range, or keys that do not go together.
        PrivacyConfigError: For one under ``[dp]``.
        MasksConfigError: For one under ``[masks]``, or too few clients for masks.

    Example:
        >>> check(Config(rounds=0))
        Traceback (most recent call last):
        privopt.setup.tables.ConfigError: Expected at least one round, got rounds = 0. The default is 20.
    """
    _check_run(config)
    _check_optimizers(config)
    _check_data(config.data)
    _check_dp(config.dp)
    seconds = config.client.effort.seconds
    remedy = "What a round may release is reserved before it starts. Give steps or epochs."
    expected = "steps that are known before a round with dp on"
    private = config.dp.enabled and seconds is not None
    _Rules(PrivacyConfigError)(not private, expected, "client.effort.seconds", seconds, remedy)
    if config.masks.enabled:
        _check_masks(config)
    if config.dropout:
        from .survival import check_dropout

        check_dropout(config)


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else repr(list(value)) if isinstance(value, tuple) else repr(value)


class _Rules:
    """Raises `error` with one sentence of one shape for the first rule that does not hold."""

    def __init__(self, error: type[ConfigError] = ConfigError) -> None:
        self.error = error

    def __call__(self, holds: bool, expected: str, key: str, value: Any, remedy: str) -> None:
        if not holds:
            raise self.error(f"Expected {expected}, got {key} = {_show(value)}. {remedy}")


def _check_run(config: Config) -> None:
    rule = _Rules()
    rule(config.seed >= 0, "a seed of at least 0", "seed", config.seed, "It starts weights and partitions.")
    rule(config.rounds >= 1, "at least one round", "rounds", config.rounds, "The default is 20.")
    rule(bool(config.out), "the name of a folder", "out", config.out, 'The default is "runs".')
    share = "It is the share of the clients that vanish in each round; 0 is none, 0.3 of 8 are 2."
    rule(0 <= config.dropout < 1, "a dropout in [0, 1)", "dropout", config.dropout, share)
    for name in ("hidden", "channels"):
        widths = getattr(config.model, name)
        rule(all(w >= 1 for w in widths), "widths of at least 1", f"model.{name}", widths, "Try [64].")
    home = config.client.home
    shared = home is not None and config.num_clients > 1 and "{id}" not in home
    rule(not shared, "{id} in a home of several clients", "client.home", home, 'Try "homes/{id}".')
    effort = config.client.effort
    given = tuple(name for name in ("steps", "epochs", "seconds") if getattr(effort, name) is not None)
    remedy = "Write {steps = 5}, {epochs = 1} or {seconds = 10}."
    rule(len(given) == 1, "one of steps, epochs and seconds", "client.effort", given, remedy)
    amount = getattr(effort, given[0])
    rule(_positive(amount), "some work a round", "client.effort", amount, remedy)
    _check_selection(config)
    _check_stop(config)


def _check_selection(config: Config) -> None:
    rule, chosen, number = _Rules(), config.server.selection, config.num_clients
    key, fewest = "server.selection.clients", config.masks.min_clients if config.masks.enabled else 1
    remedy = 'Write {how = "uniform", clients = 5}, or {how = "all"}.'
    if chosen.how == "all":
        rule(chosen.clients is None, 'no number of clients where how = "all"', key, chosen.clients, remedy)
        return
    given = chosen.clients is not None and 1 <= chosen.clients <= number
    rule(given, f"a number of clients of at most {number}", key, chosen.clients, remedy)
    few = "Masks need as many in a round. Ask more, or accept fewer with masks.min_clients."
    rule((chosen.clients or 0) >= fewest, f"at least {fewest} clients a round", key, chosen.clients, few)


def _check_stop(config: Config) -> None:
    rule, stop = _Rules(), config.server.stop
    rule(stop.patience >= 1, "a patience of at least 1", "server.stop.patience", stop.patience, "Try 5.")
    holds = math.isfinite(stop.min_change) and stop.min_change >= 0
    rule(holds, "a finite change >= 0", "server.stop.min_change", stop.min_change, "0 is any improvement.")
    key, metric = "server.stop.metric", stop.metric
    if metric == "training_loss":
        public = not config.dp.enabled or "loss" in config.dp.disclose
        remedy = 'dp.disclose=["loss"] lets it leave, and the audit lists it; or take "accuracy".'
        rule(public, "a public metric", key, metric, remedy)
    elif metric is not None:
        tested = config.data.name != "own" or config.data.test is not None
        rule(tested, "a metric that can be measured", key, metric, "Give public rows with data.test.")


def _check_optimizers(config: Config) -> None:
    rule = _Rules()
    for side, spec in (("client", config.client.optimizer), ("server", config.server.optimizer)):
        key = f"{side}.optimizer"
        if isinstance(spec.lrate, float):
            rule(_positive(spec.lrate), "a finite learning rate > 0", f"{key}.lrate", spec.lrate, "Try 1.0.")
        if isinstance(spec.w_decay, float):
            decays = math.isfinite(spec.w_decay) and spec.w_decay >= 0
            rule(decays, "a finite weight decay >= 0", f"{key}.w_decay", spec.w_decay, "0 turns it off.")


def _check_data(data: Data) -> None:
    rule = _Rules()
    counted = isinstance(data.clients, int)
    rule(
        counted or data.name == "own",
        "a number of clients for a set that is dealt out",
        "data.clients",
        data.clients,
        f'"{data.name}" has no files of its own; files, one a client, go with data.name = "own".',
    )
    rule(
        not counted or data.name != "own",
        "a file per client for data of one's own",
        "data.clients",
        data.clients,
        'List them: clients = ["north.csv", "south.csv"].',
    )
    number = data.clients if isinstance(data.clients, int) else len(data.clients)
    rule(number >= 1, "at least one client", "data.clients", data.clients, "Give a number, or a file each.")
    rule(_positive(data.alpha), "a finite alpha > 0", "data.alpha", data.alpha, "1 is skewed, 100 is even.")
    rule(data.min_rows >= 1, "at least a row each", "data.min_rows", data.min_rows, "The default is 10.")
    found = data.name != "mnist" or data.path is not None
    rule(found, "the folder of the four idx files", "data.path", data.path, "Nothing is downloaded.")
    labels = data.classes
    distinct = labels is None or len({str(label) for label in labels}) == len(labels) >= 2
    rule(distinct, "two or more distinct labels", "data.classes", labels, "List each label once.")
    for feature, (low, high) in data.bounds.items():
        proper = math.isfinite(low) and math.isfinite(high) and low < high
        remedy = "Take them from public knowledge, never from the data."
        rule(proper, "finite bounds, low first", f"data.bounds.{feature}", (low, high), remedy)


def _check_dp(dp: Dp) -> None:
    rule = _Rules(PrivacyConfigError)
    # The sampler draws the batches of a run without privacy too.
    rate = dp.sampler.rate
    rule(0 < rate <= 1, "a rate in (0, 1]", "dp.sampler.rate", rate, "0.2 takes a fifth of the rows a step.")
    if not dp.enabled:
        return
    off = "dp.enabled=false trains without privacy, and the report says so."
    rule(_positive(dp.epsilon), "a finite epsilon > 0", "dp.epsilon", dp.epsilon, f"1 to 8 is usual; {off}")
    expected = "a delta in (0, 1), below one over each client's rows"
    rule(0 < dp.delta < 1, expected, "dp.delta", dp.delta, "1e-5 suits ten thousand rows.")
    clip = "It bounds the L2 norm of one sample's gradient; 0.1 to 10 is usual."
    rule(_positive(dp.clip_norm), "a finite clip_norm > 0", "dp.clip_norm", dp.clip_norm, clip)


def _check_masks(config: Config) -> None:
    masks, number = config.masks, config.num_clients
    rule = _Rules(MasksConfigError)
    rule(2 <= masks.bits <= 28, "2 to 28 bits a value", "masks.bits", masks.bits, "The default is 16.")
    if masks.bound != "adaptive":
        remedy = "It is the largest absolute value of an update's entry."
        rule(_positive(masks.bound), 'a finite bound > 0, or "adaptive"', "masks.bound", masks.bound, remedy)
    off = "masks.enabled=false sends in clear, and the report says so."
    pair = f"Of two, each learns the other's vector from the sum. Add clients; or {off}"
    rule(number >= 3, "at least 3 clients with masks on", "data.clients", number, pair)
    rule(masks.min_clients >= 3, "min_clients of at least 3", "masks.min_clients", masks.min_clients, pair)
    remedy = (
        "Two of three that collude see the third. Add clients; or consent with masks.min_clients=3 and "
        f"masks.allow_three=true; or {off}"
    )
    fewest = min(number, masks.min_clients)
    key = "masks.min_clients" if masks.min_clients < 4 else "data.clients"
    rule(fewest >= 4 or masks.allow_three, "at least 4 clients, or consent to 3", key, fewest, remedy)
    enough = number >= masks.min_clients
    fewer = f"Add some, or accept fewer with masks.min_clients={number}."
    rule(enough, f"masks.min_clients = {masks.min_clients} clients", "data.clients", number, fewer)
    _check_survival(masks, config.server.selection.clients or number)


def _check_survival(masks: Masks, number: int) -> None:
    """Dropouts: how many must stay, and how many may collude, when all of a round's clients are there."""
    from secagg.graph import threshold as fewest_left

    rule, threshold = _Rules(MasksConfigError), masks.threshold
    key, remedy = "masks.threshold", "More must stay than can be told apart; two thirds is usual."
    rule(threshold is None or 0.5 < threshold <= 1, "a share in (0.5, 1]", key, threshold, remedy)
    given, key = masks.colluders, "masks.colluders"
    fits = math.isfinite(given) and given >= 0 and (given < 1 or given == int(given))
    rule(fits, "a share below 1, or a number of clients", key, given, "The default is 0.2, a fifth.")
    policy = mask_policy(masks)
    among, needed = policy.colluding(number), fewest_left(policy.threshold_fraction, number)
    expected = f"colluders that {needed} of {number} clients can do without"
    remedy = "Name fewer, or raise masks.threshold: twice those who stay must be more than all and colluders."
    rule(2 * needed > number + among and among + 2 <= number, expected, key, given, remedy)


def mask_policy(masks: Masks) -> secagg.Policy:
    """What clients and server insist on in a masked round."""
    import secagg

    policy = secagg.Policy(
        min_clients=masks.min_clients,
        allow_three=masks.allow_three,
        colluders=masks.colluders,
        hybrid=masks.hybrid,
    )
    if masks.threshold is None:
        return policy
    return dataclasses.replace(policy, threshold_fraction=masks.threshold)
