"""What is shared: auxiliary variables and aggregated updates, the same in clear, in pairs and under masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import secagg
from secagg.reductions import Averaged, Counted, Local, Public, Reduction, Same, Summed

from ..aggregators import Aggregator
from ..auxvar import AuxVar
from ..plugin import OptiModule
from .inputs import SEVERAL, Shapes, gradients
from .steps import overwrite
from .subject import Subject, difference, expect, frozen
from .trial import Trial, counterpart_of, for_one

__all__ = ["check_aggregator", "check_aux_var", "check_foreign_aux_var", "check_received_memory"]

_CLIENTS = 3
_ROUNDS = 64
"""In which an adaptive bound that doubles while values pass it is at its cap, wherever it starts."""


class _Foreign(AuxVar, register=False):
    """What belongs to no module."""

    name = "foreign"
    count: int = secagg.counted()


def check_aux_var(subject: Subject, shapes: Shapes = SEVERAL) -> None:
    """What a module sends is declared, and its sum in clear is that of pairs and, as declared, of masks."""
    cls = subject.plugin
    if not issubclass(cls, OptiModule) or cls.aux_var is None:
        return
    sent = [_one_round(subject, shapes, client) for client in range(_CLIENTS)]
    layout = gradients(0, shapes).layout
    for one in sent:
        declared = dict(type(one).reductions(layout))
        told = set(one.to_values())
        expect(told == set(declared), subject, f"Expected a reduction of each field, got {sorted(told)}.")
    kind = type(sent[0])
    together = kind.aggregate(sent)
    _same_sums(subject, "in pairs", together, (sent[0] + sent[1]) + sent[2])
    _same_sums(subject, "from the other end", together, sent[0] + (sent[1] + sent[2]))
    _same_sums(subject, "by sum()", together, sum(sent[1:], sent[0]))
    rows = [one.to_values() for one in sent]
    for field, reduction in kind.reductions(layout).items():
        if not isinstance(reduction, Local):
            _verify_reduced(subject, field, reduction, rows, together.to_values()[field])
    schema = secagg.Schema(Trial(subject, shapes).optimizer.aux_reductions(layout))
    name = str(cls.aux_name)
    _masked_equals_clear(subject, schema, [{f"{name}.{k}": v for k, v in row.items()} for row in rows])


def _one_round(subject: Subject, shapes: Shapes, client: int) -> AuxVar:
    """What a client sends after a round of its own."""
    trial = Trial(subject, shapes)
    trial.steps = 10 * client  # gradients of its own
    trial.play(["round", *["step"] * (1 + client)])
    sent = trial.optimizer.collect_aux_var(trial.weights)
    expected = trial.optimizer.aux_vars()
    for name, one in sent.items():
        if type(one) is not expected.get(name):
            raise subject.broken(
                f"Expected it to send the {expected.get(name)} that its aux_var "
                f"declares, got {type(one).__name__}."
            )
        return one
    raise subject.broken("Expected something to send after a round, got nothing.")


def _same_sums(subject: Subject, how: str, left: AuxVar, right: AuxVar) -> None:
    gap = difference(left.to_values(), right.to_values())
    expect(gap is None, subject, f"Expected the same sum {how}, got {gap}.")


def _verify_reduced(
    subject: Subject, field: str, reduction: Reduction, rows: Sequence[Mapping[str, Any]], found: Any
) -> None:
    """A combined field against numpy's sum of what was sent, or against its own reduction if it is none."""
    column = [row[field] for row in rows]
    if isinstance(reduction, Same | Public):
        expected: Any = tuple(column) if isinstance(reduction, Public) else column[0]
        holds = difference(expected, found) is None
    elif not isinstance(reduction, Summed | Averaged | Counted):
        weight = getattr(reduction, "weight", None)
        weights_of = None if weight is None else [row[weight] for row in rows]
        holds = bool(np.all(_agree(found, reduction.reduce(column, weights_of), 0.0)))
    else:
        weights = np.ones(len(rows))
        if isinstance(reduction, Averaged):
            if reduction.weight is not None:
                weights = np.array([row[reduction.weight] for row in rows], np.float64)
            weights = weights / weights.sum()
        values = np.array([np.asarray(value, np.float64) for value in column])
        expected = np.tensordot(weights, values, axes=1)
        scale = float(np.max(np.abs(values), initial=0.0))
        holds = bool(np.allclose(found, expected, rtol=1e-12, atol=1e-12 * scale))
    names = {"averaged": "mean", "counted": "count", "summed": "sum"}
    what = names.get(reduction.kind, reduction.kind)
    expect(holds, subject, f"Expected the {what} of what clients send in {field!r}, got another value.")


