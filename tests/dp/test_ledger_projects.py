"""Projects over data sets, totals, and ledgers of other formats."""

import json
import math
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.audit import check_export
from dp.budgets import filter_order
from dp.errors import LedgerError, PrivacyBudgetExceeded, PrivacyParameterError, UnsupportedEvent
from dp.events import Gaussian, Neighboring, Poisson, Repeated, Unpriced
from dp.ledger import Ledger, LedgerKey
from dp.records import _FIELDS, FORMAT, History, Record, hash_body

EVENT = Repeated(Poisson(0.2, Gaussian(1.5)), 5)
OLD = json.loads((Path(__file__).parents[1] / "vectors" / "ledger_format_1.json").read_text())["cases"][0]


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite", LedgerKey.generate()) as opened:
        yield opened


def gaussian_filter(noises, order, delta):
    """What a filter reads of plain Gaussians: their divergence is order / (2 z^2) (Mironov 2017), added up.

    Then Canonne, Kamath, Steinke (2020), proposition 12, written out.
    """
    divergence = sum(order / (2 * z * z) for z in noises)
    return divergence + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)


# ---- projects ---------------------------------------------------------------------------------------------


def test_a_project_stops_what_each_of_its_data_sets_alone_would_allow(ledger):
    order = filter_order(3.0, 1e-5)
    noises, delta = [], 1e-5
    for dataset in ("icu", "lab"):
        ledger.set_budget(dataset, epsilon=2.5, delta=delta)
        ledger.set_project(dataset, "sepsis")
    ledger.set_project_budget("sepsis", epsilon=3.0, delta=delta)
    while gaussian_filter([*noises, 8.0], order, delta) <= 3.0:
        ledger.reserve(("icu", "lab")[len(noises) % 2], Gaussian(8.0), run=f"r{len(noises)}")
        noises.append(8.0)
    assert len(noises) > 2
    with pytest.raises(PrivacyBudgetExceeded, match=r"project 'sepsis' has .* of ε = 3 left") as caught:
        ledger.reserve("icu", Gaussian(8.0), run="r")
    assert "`privopt ledger budget ledger.sqlite --project sepsis`" in str(caught.value)
    # Without the project each would still allow it.
    assert gaussian_filter([*noises[::2], 8.0], filter_order(2.5, delta), delta) <= 2.5
    ledger.reserve("ward", Gaussian(8.0), run="r")  # which is in no project
    total = next(found for found in ledger.totals() if found.name == "sepsis")
    assert (total.kind, total.reservations, total.runs) == ("project", len(noises), len(noises))
    assert total.filtered == pytest.approx(gaussian_filter(noises, order, delta), rel=1e-9)
    assert total.left == pytest.approx(3.0 - total.filtered)
    assert total.epsilon <= total.filtered
    ledger.verify()


def test_what_a_data_set_released_before_counts_in_its_project(ledger):
    ledger.reserve("icu", Gaussian(2.0), run="r1")
    ledger.set_project_budget("p", epsilon=2.0, delta=1e-5)
    ledger.set_project("icu", "p")
    ledger.set_project("icu", "p")
    with pytest.raises(PrivacyBudgetExceeded, match="project 'p' has 0 of"):
        ledger.reserve("icu", Gaussian(100.0), run="r2")
    ledger.set_project_budget("p", epsilon=6.0, delta=1e-5)
    ledger.reserve("icu", Gaussian(100.0), run="r2")


def test_a_data_set_stays_in_its_project(ledger):
    ledger.set_project("icu", "p")
    with pytest.raises(LedgerError, match="in project 'p', as before, got 'q'"):
        ledger.set_project("icu", "q")
    assert [found.project for found in ledger.totals() if found.kind == "dataset"] == ["p"]


def test_the_innermost_budget_that_is_passed_is_told_first_and_all_hold(ledger):
    ledger.set_project("icu", "p")
    ledger.set_project_budget("p", epsilon=8.0, delta=1e-5)
    ledger.set_budget("icu", epsilon=4.0, delta=1e-5)
    ledger.set_run_budget("icu", run="r1", epsilon=2.0, delta=1e-5)
    for noise, run, what in ((1.5, "r1", "run 'r1'"), (1.0, "r2", "dataset 'icu'")):
        with pytest.raises(PrivacyBudgetExceeded, match=what):
            ledger.reserve("icu", Gaussian(noise), run=run)
    ledger.set_budget("icu", epsilon=50.0, delta=1e-5)
    with pytest.raises(PrivacyBudgetExceeded, match="project 'p'"):
        ledger.reserve("icu", Gaussian(0.5), run="r2")
    assert ledger.events() == []


