"""Budgets: which release a ledger's filters still allow, and what stands of each budget.

Place in the picture: `dp.ledger` asks here before it writes a reservation; a reader of an export asks what
was spent. Budgets nest, project over data set over run, and a release has to fit into all that there are. A
run's is a plan fixed before it began and is priced by PLD; the others hold for runs that are chosen after
seeing earlier ones, by a Rényi filter at one order.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .accounting import epsilon, rdp_epsilon_at, rdp_of
from .errors import DPError, PrivacyBudgetExceeded
from .events import Event
from .records import History, Record, Reservation

__all__ = ["Total", "filter_order", "totals", "verify_budgets"]


@dataclass(frozen=True)
class Total:
    """What was spent of one data set, or of one project.

    Attributes:
        kind: Which of the two.
        name: Its name.
        project: The project that a data set is of, if any.
        runs: Number of runs that reserved something.
        reservations: Number of reservations that count.
        delta: At which delta: the budget's, or without one the largest of its runs' budgets, or None.
        epsilon: What all of it costs by PLD; None without a delta or where something has no price.
        filtered: The figure that its filter compares with the budget; None without a budget, or as above.
        limit: The budget's epsilon; None without one.
        order: The filter's Rényi order; None without a budget.
    """

    kind: Literal["dataset", "project"]
    name: str
    project: str | None
    runs: int
    reservations: int
    delta: float | None
    epsilon: float | None
    filtered: float | None
    limit: float | None
    order: float | None

    @property
    def left(self) -> float | None:
        """What the filter leaves of the budget; None without one."""
        if self.limit is None:
            return None
        return 0.0 if self.filtered is None else max(0.0, self.limit - self.filtered)


def totals(history: History) -> list[Total]:
    """What stands of every data set and project that a ledger names, projects first, by name."""
    datasets = {*history.relations, *history.budgets, *history.projects}
    datasets |= {dataset for dataset, _ in history.run_budgets}
    projects = {*history.projects.values(), *history.project_budgets}
    found = [_total(history, "project", name) for name in sorted(projects)]
    return found + [_total(history, "dataset", name) for name in sorted(datasets)]


def _total(history: History, kind: Literal["dataset", "project"], name: str) -> Total:
    budget = (history.budgets if kind == "dataset" else history.project_budgets).get(name)
    members = {name} if kind == "dataset" else history.members(name)
    counted = [found for found in history.counted() if found.dataset in members]
    relation = next((history.relations[m][1] for m in members if m in history.relations), "add-or-remove-one")
    delta = None if budget is None else budget.delta
    if delta is None:
        deltas = [own.delta for (dataset, _), own in history.run_budgets.items() if dataset in members]
        delta = max((value for value in deltas if value is not None), default=None)
    order = None if budget is None else budget.order
    spent = filtered = None
    try:
        events = [found.event for found in counted]
        spent = None if delta is None else epsilon(events, delta, neighboring=relation)
        if budget is not None:
            filtered = _filtered(counted, relation, budget)
    except DPError:
        pass  # something has no price: no figure is better than one that leaves it out
    return Total(
        kind=kind,
        name=name,
        project=history.projects.get(name) if kind == "dataset" else None,
        runs=len({found.run for found in counted}),
        reservations=len(counted),
        delta=delta,
        epsilon=spent,
        filtered=filtered,
        limit=None if budget is None else budget.epsilon,
        order=order,
    )


def _filtered(counted: Sequence[Reservation], relation: str, budget: Record) -> float:
    """A filter's reading: epsilon of everything counted at its one order; zero before the first release."""
    if not counted:
        return 0.0
    order = float(budget.order or 0)
    spent = rdp_of([found.event for found in counted], order, relation)
    return max(0.0, rdp_epsilon_at(spent, order, float(budget.delta or 0)))


# ---- filters ----------------------------------------------------------------------------------------------


def verify_budgets(history: History, file: str, dataset: str, event: Event, run: str, relation: str) -> None:
    """Raise unless a release fits into the budgets of its run, its data set and its project.

    Args:
        history: What counts so far.
        file: The ledger's file, for the error.
        dataset: Which data.
        event: What would be released.
        run: Which run.
        relation: Neighbouring relation of the data set.

    Raises:
        PrivacyBudgetExceeded: Naming what is left, and the command that changes the budget.
        UnsupportedEvent: If there is a budget and the event has no price.
    """
    _verify_run(history, file, dataset, event, run, relation)
    if (budget := history.budgets.get(dataset)) is not None:
        _verify_filter(budget, history.counted(dataset), file, "dataset", dataset, event, relation)
    project = history.projects.get(dataset)
    if project is not None and (budget := history.project_budgets.get(project)) is not None:
        members = history.members(project)
        counted = [found for found in history.counted() if found.dataset in members]
        _verify_filter(budget, counted, file, "project", project, event, relation)


def _verify_run(history: History, file: str, dataset: str, event: Event, run: str, relation: str) -> None:
    budget = history.run_budgets.get((dataset, run))
    if budget is None:
        return
    limit, delta = float(budget.epsilon or 0), float(budget.delta or 0)
    earlier = [found.event for found in history.counted(dataset, run)]
    # RDP's price is an upper bound too, and takes a hundredth of the time; only near the end PLD decides.
    if epsilon([*earlier, event], delta, by="RDP", neighboring=relation) <= limit:
        return
    after = epsilon([*earlier, event], delta, neighboring=relation)
    if not after <= limit:
        spent = epsilon(earlier, delta, neighboring=relation)
        raise PrivacyBudgetExceeded(
            f"run {run!r} has {max(0.0, limit - spent):.3g} of ε = {limit:g} left on dataset {dataset!r} "
            f"(δ = {delta:g}, {file}); this release would bring it to {after:.4g}. "
            "Stop here, or start a run with a larger budget or more noise."
        )


def _verify_filter(
    budget: Record,
    counted: Sequence[Reservation],
    file: str,
    kind: str,
    name: str,
    event: Event,
    relation: str,
) -> None:
    limit, delta, order = (float(value or 0) for value in (budget.epsilon, budget.delta, budget.order))
    spent = rdp_of([found.event for found in counted], order, relation)
    after = rdp_epsilon_at(spent + rdp_of(event, order, relation), order, delta)
    if not after <= limit:
        left = max(0.0, limit - _filtered(counted, relation, budget))
        runs = len({found.run for found in counted})
        command = f"privopt ledger budget {shlex.quote(file)} --{kind} {shlex.quote(name)}"
        raise PrivacyBudgetExceeded(
            f"{kind} {name!r} has {left:.3g} of ε = {limit:g} left ({file}, {runs} run"
            f"{'' if runs == 1 else 's'}, δ = {delta:g}); this release would bring it to {after:.4g}. "
            f"Release less, add more noise, or raise the {kind}'s budget with `{command}`."
        )


def filter_order(epsilon: float, delta: float) -> float:
    """The Rényi order at which a budget lets most Gaussian noise through, up to rounding.

    A Gaussian's divergence is proportional to the order a, so the budget left for it is
    ``(epsilon - L / (a - 1)) / a`` with ``L = log(1 / delta)``; this is its maximum.
    """
    log = math.log(1 / delta)
    order = 1 + (log + math.sqrt(log * log + epsilon * log)) / epsilon
    # Divergences of sampled Gaussians are finite sums at integers, and converge slowly in between.
    return float(round(order)) if order >= 4 else max(1.1, round(order, 1))