def _masked_equals_clear(
    subject: Subject,
    schema: secagg.Schema,
    rows: Sequence[Mapping[str, Any]],
    of: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Sums of encoded values decode to the sums in clear, up to what the declarations allow."""
    encoding, reduced = _masked_sum(schema, rows)
    for _ in range(_ROUNDS):
        # An adaptive bound starts anywhere and follows the values from round to round.
        if not any(reduced.clipped.get(field) for field in reduced.bounds):
            break
        schema = schema.with_bounds(reduced.bounds)
        encoding, reduced = _masked_sum(schema, rows)
    clear = secagg.reduce_clear(schema, rows)
    for field, value in reduced.values.items():
        bound = np.asarray(encoding.error_bound(field, len(rows))) * (1 + 1e-9)
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.asarray(value, np.float64) - np.asarray(clear[field], np.float64))
        gap = np.max(apart, initial=0.0)
        expect(
            bool(np.all(_agree(value, clear[field], bound))),
            subject,
            f"Expected {field!r} under masks within {bound.max():.3g} of its sum in clear, got {gap:.3g} "
            "apart. Declare a bound that what is sent keeps: summed(bound=...), adaptive(at_most=...).",
        )


def _agree(found: Any, expected: Any, bound: Any) -> Any:
    """Where two results are within a bound of each other; NaN and infinities in both agree."""
    ours, theirs = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(ours - theirs) <= bound
    return near | (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))


def _masked_sum(
    schema: secagg.Schema, rows: Sequence[Mapping[str, Any]]
) -> tuple[secagg.Encoding, secagg.Reduced]:
    encoding = secagg.Encoding(schema, len(rows))
    rounding = np.random.default_rng(1)
    words = [encoding.encode(row, rounding) for row in rows]
    return encoding, encoding.decode(np.sum(words, axis=0, dtype=np.uint64), len(rows))


def check_foreign_aux_var(subject: Subject) -> None:
    """What the counterpart did not make is refused, and changes nothing."""
    if counterpart_of(subject) is None:
        return
    trial = Trial(subject).play(["round", "step", "step"])
    before = trial.state()
    name = str(getattr(trial.plugin, "aux_name", None))
    try:
        trial.optimizer.process_aux_var({name: _Foreign(count=1)})
    except (TypeError, ValueError):
        pass
    else:
        raise subject.broken(
            "Expected an AuxVar of another class to be refused with TypeError, got "
            "none. Verify `isinstance(aux_var, ...)` in process_aux_var."
        )
    gap = difference(before, trial.state())
    expect(gap is None, subject, f"Expected an AuxVar that was refused to change nothing, got {gap}.")


def check_received_memory(subject: Subject) -> None:
    """What is received may change in the sender's hands afterwards: the receiver's state stays."""
    partner = counterpart_of(subject)
    if partner is None:
        return
    trial = Trial(subject)
    if partner.aux_var is None:
        # One round by which the server has something to offer.
        trial.play(["round", "step", "accept"])
        offered = trial.partner.collect_aux_var() if trial.partner is not None else None
        received = None if offered is None else for_one(offered)
    else:
        received = _one_round(Subject(type(partner), partner.get_config()), SEVERAL, 0)
    expect(
        isinstance(received, AuxVar), subject, "Expected the server's half to offer an AuxVar after a round."
    )
    if isinstance(received, AuxVar):
        trial.optimizer.process_aux_var({str(getattr(trial.plugin, "aux_name", None)): received})
        before = frozen(trial.optimizer.get_state())
        overwrite(received)
        gap = difference(before, trial.optimizer.get_state())
        expect(
            gap is None,
            subject,
            f"Expected a state of its own of what it received, got {gap} when that changed. Keep a copy: "
            "`aux_var.field.copy()`.",
        )


def check_aggregator(subject: Subject, size: int = 12) -> None:
    """Its fields are those of its contributions; order and masks do not matter; equal updates come back."""
    how = subject.build()
    if not isinstance(how, Aggregator):
        raise TypeError(f"Expected an aggregator, got the {subject.kind} {subject}.")
    samples, steps = (10, 3, 64), (4, 1, 7)
    most_steps = max(steps)
    schema = secagg.Schema(how.fields(size, 4.0, 16, how.most(max(samples), most_steps), most_steps))
    for field in schema:
        known = field in ("update", "weight") or field.startswith("aggregator.")
        expect(known, subject, f"Expected fields of its own to start with 'aggregator.', got {field!r}.")
    rng = np.random.default_rng(5)
    updates = rng.normal(size=(_CLIENTS, size))
    kept = updates.copy()
    given = list(zip(updates, samples, steps, strict=True))
    rows = [how.contribution(*one) for one in given]
    expect(bool(np.array_equal(updates, kept)), subject, "Expected clients' updates to stay as they were.")
    for row in rows:
        expect(
            set(row) == set(schema),
            subject,
            f"Expected contributions to have the fields {sorted(schema)}, got {sorted(row)}.",
        )
    combined = how.combine(secagg.reduce_clear(schema, rows))
    expect(
        combined.shape == (size,), subject, f"Expected an update of shape ({size},), got {combined.shape}."
    )
    expect(
        bool(np.isfinite(combined).all()), subject, "Expected a finite update of finite ones, got another."
    )
    turned = how.combine(secagg.reduce_clear(schema, rows[::-1]))
    same = bool(np.allclose(combined, turned, rtol=1e-12, atol=1e-12))
    expect(same, subject, "Expected the order of clients not to matter, got another update in another order.")
    _masked_equals_clear(subject, schema, rows)
    expect(
        difference(subject.build().get_state(), how.get_state()) is None,
        subject,
        "Expected an aggregator to keep nothing of a round, got a state that changed.",
    )
