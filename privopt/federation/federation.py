"""A federation in one process: clients and a server that exchange bytes alone: floor 6.

It protects nobody from the process that it runs in; it computes what a deployment computes.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import dp
import secagg

from ..aggregators import Aggregator, make_aggregator
from ..optimizer import Optimizer
from ..setup.tables import MOST_STEPS
from ..vector import Vector
from .client import Client
from .home import Home
from .privacy import Policy, Privacy, PrivacyPlan
from .problem import Problem
from .reports import RoundReport
from .server import Server
from .settings import Dropout, Dropouts, Selection

__all__ = ["Federation", "build_federation"]

Transport = Callable[[Client, bytes], bytes | None]

# What a client may fail by without stopping the others. Anything else is a fault of the program or
# of the machine and stops the run, which can be resumed.
CLIENT_FAILURES = (ConnectionError, secagg.SecAggError, dp.DPError)


class Federation:
    """Runs rounds between clients and a server.

    Args:
        clients: The clients.
        server: The server.
        transport: Delivers a message to a client and returns its answer; a lost one raises
            ConnectionError. A plain call by default.
        need: Fewest clients without which no round can open.
        selection: Which clients are asked in a round; all by default.
        dropouts: Which of them vanish, for trial; none by default.

    Raises:
        ValueError: If fewer are to be asked than a round needs.

    Attributes:
        out: Clients that said that their budget is spent: a selection passes them over.
        errors: Why clients failed in, or refused, the last round, in one line each, by id. They are known in
            this process alone; what a client sends the server says that it failed, and no more.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        server: Server,
        *,
        transport: Transport | None = None,
        need: int = 1,
        selection: Selection | None = None,
        dropouts: Dropouts | None = None,
    ) -> None:
        self.selection = selection or Selection()
        if self.selection.clients is not None and self.selection.clients < need:
            raise ValueError(
                f"Expected a selection of at least {need} clients, got {self.selection.clients}: a round "
                "needs as many. Ask more, or lower min_clients."
            )
        self.dropouts = dropouts or Dropouts()
        self.out: set[str] = set()
        self.errors: dict[str, str] = {}
        self.clients = {client.id: client for client in clients}
        self.server = server
        self.need = need
        self.seconds = 0.0
        self._transport: Transport = transport or Client.handle

    def close(self) -> None:
        """Close the clients' ledgers; they stay on disk, and so does everything else."""
        for client in self.clients.values():
            if client.privacy is not None:
                client.privacy.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, rounds: int) -> Iterator[RoundReport]:
        """Run until the server has closed round number `rounds`, yielding each round's report.

        Stops early when too few clients have any privacy budget left.
        """
        while self.server.round < rounds:
            report = self.run_round()
            yield report
            able = [c for c in report.clients.values() if c.status not in ("stopped", "refused")]
            if len(able) < self.need:
                return

    def run_round(self) -> RoundReport:
        """One round, from the offer to the step; a round that fails is reported as aborted."""
        started = time.perf_counter()
        server = self.server
        asked = self._select()
        gone = self.dropouts.draw(server.round + 1, asked)
        late: dict[str, bytes] = {}
        self.errors = {}
        server.begin(asked)
        try:
            late = self._ask(asked, server.opening, gone)
            while messages := server.advance():
                self._deliver_late(late)
                late = self._ask({name: self.clients[name] for name in messages}, messages.__getitem__, gone)
            report = server.finish()
        except secagg.RoundAborted as error:
            report = server.abort(f"{error}{self._cause()}")
        except BaseException:
            # An interrupt, or a fault: whoever catches it may go on with the next round.
            server.abort("stopped")
            raise
        self._deliver_late(late)
        self.seconds = time.perf_counter() - started
        for name, client in report.clients.items():
            if client.status == "stopped":
                self.out.add(name)
            elif client.status != "idle":
                self.out.discard(name)  # its budget was raised
            elif name in self.out:
                client.status = "stopped"
        return report

    def _cause(self) -> str:
        """What an aborted round's reason adds about clients that failed."""
        if not self.errors:
            return ""
        first = min(self.errors)
        others = f" ({len(self.errors) - 1} more in Federation.errors.)" if len(self.errors) > 1 else ""
        return f" At client {first!r}: {self.errors[first]}{others}"

    def _select(self) -> Mapping[str, Client]:
        """The clients of the next round. Where all are asked, so are those that stopped."""
        if self.selection.how == "all":
            return self.clients
        able = {name: c.problem.num_samples for name, c in self.clients.items() if name not in self.out}
        chosen = self.selection.choose(self.server.round + 1, able)
        return {name: self.clients[name] for name in chosen} or self.clients

    def _ask(
        self, clients: Mapping[str, Client], message: Callable[[str], bytes], gone: Mapping[str, Dropout]
    ) -> dict[str, bytes]:
        """Deliver to each its message, and take their answers; returns those that come after the stage."""
        late, stage = {}, self.server.stage
        for name, client in clients.items():
            misses = name in gone and gone[name].misses(stage)
            if misses and not gone[name].late:
                continue
            try:
                answer = self._transport(client, message(name))
            except CLIENT_FAILURES as error:
                # The server learns only that no answer came; the report says at which stage.
                self._note(name, error)
                continue
            if client.error is not None:
                self.errors[name] = client.error
            if answer is None:
                continue
            if misses:
                late[name] = answer
                continue
            try:
                self.server.receive(answer)
            except (ValueError, secagg.SecAggError) as error:
                # Damaged or forged on its way, or not what the round expects: no answer came. (A fault of
                # the client's own program is another matter, and is raised above.)
                self._note(name, error)
                continue
        return late

    def _note(self, name: str, error: Exception) -> None:
        # Its text alone: an exception would keep alive what its frames hold.
        self.errors[name] = str(error).partition("\n")[0] or type(error).__name__

    def _deliver_late(self, answers: Mapping[str, bytes]) -> None:
        """Answers to a stage that has ended: the server refuses them, and nothing changes."""
        for name, answer in answers.items():
            try:
                self.server.receive(answer)
            except (ValueError, secagg.SecAggError):
                self.server.report.clients[name].late = True


