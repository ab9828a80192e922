"""`privopt ledger`: show, verify and budget one ledger; floor 7."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .console import Console
from .failures import AUDIT, OK

__all__ = ["EXAMPLES", "add_arguments", "run_ledger"]

EXAMPLES = """
privopt ledger show runs/2026-11-21-digits-1/ledgers/clinic-0.json
privopt ledger verify clinic-0.json --key 9f2c…    with a key known from elsewhere
privopt ledger verify clinic-0.json --heads heads.jsonl --peer 51ab…   not older than what a peer kept
privopt ledger show homes/clinic-0/ledger.sqlite   by the holder, who has the key beside it
privopt ledger budget ledger.sqlite                what was spent and is left, by data set and project
privopt ledger budget ledger.sqlite --dataset icu-2024 --epsilon 4 --delta 1e-5   all runs together
privopt ledger budget ledger.sqlite --dataset icu-2024 --project sepsis      for good: they add up there
privopt ledger budget ledger.sqlite --project sepsis --epsilon 8 --delta 1e-5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `privopt ledger` takes."""
    parser.add_argument("action", choices=("show", "verify", "budget"), help="what to do")
    parser.add_argument("path", type=Path, help="an export, or a holder's own ledger.sqlite")
    parser.add_argument("--key", metavar="HEX", help="the holder's public key, if you have it from elsewhere")
    parser.add_argument(
        "--heads", metavar="FILE", type=Path, help="heads that a peer kept: finds an older copy of the ledger"
    )
    parser.add_argument("--peer", metavar="HEX", help="that peer's public key, if you have it from elsewhere")
    budget = parser.add_argument_group("budgets", "for `budget`; without --epsilon they are shown")
    budget.add_argument("--dataset", metavar="NAME", help="the budget of all runs on this data set together")
    budget.add_argument(
        "--project", metavar="NAME", help="of all data sets in this project; or put one in it"
    )
    budget.add_argument("--epsilon", metavar="E", type=float, help="largest epsilon, above 0")
    budget.add_argument("--delta", metavar="D", type=float, help="at which delta, in (0, 1)")
    budget.add_argument(
        "--order",
        metavar="A",
        type=float,
        help="the filter's Rényi order, for the first budget only; by default the best for its epsilon",
    )


def run_ledger(options: argparse.Namespace) -> int:
    """Run `privopt ledger`."""
    from ..report.ledgerfile import audit_export

    _verify_options(options)
    if options.action == "budget":
        return _budget(options)
    found = audit_export(options.path, key=options.key, heads=options.heads, peer=options.peer)
    console = Console(as_json=options.format == "json")
    console.say(found.records_text() if options.action == "show" else str(found))
    console.give(found.to_dict(records=options.action == "show"))
    return OK if found.ok else AUDIT


def _verify_options(options: argparse.Namespace) -> None:
    from ..setup.tables import ConfigError

    told = [
        name
        for name in ("dataset", "project", "epsilon", "delta", "order")
        if getattr(options, name) is not None
    ]
    other = [name for name in ("key", "heads", "peer") if getattr(options, name) is not None]
    if options.action != "budget" and told:
        raise ConfigError(
            f"Expected --{told[0]} with `privopt ledger budget`, got it with `{options.action}`."
        )
    if options.action == "budget" and other:
        raise ConfigError(
            f"Expected --{other[0]} with `privopt ledger show` or `verify`, got it with `budget`."
        )
    if options.peer is not None and options.heads is None:
        raise ConfigError("Expected --peer together with --heads, the file that the peer kept, got no file.")
    if (options.epsilon is None) != (options.delta is None):
        raise ConfigError("Expected --epsilon and --delta together, got one: neither means much alone.")
    if options.order is not None and options.epsilon is None:
        raise ConfigError("Expected --order together with --epsilon and --delta, got it alone.")
    if options.epsilon is not None and options.dataset is None and options.project is None:
        raise ConfigError("Expected --dataset or --project for a budget, got neither.")


def _budget(options: argparse.Namespace) -> int:
    """Set what was asked for, then show what stands."""
    from ..report.ledgerfile import open_live, totals_dicts, totals_text

    said: list[str] = []
    with open_live(options.path) as ledger:
        if options.dataset is not None and options.project is not None:
            ledger.set_project(options.dataset, options.project)
            said.append(f"Dataset {options.dataset!r} counts in project {options.project!r}.")
        if options.epsilon is not None:
            values: dict[str, Any] = {
                "epsilon": options.epsilon,
                "delta": options.delta,
                "order": options.order,
            }
            if options.dataset is not None:
                ledger.set_budget(options.dataset, **values)
                what = f"dataset {options.dataset!r}"
            else:
                ledger.set_project_budget(options.project, **values)
                what = f"project {options.project!r}"
            said.append(f"Budget of {what}: ε ≤ {options.epsilon:g} at δ = {options.delta:g}.")
        found = ledger.totals()
    if options.dataset is not None or options.project is not None:
        named = {("dataset", options.dataset), ("project", options.project)}
        found = [total for total in found if (total.kind, total.name) in named] if not said else found
    console = Console(as_json=options.format == "json")
    console.say("\n".join([*said, *([""] if said else []), totals_text(found)]))
    console.give({"path": str(options.path), "changed": said, "totals": totals_dicts(found)})
    return OK