def test_data_sets_of_one_project_are_under_one_relation(ledger):
    for dataset in ("icu", "lab"):
        ledger.set_project(dataset, "p")
    ledger.reserve("icu", Gaussian(2.0), run="r1")
    with pytest.raises(LedgerError, match="of the same project 'p'"):
        ledger.reserve("lab", Gaussian(2.0), run="r1", neighboring=Neighboring.REPLACE_ONE)
    ledger.reserve("ward", Gaussian(2.0), run="r1", unit="client")
    with pytest.raises(LedgerError, match="of the same project 'p'"):
        ledger.set_project("ward", "p")
    ledger.reserve("lab", Gaussian(2.0), run="r1")
    ledger.verify()


def test_the_order_of_a_project_is_fixed_before_its_first_release(ledger):
    ledger.set_project("icu", "p")
    ledger.set_project_budget("p", epsilon=1.0, delta=1e-5, order=7)
    with pytest.raises(PrivacyParameterError, match=r"project 'p' as it was fixed \(7\), got 8"):
        ledger.set_project_budget("p", epsilon=1.0, delta=1e-5, order=8)
    ledger.set_project("lab", "q")
    ledger.reserve("lab", EVENT, run="r1")
    with pytest.raises(PrivacyParameterError, match="before its first reservation"):
        ledger.set_project_budget("q", epsilon=9.0, delta=1e-5, order=7)
    with pytest.raises(PrivacyParameterError, match="epsilon=0"):
        ledger.set_project_budget("q", epsilon=0, delta=1e-5)
    assert next(found.order for found in ledger.totals() if found.name == "p") == 7.0


def test_a_project_with_a_budget_takes_nothing_unpriced_and_totals_leave_no_cost_out(ledger):
    ledger.set_project("icu", "p")
    ledger.set_project_budget("p", epsilon=1.0, delta=1e-5)
    with pytest.raises(UnsupportedEvent):
        ledger.reserve("icu", Unpriced("a plot"), run="r1")
    ledger.reserve("lab", Unpriced("a plot"), run="r1")
    ledger.set_budget("lab", epsilon=1.0, delta=1e-5)
    lab = next(found for found in ledger.totals() if found.name == "lab")
    assert (lab.epsilon, lab.filtered, lab.left, lab.reservations) == (None, None, 0.0, 1)


def test_an_export_tells_projects_and_a_reader_finds_the_same_totals(ledger, tmp_path):
    ledger.set_project("icu", "p")
    ledger.set_project_budget("p", epsilon=8.0, delta=1e-3)
    ledger.commit(ledger.reserve("icu", EVENT, run="r1"))
    ledger.export(tmp_path / "e.json")
    checked = check_export(tmp_path / "e.json", public_key=ledger.public_key)
    assert checked.ok
    assert checked.history.projects == {"icu": "p"}
    assert checked.export.format == FORMAT


# ---- formats ----------------------------------------------------------------------------------------------


def old_file(path):
    connection = sqlite3.connect(path, isolation_level=None)
    for line in OLD["schema"]:
        if line.startswith("CREATE TABLE"):
            connection.execute(line)
    for number, body, own_hash, signature in OLD["rows"]:
        row = (number, body.encode(), own_hash, bytes.fromhex(signature))
        connection.execute("INSERT INTO records VALUES (?, ?, ?, ?)", row)
    for line in OLD["schema"]:
        if line.startswith("CREATE TRIGGER"):
            connection.execute(line)
    connection.close()
    return LedgerKey(bytes.fromhex(OLD["secret"]))


def test_a_ledger_of_format_1_opens_holds_and_is_written_on(tmp_path):
    key = old_file(tmp_path / "l")
    with Ledger.open(tmp_path / "l", key) as ledger:
        ledger.verify()
        assert ledger.spent("icu", 1e-3).value == pytest.approx(OLD["spent"], rel=1e-3)
        assert len(ledger.events()) == 2
        ledger.set_project("icu", "p")
        ledger.reserve("icu", EVENT, run="r3")
        ledger.verify([])
        ledger.export(tmp_path / "e.json")
    assert check_export(tmp_path / "e.json", public_key=key.public_key).ok