def verify_delta(client: str, delta: float, num_samples: int) -> None:
    """Raise PrivacyParameterError, naming the client, if delta promises its samples nothing."""
    try:
        dp.check_delta(delta, num_samples)
    except dp.PrivacyParameterError as error:
        raise dp.PrivacyParameterError(f"Client {client!r}: {error}") from error


def build_federation(
    problems: Mapping[str, Problem],
    *,
    client_optimizer: Callable[[], Optimizer],
    server_optimizer: Optimizer,
    steps: int | Mapping[str, int] | None = None,
    seconds: float | None = None,
    weights: Vector | None = None,
    homes: Path | str | Callable[[str], Path] | None = None,
    server_home: Path | None = None,
    run: str | None = None,
    seed: int = 0,
    sample_rate: float = 1.0,
    plan: PrivacyPlan | None = None,
    policies: Mapping[str, Policy] | None = None,
    source: dp.random.Source | None = None,
    masks: secagg.Policy | None = None,
    disclose: tuple[str, ...] = (),
    aggregator: Aggregator | str | Sequence[Any] = "mean",
    weighting: str | None = None,
    most_weight: int | None = None,
    bits: int = 16,
    bound: float | str = "adaptive",
    dataset: Callable[[str], str] = str,
    transport: Transport | None = None,
    selection: Selection | None = None,
    dropouts: Dropouts | None = None,
) -> Federation:
    """Put clients and a server together: homes, keys, pinned roster, ledgers and budgets.

    Args:
        problems: What each client trains, by client id.
        client_optimizer: Makes one client's optimizer.
        server_optimizer: The server's optimizer.
        steps: Gradient steps of a client in a round, or those of each by id.
        seconds: Time after which a client takes no further step of a round; it takes at least one, and at
            most `steps` where both are given. Without privacy only, and not to be repeated bit for bit.
        weights: The server's model, stepped in place; by default a copy of the first client's.
        homes: Folder of the clients' homes, or the folder of each by id; a temporary one, which goes with
            the federation, by default.
        server_home: Folder of the server's identity; ``server`` beside the clients' by default.
        run: Id of the run; a random one by default.
        seed: Public seed of batches (without DP) and rounding.
        sample_rate: Share of the samples in an expected batch.
        plan: Local DP of every client; None trains without.
        policies: What each data holder allows; ``policy.json`` in its home where it has none here, and
            anything where it has none at all.
        source: Randomness of noise and batches under DP; the operating system's unless a test says so.
        masks: Policy of the masked rounds; None sends values in clear.
        disclose: Un-noised metrics that may leave.
        aggregator: How updates become one: an `Aggregator`, a name, or ``(name, config)``.
        weighting: What the mean update is weighed by, where the aggregator does not say it: ``"uniform"``,
            ``"samples"`` or ``"steps"``.
        most_weight: Largest number of samples of any client, public, where they weigh: the wider, the more
            bytes under masks. By default the next power of two.
        bits: Precision of one entry of the update under masks.
        bound: Bound on an entry of the update, or ``"adaptive"``.
        dataset: Name of a client's dataset in its ledger.
        transport: See `Federation`.
        selection: See `Federation`; the privacy plan is not made smaller by it.
        dropouts: See `Federation`; nor by them.

    Raises:
        TypeError: If `client_optimizer` makes no optimizer, or `server_optimizer` is none.
        ValueError: If there is no client, or optimizers or settings do not fit together.
        dp.PrivacyParameterError: If seconds end a private round, a plan is weaker than a client's policy, or
            delta too large for it.
    """
    if not problems:
        raise ValueError("Expected at least one client, got none.")
    if not callable(client_optimizer):
        raise TypeError(
            "Expected client_optimizer as a function that makes one, since each client has its own, got "
            f"{type(client_optimizer).__name__}. Write client_optimizer=lambda: Optimizer(...)."
        )
    if not isinstance(server_optimizer, Optimizer):
        raise TypeError(
            f"Expected server_optimizer as an Optimizer, got {type(server_optimizer).__name__}. There is "
            "one server, so it needs no function that makes it."
        )
    for name in problems:
        if name != Path(name).name or name in (".", "..", "server"):
            raise ValueError(f"Expected client ids that can name a folder, and not 'server', got {name!r}.")
    aggregator = make_aggregator(aggregator, weighting)
    each = _steps(problems, steps, seconds)
    if seconds is not None and aggregator.weight == "steps":
        raise ValueError(
            'Expected weights that are known before a round, got "steps" with seconds: weigh by "uniform" or '
            '"samples", or give a number of steps.'
        )
    if plan is not None and seconds is not None:
        raise dp.PrivacyParameterError(
            f"Expected a number of steps known before the round, got seconds={seconds}: what a round may "
            "release is reserved before it starts. Give steps, or train without privacy."
        )
    if most_weight is None:
        most = max(problem.num_samples for problem in problems.values())
        most_weight = int(1 << max(0, most - 1).bit_length())
    total_weight = sum(aggregator.count(p.num_samples, each[name]) for name, p in problems.items())
    temporary = Path(tempfile.mkdtemp(prefix="privopt-")) if homes is None else None
    folder = _folders(temporary or homes)
    run = run or f"run-{secrets.token_hex(4)}"
    opened = {name: Home(folder(name), name) for name in problems}
    server_identity = Home(server_home or folder("server"), "server").identity()
    roster = secagg.Roster(
        server=server_identity.public_key,
        clients={name: home.identity().public_key for name, home in opened.items()},
    )
    source = source or dp.random.secure_source()
    clients = []
    for name, problem in problems.items():
        privacy = None
        if plan is not None:
            policy = (policies or {}).get(name) or opened[name].policy()
            policy.verify(name, plan)
            verify_delta(name, plan.delta, problem.num_samples)
            gradient = problem.private_gradient(plan)
            ledger = opened[name].ledger()
            ledger.set_run_budget(dataset(name), run=run, epsilon=plan.epsilon, delta=plan.delta)
            privacy = Privacy(name, run, plan, ledger, gradient, source, dataset(name))
        clients.append(
            Client(
                name,
                home=opened[name],
                problem=problem,
                optimizer=client_optimizer(),
                run=run,
                steps=each[name],
                seconds=seconds,
                seed=seed,
                sample_rate=sample_rate,
                privacy=privacy,
                masks=masks,
                roster=roster,
                disclose=disclose,
                aggregator=aggregator,
                most_weight=most_weight,
                most_steps=max(each.values()),
                bits=bits,
                bound=bound,
            )
        )
    server = Server(
        server_identity,
        roster,
        next(iter(problems.values())).weights.copy() if weights is None else weights,
        server_optimizer,
        client_optimizer(),
        run=run,
        steps=each if isinstance(steps, Mapping) else max(each.values()),
        seconds=seconds,
        masks=masks,
        aggregator=aggregator,
        most_weight=most_weight,
        total_weight=total_weight,
        bits=bits,
        bound=bound,
        loss=plan is None or "loss" in disclose,
    )
    need = masks.min_clients if masks is not None else 1
    federation = Federation(
        clients, server, transport=transport, need=need, selection=selection, dropouts=dropouts
    )
    if temporary is not None:
        weakref.finalize(federation, shutil.rmtree, temporary, ignore_errors=True)
    return federation


def _steps(
    problems: Mapping[str, Problem], steps: int | Mapping[str, int] | None, seconds: float | None
) -> dict[str, int]:
    """Steps of each client; the most, where time ends a round."""
    if steps is None:
        if seconds is None:
            raise ValueError("Expected steps or seconds of a round, got neither. Write steps=5.")
        steps = MOST_STEPS
    if not isinstance(steps, Mapping):
        steps = dict.fromkeys(problems, steps)
    if steps.keys() != problems.keys() or min(steps.values()) < 1:
        raise ValueError(
            f"Expected at least one step for each of the clients {sorted(problems)}, got steps={dict(steps)}."
        )
    return dict(steps)


def _folders(homes: Path | str | Callable[[str], Path] | None) -> Callable[[str], Path]:
    if callable(homes):
        return homes
    return lambda name: Path(homes or ".") / name
