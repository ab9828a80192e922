"""What a configuration names, made: data, models, optimizers, the privacy plan, the federation: floor 6."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dp
import secagg

from ..aggregators import Aggregator
from ..layout import Layout
from ..optimizer import Optimizer
from ..setup import data as datasets
from ..setup import models
from ..setup.config import check_plugins, chosen_aggregator
from ..setup.tables import Config, ConfigError, OptimizerSpec, mask_policy
from ..vector import Vector
from .federation import Federation, Transport, build_federation, verify_delta
from .privacy import PrivacyPlan
from .problem import TorchProblem
from .schema import round_schema
from .settings import Dropouts, EarlyStop, Selection

__all__ = ["Parts", "make_optimizer"]


class Parts:
    """Data, models, optimizers and the privacy plan: everything that a user can have got wrong.

    Nothing is written while they are made.

    Args:
        config: A checked configuration.

    Raises:
        ValueError: If data, model, plug-ins or privacy parameters cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data = datasets.load(config.data, config.seed, private=config.dp.enabled)
        self.steps = config.steps_per_round
        if config.dp.enabled:
            self._verify_deltas()
        check_plugins(config)
        self._verify_groups()

    @functools.cached_property
    def plan(self) -> PrivacyPlan | None:
        """The privacy plan, calibrated when it is first asked for; None without DP."""
        if not self.config.dp.enabled:
            return None
        private = self.config.dp
        return PrivacyPlan.calibrated(
            epsilon=private.epsilon,
            delta=private.delta,
            clip_norm=private.clip_norm,
            sample_rate=private.sampler.rate,
            num_steps=self.config.rounds * self.steps,
        )

    def model(self) -> Any:
        """A fresh model, the same each time."""
        return models.build(self.config.model, self.data.input_shape, self.data.classes, self.config.seed)

    def _verify_deltas(self) -> None:
        for client in self.data.clients:
            with warnings.catch_warnings():
                # To refuse before anything is made; the warnings come when the federation is put together.
                warnings.simplefilter("ignore", dp.PrivacyWarning)
                verify_delta(client.id, self.config.dp.delta, len(client.y))

    def dataset(self, client: str) -> str:
        """Name of a client's dataset in its ledger."""
        return client if self.config.data.name == "own" else f"{self.config.data.name}/{client}"

    @property
    def most_weight(self) -> int:
        """Most rows of a client, rounded up to a power of two; row counts are declared public."""
        most = max(len(client.y) for client in self.data.clients)
        return int(1 << max(0, most - 1).bit_length())

    @property
    def aggregator(self) -> Aggregator:
        """How updates become one."""
        return chosen_aggregator(self.config.server)

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the model's parameters lie."""
        named = {name: p.detach() for name, p in self.model().named_parameters() if p.requires_grad}
        return Vector.build(named).layout

    def _verify_groups(self) -> None:
        """Before anything is made: a group's pattern can only be judged beside the model."""
        for side in ("client", "server"):
            try:
                make_optimizer(getattr(self.config, side).optimizer).verify(self.layout)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{side}.optimizer.groups: {error}") from error

    def schema(self) -> secagg.Schema:
        """What each client sends in a round, and how it sums."""
        config = self.config
        optimizer = make_optimizer(config.client.optimizer)
        most = self.aggregator.most(self.most_weight, self.steps)
        optimizer.on_weighting(most, most)
        return round_schema(
            optimizer,
            self.layout,
            aggregator=self.aggregator,
            most_weight=self.most_weight,
            most_steps=self.steps,
            bits=config.masks.bits,
            bound=config.masks.bound,
            loss=not config.dp.enabled or "loss" in config.dp.disclose,
        )

    @property
    def stop(self) -> EarlyStop | None:
        """When the run ends early; None where it does not."""
        stop = self.config.server.stop
        return None if stop.metric is None else EarlyStop(stop.metric, stop.patience, stop.min_change)

    def masks(self) -> secagg.Policy | None:
        """Policy of the masked rounds; None where values travel in clear."""
        wanted = self.config.masks
        return mask_policy(wanted) if wanted.enabled else None

    def federation(
        self,
        run: str,
        homes: Callable[[str], Path],
        server_home: Path,
        source: dp.random.Source | None = None,
        transport: Transport | None = None,
    ) -> tuple[Federation, TorchProblem]:
        """The clients and the server of a run, and the server's model."""
        config, clients = self.config, {client.id: client for client in self.data.clients}
        problems = {name: TorchProblem(self.model(), c.x, c.y) for name, c in clients.items()}
        test = self.data.test or (np.zeros((0, *self.data.input_shape), np.float32), np.zeros(0, np.int64))
        central = TorchProblem(self.model(), *test)
        chosen = config.server.selection
        federation = build_federation(
            problems,
            client_optimizer=functools.partial(make_optimizer, config.client.optimizer),
            server_optimizer=make_optimizer(config.server.optimizer),
            steps=self.steps,
            seconds=config.client.effort.seconds,
            weights=central.weights,
            homes=homes,
            server_home=server_home,
            run=run,
            seed=config.seed,
            sample_rate=config.dp.sampler.rate,
            plan=self.plan,
            source=source,
            masks=self.masks(),
            disclose=config.dp.disclose,
            aggregator=self.aggregator,
            most_weight=self.most_weight,
            bits=config.masks.bits,
            bound=config.masks.bound,
            dataset=self.dataset,
            transport=transport,
            selection=Selection(chosen.how, chosen.clients, config.seed),
            dropouts=Dropouts(config.dropout, config.seed),
        )
        return federation, central


def make_optimizer(spec: OptimizerSpec) -> Optimizer:
    """The optimizer that a configuration describes."""
    return Optimizer(spec.lrate, spec.w_decay, list(spec.regularizers), list(spec.modules), spec.groups)
