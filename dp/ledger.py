"""The ledger: what a data holder has released about its data, written down before anything is drawn.

Place in the picture: one file in the holder's home that outlives runs. A round reserves its event here, draws
its noise, and commits; the filters refuse what would pass a budget. Records are append-only, chained by
SHA-256 and the head is signed with each of them, so that `dp.audit` can check an export by itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from .accounting import By, Epsilon, epsilon
from .budgets import Total, filter_order, totals, verify_budgets
from .errors import LedgerError, PrivacyParameterError
from .events import Event, Neighboring
from .heads import FOUND, CountersignedHead, SignedHead, compare_heads, sign_head
from .policy import LocalPolicy, PolicyRefused, policy_path
from .records import MAX_NAME
from .records import Reservation as Reservation
from .signing import LedgerKey as LedgerKey
from .signing import write_atomic
from .storage import RecordFile

__all__ = ["Ledger", "LedgerKey", "Reservation"]


class Ledger:
    """The append-only record of what was released about one holder's data sets. Open with `Ledger.open`.

    Guarantees:
        - `reserve` returns only once its record is on disk (SQLite WAL, full sync); a reservation counts as
          spent whether or not it is ever committed. A process killed at any instruction leaves a ledger that
          opens, verifies, and counts every release that may have been drawn.
        - A reservation that would pass the budget of its run, its data set or its project raises before
          anything is written, whichever process asks.
        - What the holder's policy forbids (`dp.policy.LocalPolicy`, a file beside the ledger that is read
          anew each time) is refused likewise, whoever asks and whatever the budgets are.
        - Several processes may write one ledger; a record is checked against all before it, under one lock.
        - A record that was altered, removed, inserted or moved by anyone without the key is found by
          `verify`, and named. A whole ledger put back to an earlier state is not found by the file alone: it
          takes a peer that keeps the newest head (`head`, `dp.heads`), and `verify` with what it kept.

    Note:
        The budget of a run is filtered with PLD, which is sound where the run's mechanisms were fixed before
        it began (how many of them are run may depend on results). What depends on earlier results, such as
        the next run's parameters, is for the budgets of the data set and of its project: Rényi filters, each
        at one order, which hold for adaptive choices.

    References:
        Feldman, Zrnic (2021), https://arxiv.org/abs/2008.11193, for the Rényi filter.

    Example:
        >>> import tempfile
        >>> from dp.events import Gaussian, Poisson, Repeated
        >>> folder = tempfile.TemporaryDirectory()
        >>> with Ledger.open(Path(folder.name, "ledger.sqlite"), LedgerKey.generate()) as ledger:
        ...     event = Repeated(Poisson(0.01, Gaussian(1.0)), 1000)
        ...     reservation = ledger.reserve("icu-2024", event, run="run-1")
        ...     ledger.commit(reservation)  # once the noise is drawn
        ...     round(ledger.spent("icu-2024", 1e-5).value, 3)
        1.828
        >>> folder.cleanup()
    """

    def __init__(self, file: RecordFile) -> None:
        self._file = file
        self._bound = policy_path(file.path).exists()

    # ---- open and close -----------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path, key: LedgerKey) -> Ledger:
        """Open a ledger, or begin one where there is no file.

        Args:
            path: The file, in a folder that exists. SQLite keeps two more beside it while it is in use.
            key: The holder's key.

        Returns:
            The ledger; `close` it, or use it in a ``with`` statement.

        Raises:
            LedgerError: If the file is no ledger, belongs to another key, or its last record is not signed.
            OSError: If it cannot be read or written, or there is no space.
        """
        return cls(RecordFile(Path(path), key))

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self._file.path.name!r}, public_key={self.public_key.hex()[:16]}…)"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("Ledger holds a secret and an open file and cannot be pickled or copied.")

    @property
    def public_key(self) -> bytes:
        """The key that an auditor pins, 32 bytes."""
        return self._file.key.public_key

    # ---- budgets ------------------------------------------------------------------------------------------

    def set_run_budget(self, dataset: str, *, run: str, epsilon: float, delta: float) -> None:
        """Fix what one run may spend; the same values again (a resumed run) are fine.

        Args:
            dataset: Which data.
            run: Which run.
            epsilon: Largest epsilon of all that the run reserves, by PLD.
            delta: At which delta.

        Raises:
            PrivacyParameterError: If a value is no budget.
            PolicyRefused: If the holder's policy forbids it.
            LedgerError: If the run has another budget already.
        """
        _verify_names(dataset=dataset, run=run)
        budget = _verify_budget(epsilon, delta)
        if (policy := self._policy()) is not None:
            policy.verify_budget(*budget, where=policy_path(self._file.path).name)
        with self._file.writing():
            earlier = self._file.history.run_budgets.get((dataset, run))
            if earlier is None:
                self._file.append("run-budget", dataset=dataset, run=run, epsilon=budget[0], delta=budget[1])
            elif (earlier.epsilon, earlier.delta) != budget:
                raise LedgerError(
                    f"Expected the budget of run {run!r} on dataset {dataset!r} as it was fixed (ε = "
                    f"{earlier.epsilon:g}, δ = {earlier.delta:g}), got ε = {epsilon:g}, δ = {delta:g}. "
                    "Start a new run for another budget."
                )

    def set_budget(self, dataset: str, *, epsilon: float, delta: float, order: float | None = None) -> None:
        """Set what all runs together may spend on a data set; later calls raise or lower it.

        The filter's Rényi order is fixed by the first call, because its guarantee is for an order that was
        chosen before the releases. The default is the best one for that first budget; far larger budgets
        later on are used badly at it, so who expects to raise the budget names an order that suits its end.

        Args:
            dataset: Which data.
            epsilon: Largest epsilon of everything reserved so far and from now on, by a Rényi filter.
            delta: At which delta.
            order: Rényi order of the filter, above 1; for the first call, before anything is reserved.

        Raises:
            PrivacyParameterError: If a value is no budget, the order is another than it was, or one is named
                after the first reservation.
        """
        _verify_names(dataset=dataset)
        self._set_filter("budget", "dataset", dataset, epsilon, delta, order)

    def set_project_budget(
        self, project: str, *, epsilon: float, delta: float, order: float | None = None
    ) -> None:
        """Set what all data sets of a project may spend together, filtered as that of a data set is.

        Args:
            project: Which project.
            epsilon: Largest epsilon of everything reserved so far and from now on, by a Rényi filter.
            delta: At which delta.
            order: Rényi order of the filter, as for `set_budget`.

        Raises:
            PrivacyParameterError: As `set_budget` does.
        """
        _verify_names(project=project)
        self._set_filter("project-budget", "project", project, epsilon, delta, order)

    def set_project(self, dataset: str, project: str) -> None:
        """Put a data set into a project, for good; what it has released counts there as well.

        Data sets of a project are about the same units, so that what is released about each adds up. Taking
        one out again would give back what was spent, so it is refused. The same call twice is fine.

        Args:
            dataset: Which data.
            project: Which project.

        Raises:
            LedgerError: If the data set is in another project, or its unit or relation is another than that
                of the project's other data sets.
        """
        _verify_names(dataset=dataset, project=project)
        with self._file.writing():
            earlier = self._file.history.projects.get(dataset)
            if earlier is not None and earlier != project:
                raise LedgerError(
                    f"Expected dataset {dataset!r} in project {earlier!r}, as before, got {project!r}. What "
                    "was spent there cannot be taken along; use a new ledger for other data."
                )
            if earlier is None:
                self._file.append("project", dataset=dataset, project=project)

    def _set_filter(
        self, kind: str, what: str, name: str, epsilon: float, delta: float, order: float | None
    ) -> None:
        budget = _verify_budget(epsilon, delta)
        if order is not None and not (order > 1 and math.isfinite(order)):
            raise PrivacyParameterError(f"Expected order > 1 and finite, got order={order}.")
        with self._file.writing():
            history = self._file.history
            earlier = (history.budgets if what == "dataset" else history.project_budgets).get(name)
            fixed = filter_order(*budget) if earlier is None else float(earlier.order or 0)
            if earlier is None and order is not None:
                members = {name} if what == "dataset" else history.members(name)
                if any(history.counted(member) for member in members):
                    raise PrivacyParameterError(
                        f"Expected the order of {what} {name!r} before its first reservation, got "
                        f"order={order} after it: an order chosen by what was released proves nothing. "
                        "Leave it out."
                    )
                fixed = float(order)
            if order not in (None, fixed):
                raise PrivacyParameterError(
                    f"Expected the order of {what} {name!r} as it was fixed ({fixed:g}), got {order}."
                )
            if earlier is None or (earlier.epsilon, earlier.delta) != budget:
                fields = {what: name, "epsilon": budget[0], "delta": budget[1], "order": fixed}
                self._file.append(kind, **fields)

    def totals(self) -> list[Total]:
        """What was spent and is left of every data set and project."""
        with self._file.reading():
            return totals(self._file.history)

    # ---- releases -----------------------------------------------------------------------------------------

    def reserve(
        self,
        dataset: str,
        event: Event,
        *,
        run: str,
        unit: str = "sample",
        neighboring: Neighboring = Neighboring.ADD_OR_REMOVE_ONE,
        clip_norm: float | None = None,
    ) -> Reservation:
        """Count a release, durably, before anything of it is drawn.

        Args:
            dataset: Which data.
            event: What will be released.
            run: Which run.
            unit: What one unit of privacy is.
            neighboring: Relation; unit and relation of a data set are those of its first reservation.
            clip_norm: What one sample's gradient is clipped to, for the record: the price is relative to it,
                so an event does not hold it. Left out of the record where it is None.

        Returns:
            The reservation, to be committed once the noise is drawn. Never draw twice under one reservation.

        Raises:
            PrivacyBudgetExceeded: If a budget would be passed; nothing is written then.
            PolicyRefused: If the holder's policy forbids it; nothing is written then.
            UnsupportedEvent: If there is a budget and the event has no price; nothing is written then.
            LedgerError: If the data set was under another unit or relation, or the ledger is damaged.
            PrivacyParameterError: If `clip_norm` bounds nothing.
            OSError: If it cannot be written.
        """
        _verify_names(dataset=dataset, run=run, unit=unit)
        if clip_norm is not None and not (clip_norm > 0 and math.isfinite(clip_norm)):
            raise PrivacyParameterError(f"Expected clip_norm > 0 and finite, got clip_norm={clip_norm}.")
        if not isinstance(event, Event):
            raise TypeError(f"Expected an event of dp.events, got {type(event).__name__}.")
        relation = (unit, str(Neighboring(neighboring)))
        # Priced once before the lock is taken, because others wait for it; below the price is known by then.
        with self._file.reading():
            self._verify_budgets(dataset, event, run, relation)
        with self._file.writing():
            self._verify_budgets(dataset, event, run, relation)
            self._file.append(
                "reserve",
                dataset=dataset,
                run=run,
                unit=unit,
                neighboring=relation[1],
                event=event.to_dict(),
                clip_norm=None if clip_norm is None else float(clip_norm),
            )
            return self._file.history.reservations[self._file.history.sequence]

    def commit(self, reservation: Reservation) -> None:
        """Note that the noise of a reservation was drawn.

        Raises:
            LedgerError: If it is none of this ledger's, or committed or void already.
        """
        self._settle("commit", reservation)

    def void(self, reservation: Reservation) -> None:
        """Take a reservation back: only where no noise was drawn under it, which only the caller can know.

        Raises:
            LedgerError: If it is none of this ledger's, or committed or void already.
        """
        self._settle("void", reservation)

    def _settle(self, kind: str, reservation: Reservation) -> None:
        with self._file.writing():
            if self._file.history.reservations.get(reservation.sequence) != reservation:
                raise LedgerError(
                    f"Expected a reservation of {self._file.path.name}, got another, {reservation.sequence}."
                )
            # History.apply refuses what was committed or void already, before anything is written.
            self._file.append(
                kind,
                dataset=reservation.dataset,
                run=reservation.run,
                reservation=reservation.sequence,
            )

    # ---- what was spent -----------------------------------------------------------------------------------

    def releases(self, run: str, *, dataset: str | None = None, after: int = 0) -> list[Reservation]:
        """Reservations of a run that count, oldest first, numbered above `after`."""
        with self._file.reading():
            return [found for found in self._file.history.counted(dataset, run) if found.sequence > after]

    def events(self, dataset: str | None = None, run: str | None = None) -> list[Event]:
        """Events that count, oldest first: all reserved ones that were not made void."""
        with self._file.reading():
            return [found.event for found in self._file.history.counted(dataset, run)]

    def spent(self, dataset: str, delta: float, *, run: str | None = None, by: By = "PLD") -> Epsilon:
        """What was spent on a data set, by all runs or by one.

        Args:
            dataset: Which data.
            delta: At which delta.
            run: Which run; all where it is None.
            by: Accountant.

        Returns:
            An upper bound. It is an odometer's reading for a fixed plan; see the note on the class.

        Raises:
            UnsupportedEvent: If an event has no price by that accountant.
        """
        with self._file.reading():
            events = [found.event for found in self._file.history.counted(dataset, run)]
            relation = self._file.history.relations.get(dataset, ("", str(Neighboring.ADD_OR_REMOVE_ONE)))
        return Epsilon(epsilon(events, delta, by=by, neighboring=relation[1]), delta, by)

    def _policy(self) -> LocalPolicy | None:
        """The holder's policy as it stands now; one that was there and is gone allows nothing."""
        path = policy_path(self._file.path)
        try:
            found = LocalPolicy.load(path)
        except FileNotFoundError:
            if not self._bound:
                return None
            raise PolicyRefused(
                f"Expected the holder's policy in {path}, where it was when the ledger was opened, got none. "
                "Put it back, or open the ledger again if its owner took it away."
            ) from None
        self._bound = True
        return found

    def _verify_budgets(self, dataset: str, event: Event, run: str, relation: tuple[str, str]) -> None:
        """Raise unless the event may be reserved."""
        before = self._file.history.relations.get(dataset, relation)
        if before != relation:
            raise LedgerError(
                f"Expected dataset {dataset!r} under unit and relation {before}, as before, got {relation}."
            )
        history = self._file.history
        if (policy := self._policy()) is not None:
            where = policy_path(self._file.path).name
            earlier = tuple(found.event for found in history.counted(dataset, run))
            policy.verify(event, where=where, earlier=earlier, neighboring=relation[1])
            if (budget := history.run_budgets.get((dataset, run))) is not None:
                # It may have been fixed before its owner tightened the policy.
                policy.verify_budget(float(budget.epsilon or 0), float(budget.delta or 0), where=where)
        verify_budgets(history, self._file.path.name, dataset, event, run, relation[1])

    # ---- verify and export --------------------------------------------------------------------------------

    def head(self) -> SignedHead:
        """The newest record's number and hash, signed, to be kept by a peer: it stands for all before it."""
        with self._file.reading():
            history = self._file.history
            return sign_head(self._file.key, str(history.ledger), history.sequence, history.head)

    def verify(
        self, countersigned: Iterable[CountersignedHead] = (), *, peers: Collection[bytes] | None = None
    ) -> None:
        """Check every record: its bytes, its place in the chain, what it says, and the signature on it.

        Args:
            countersigned: Heads that peers kept; those of other ledgers' keys are passed over. The ledger has
                to hold the record of each: one that was put back to an older state, cut or swapped does not.
            peers: Public keys of the peers that are trusted; None trusts the one that each head names.

        Raises:
            LedgerError: Naming the first record that is wrong or missing; or if heads are given and none is
                about this ledger.
        """
        kept = list(countersigned)
        hashes = self._file.verify()
        found = compare_heads(
            kept,
            public_key=self.public_key,
            ledger=str(self._file.history.ledger),
            hashes=hashes,
            peers=peers,
        )
        if found.problems:
            record, what = found.problems[0]
            where = "A kept head" if record is None else f"Record {record}"
            raise LedgerError(f"{self._file.path}: {where} {what}. {FOUND}", record)
        if kept and not found.held:
            raise LedgerError(
                f"Expected kept heads of the ledger {self._file.path.name} (key "
                f"{self.public_key.hex()[:16]}…), got {len(kept)} of others. Ask its peer for its own."
            )

    def export(self, path: str | Path) -> None:
        """Write the ledger as signed JSON, all at once, for an auditor.

        It holds every record, of all runs: a part would not chain to the signed head.

        Args:
            path: File to write or to replace.

        Raises:
            LedgerError: If the ledger is damaged.
            OSError: If the file cannot be written.
        """
        write_atomic(Path(path), self._file.export().to_bytes())


def _verify_names(**names: str) -> None:
    for what, name in names.items():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise ValueError(f"Expected {what} as 1..{MAX_NAME} printable characters, got {name!r}.")


def _verify_budget(epsilon: float, delta: float) -> tuple[float, float]:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise PrivacyParameterError(f"Expected a budget of epsilon > 0 and finite, got epsilon={epsilon}.")
    if not 0 < delta < 1:
        raise PrivacyParameterError(f"Expected a budget with delta in (0, 1), got delta={delta}.")
    return float(epsilon), float(delta)