def test_an_export_of_format_1_is_read(tmp_path):
    assert OLD["export"]["format"] == 1
    key = LedgerKey(bytes.fromhex(OLD["secret"]))
    assert check_export(OLD["export"], public_key=key.public_key).ok


def test_a_newer_format_is_refused_with_the_reason(tmp_path):
    found = check_export(OLD["export"] | {"format": FORMAT + 1})
    assert not found.ok
    assert f"got one of format {FORMAT + 1}: a newer version" in str(found.problems[0])
    key = LedgerKey.generate()
    with Ledger.open(tmp_path / "l", key) as ledger:
        body = json.loads(OLD["rows"][3][1]) | {"kind": "a-kind-to-come", "sequence": 2}
        body |= {"previous": ledger.head().hash, "versions": {"ledger": str(FORMAT + 1)}}
    raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    own_hash = hash_body(raw)
    connection = sqlite3.connect(tmp_path / "l", isolation_level=None)
    row = (2, raw, own_hash, key.sign_head(2, bytes.fromhex(own_hash)))
    connection.execute("INSERT INTO records VALUES (?, ?, ?, ?)", row)
    connection.close()
    with (
        pytest.raises(LedgerError, match="a newer version of privopt wrote it"),
        Ledger.open(tmp_path / "l", key),
    ):
        pass


# ---- records ----------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
positive = st.floats(min_value=1e-300, max_value=1e300)
deltas = st.floats(min_value=1e-300, max_value=1, exclude_max=True)
records = st.builds(
    Record,
    sequence=st.integers(1, 2**53),
    previous=st.binary(min_size=32, max_size=32).map(bytes.hex),
    kind=st.sampled_from(["create", "run-budget", "budget", "reserve", "void", "project", "project-budget"]),
    time=st.text(max_size=20),
    versions=st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=4),
    dataset=st.none() | names,
    run=st.none() | names,
    project=st.none() | names,
    epsilon=st.none() | positive,
    delta=st.none() | deltas,
    order=st.none() | st.floats(min_value=1, max_value=1e9, exclude_min=True),
    reservation=st.none() | st.integers(1, 2**53),
)


@given(records)
@settings(max_examples=200, deadline=None)
def test_records_survive_their_bytes_and_equal_records_have_equal_bytes(record):
    body = record.to_bytes()
    assert Record.from_bytes(body) == record
    assert Record.from_bytes(body).to_bytes() == body
    assert body.isascii()


@given(records, records)
@settings(max_examples=100, deadline=None)
def test_different_records_have_different_bytes(one, two):
    assert (one.to_bytes() == two.to_bytes()) == (one == two)


few = st.sampled_from(["a", "b"])
drawn = {
    "dataset": few,
    "run": few,
    "project": few,
    "epsilon": st.just(1.0),
    "delta": st.just(1e-5),
    "order": st.sampled_from([2.0, 3.0]),
    "reservation": st.integers(1, 6),
    "unit": few,
    "neighboring": st.sampled_from(list(map(str, Neighboring))),
    "event": st.sampled_from([EVENT.to_dict(), {"kind": "none"}]),
}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_history_changes_nothing_when_it_refuses_and_says_the_same_when_replayed(data):
    history, kept, refused = History(), [], 0
    for number in range(9):
        kind = data.draw(st.sampled_from(sorted(_FIELDS))) if number else "create"
        held = _FIELDS[kind] if number else frozenset({"ledger", "public_key"})
        fields = {name: data.draw(drawn[name]) for name in sorted(held) if name in drawn}
        if kind == "create":
            fields = {"ledger": "0" * 32, "public_key": "0" * 64}
        record = Record(
            sequence=history.sequence + 1,
            previous=history.head,
            kind=kind,
            time="",
            versions={},
            **fields,
        )
        before = said(history)
        try:
            history.apply(record, hash_body(record.to_bytes()))
        except LedgerError:
            refused += 1
            assert said(history) == before
        else:
            kept.append(record)
    again = History()
    for record in kept:
        again.apply(Record.from_bytes(record.to_bytes()), hash_body(record.to_bytes()))
    assert said(again) == said(history)
    for dataset, project in history.projects.items():
        relations = {history.relations.get(other) for other in history.members(project)} - {None}
        assert len(relations) <= 1, (dataset, project)


def said(history):
    return json.dumps({name: repr(value) for name, value in vars(history).items()})
