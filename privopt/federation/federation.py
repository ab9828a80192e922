"""A federation in one process: clients and a server that exchange bytes alone: floor 6.

It protects nobody from the process that it runs in; it computes what a deployment computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import dp
import secagg

from ..optimizer import Optimizer
from .client import Client
from .home import Home
from .privacy import Policy, Privacy, PrivacyPlan
from .problem import Problem
from .server import RoundReport, Server

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
    """

    def __init__(
        self,
        clients: Sequence[Client],
        server: Server,
        *,
        transport: Transport | None = None,
        need: int = 1,
    ) -> None:
        self.clients = {client.id: client for client in clients}
        self.server = server
        self.need = need
        self.seconds = 0.0
        self._transport: Transport = transport or Client.handle

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
        begin = server.begin()
        self._ask(self.clients, begin)
        try:
            roster = server.roster()
            if roster is not None:
                self._ask({name: self.clients[name] for name in sorted(server.ready)}, roster)
            report = server.finish()
        except secagg.RoundAborted as error:
            report = server.abort(str(error))
        self.seconds = time.perf_counter() - started
        return report

    def _ask(self, clients: Mapping[str, Client], message: bytes) -> None:
        for client in clients.values():
            try:
                answer = self._transport(client, message)
                if answer is not None:
                    self.server.receive(answer)
            except CLIENT_FAILURES:
                # The server learns only that no answer came; the report says "failed".
                continue


def build_federation(
    problems: Mapping[str, Problem],
    weights: Problem,
    *,
    homes: Callable[[str], Path],
    server_home: Path,
    run: str,
    client_optimizer: Callable[[], Optimizer],
    server_optimizer: Optimizer,
    steps: int,
    seed: int = 0,
    sample_rate: float = 1.0,
    plan: PrivacyPlan | None = None,
    private_gradient: Callable[[str], dp.PrivateGradient] | None = None,
    policies: Mapping[str, Policy] | None = None,
    source: dp.random.Source | None = None,
    masks: secagg.Policy | None = None,
    disclose: tuple[str, ...] = (),
    weighting: str = "uniform",
    bits: int = 16,
    bound: float | str = "adaptive",
    dataset: Callable[[str], str] = str,
    transport: Transport | None = None,
) -> Federation:
    """Put clients and a server together: homes, keys, pinned roster, ledgers and budgets.

    Args:
        problems: What each client trains, by client id.
        weights: The server's own copy of the model.
        homes: Folder of each client's home.
        server_home: Folder of the server's identity.
        run: Id of the run.
        client_optimizer: Makes one client's optimizer.
        server_optimizer: The server's optimizer.
        steps: Gradient steps of a client in a round.
        seed: Public seed of batches (without DP) and rounding.
        sample_rate: Share of the samples in an expected batch.
        plan: Local DP of every client; None trains without.
        private_gradient: Makes a client's private gradient; needed with a plan.
        policies: What each data holder allows; anything where a client has none.
        source: Randomness of noise and batches under DP; the operating system's unless a test says so.
        masks: Policy of the masked rounds; None sends values in clear.
        disclose: Un-noised metrics that may leave.
        weighting: What the mean update is weighed by.
        bits: Precision of one entry of the update under masks.
        bound: Bound on an entry of the update, or ``"adaptive"``.
        dataset: Name of a client's dataset in its ledger.
        transport: See `Federation`.

    Raises:
        dp.PrivacyParameterError: If the plan is weaker than a client's policy, or delta too large for it.
    """
    opened = {name: Home(homes(name), name) for name in problems}
    server_identity = Home(server_home, "server").identity()
    roster = secagg.Roster(
        server=server_identity.public_key,
        clients={name: home.identity().public_key for name, home in opened.items()},
    )
    source = source or dp.random.secure_source()
    loss = plan is None or "loss" in disclose
    clients = []
    for name, problem in problems.items():
        privacy = None
        if plan is not None:
            if private_gradient is None:
                raise ValueError("Expected private_gradient together with a plan, got none.")
            (policies or {}).get(name, Policy()).verify(name, plan)
            dp.check_delta(plan.delta, problem.num_samples)
            ledger = opened[name].ledger()
            ledger.set_run_budget(dataset(name), run=run, epsilon=plan.epsilon, delta=plan.delta)
            privacy = Privacy(name, run, plan, ledger, private_gradient(name), source, dataset(name))
        clients.append(
            Client(
                name,
                home=opened[name],
                problem=problem,
                optimizer=client_optimizer(),
                run=run,
                seed=seed,
                sample_rate=sample_rate,
                privacy=privacy,
                masks=masks,
                roster=roster,
                disclose=disclose,
                weighting=weighting,
                bits=bits,
                bound=bound,
            )
        )
    server = Server(
        server_identity,
        roster,
        weights.weights,
        server_optimizer,
        client_optimizer(),
        run=run,
        steps=steps,
        masks=masks,
        weighting=weighting,
        bits=bits,
        bound=bound,
        loss=loss,
    )
    need = masks.min_clients if masks is not None else 1
    return Federation(clients, server, transport=transport, need=need)
