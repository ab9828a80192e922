"""The ledger: budgets, two phases, what counts, and every kind of damage found and named."""

import errno
import json
import os
import pickle
import sqlite3
import stat
import threading

import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from dp import accounting
from dp.accounting import epsilon
from dp.errors import LedgerError, PrivacyBudgetExceeded, PrivacyParameterError, UnsupportedEvent
from dp.events import Gaussian, Neighboring, Poisson, Repeated, Unpriced
from dp.ledger import Ledger, LedgerKey, Reservation
from dp.records import Record, hash_body
from dp.signing import head_bytes
from dp.storage import _close

EVENT = Repeated(Poisson(0.2, Gaussian(1.5)), 5)


@pytest.fixture
def key():
    return LedgerKey.generate()


@pytest.fixture
def ledger(tmp_path, key):
    with Ledger.open(tmp_path / "ledger.sqlite", key) as opened:
        yield opened


def rewrite(path, statement, *arguments):
    """Change a ledger's file as whoever can write it may: the triggers dropped."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for name in ("no_update", "no_delete", "in_order"):
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        connection.execute(statement, arguments)
    finally:
        connection.close()


def stored(path):
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute("SELECT * FROM records ORDER BY sequence").fetchall()
    finally:
        connection.close()


# ---- keys -------------------------------------------------------------------------------------------------


def test_a_key_survives_saving_and_is_its_owners_alone(tmp_path, key):
    path = tmp_path / "ledger.key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = LedgerKey.load(path)
    assert loaded.public_key == key.public_key
    assert loaded.sign_head(1, b"h" * 32) == key.sign_head(1, b"h" * 32)
    assert os.listdir(tmp_path) == ["ledger.key"]  # noqa: PTH208 - names are what is compared


def test_a_key_is_never_overwritten_nor_read_where_others_can_read_it(tmp_path, key):
    path = tmp_path / "ledger.key"
    key.save(path)
    with pytest.raises(LedgerError, match="move it away"):
        LedgerKey.generate().save(path)
    assert LedgerKey.load(path).public_key == key.public_key
    path.chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        LedgerKey.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "ledger-key", "private_key": "zz"}', "null"])
def test_a_file_that_is_no_key_is_refused_and_not_quoted(tmp_path, text):
    path = tmp_path / "ledger.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(LedgerError, match=r"written by LedgerKey\.save") as caught:
        LedgerKey.load(path)
    assert caught.value.__cause__ is None


def test_a_key_shows_no_secret_and_cannot_be_pickled(tmp_path, key):
    key.save(tmp_path / "k")
    secret = json.loads((tmp_path / "k").read_text())["private_key"]
    assert secret not in repr(key)
    assert key.public_key.hex() in repr(key)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)


def test_a_head_is_signed_under_a_domain_of_its_own():
    assert head_bytes(1, b"h").startswith(b"privopt dp ledger head 1\x00")
    assert head_bytes(1, b"h") != head_bytes(2, b"h")


# ---- two phases -------------------------------------------------------------------------------------------


def test_a_reservation_counts_before_it_is_committed_and_afterwards(ledger):
    reservation = ledger.reserve("icu", EVENT, run="r1")
    assert reservation == Reservation(2, "icu", EVENT, "r1")
    assert ledger.events("icu", "r1") == [EVENT]
    ledger.commit(reservation)
    assert ledger.events() == [EVENT]
    assert ledger.releases("r1") == [reservation]


def test_a_void_reservation_counts_no_more(ledger):
    ledger.void(ledger.reserve("icu", EVENT, run="r1"))
    assert ledger.events() == []
    assert ledger.spent("icu", 1e-5).value == 0.0


@pytest.mark.parametrize("first", ["commit", "void"])
@pytest.mark.parametrize("second", ["commit", "void"])
def test_a_reservation_is_settled_once(ledger, first, second):
    reservation = ledger.reserve("icu", EVENT, run="r1")
    getattr(ledger, first)(reservation)
    with pytest.raises(LedgerError, match=f"reservation 2, which is {first}"):
        getattr(ledger, second)(reservation)
    ledger.verify()
    assert len(ledger.events()) == (first == "commit")


def test_a_reservation_of_another_ledger_is_refused(ledger):
    ledger.reserve("icu", EVENT, run="r1")
    with pytest.raises(LedgerError, match="got another, 2"):
        ledger.commit(Reservation(2, "icu", EVENT, "r2"))


def test_releases_are_those_of_a_run_above_a_number(ledger):
    first = ledger.reserve("icu", EVENT, run="r1")
    ledger.reserve("icu", EVENT, run="r2")
    void = ledger.reserve("icu", EVENT, run="r1")
    last = ledger.reserve("lab", EVENT, run="r1")
    ledger.void(void)
    assert ledger.releases("r1") == [first, last]
    assert ledger.releases("r1", dataset="icu") == [first]
    assert ledger.releases("r1", after=first.sequence) == [last]
    assert len(ledger.events("icu")) == 2
    assert len(ledger.events(run="r1")) == 2


def test_what_was_spent_is_what_the_accountant_says(ledger):
    step = Poisson(0.01, Gaussian(1.0))
    for count in (400, 600):
        ledger.reserve("icu", Repeated(step, count), run=f"r{count}")
    spent = ledger.spent("icu", 1e-5)
    assert round(spent.value, 3) == 1.828
    assert (spent.delta, spent.by) == (1e-5, "PLD")
    # By dp-accounting itself, apart from our accountant.
    pld = privacy_loss_distribution.from_gaussian_mechanism(1.0, sampling_prob=0.01).self_compose(400)
    assert ledger.spent("icu", 1e-5, run="r400").value == pytest.approx(
        pld.get_epsilon_for_delta(1e-5), abs=2e-3
    )
    assert ledger.spent("icu", 1e-5, by="RDP").value >= spent.value
    assert ledger.spent("unknown", 1e-5).value == 0.0


def test_another_relation_for_the_same_data_is_refused_and_priced_with_its_own(ledger):
    ledger.reserve("icu", Gaussian(2.0), run="r1", neighboring=Neighboring.REPLACE_ONE)
    assert ledger.spent("icu", 1e-5).value == epsilon(Gaussian(1.0), 1e-5)
    with pytest.raises(LedgerError, match="unit and relation"):
        ledger.reserve("icu", Gaussian(2.0), run="r1")
    with pytest.raises(LedgerError, match="unit and relation"):
        ledger.reserve("icu", Gaussian(2.0), run="r1", unit="client", neighboring=Neighboring.REPLACE_ONE)
    assert len(ledger.events()) == 1


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 257, "\ud800"])
def test_bad_names_are_refused(ledger, name):
    with pytest.raises(ValueError, match="printable"):
        ledger.reserve(name, EVENT, run="r1")
    with pytest.raises(ValueError, match="Expected run"):
        ledger.reserve("icu", EVENT, run=name)


def test_only_events_are_reserved(ledger):
    with pytest.raises(TypeError, match="Expected an event"):
        ledger.reserve("icu", EVENT.to_dict(), run="r1")


# ---- budgets ----------------------------------------------------------------------------------------------


def fill(reserve, limit=500, error=PrivacyBudgetExceeded):
    """Reserve until it is refused; returns how many were not, and the refusal."""
    for count in range(limit):
        try:
            reserve(count)
        except error as refusal:
            return count, refusal
    raise AssertionError("Nothing stopped it.")


def test_a_run_stops_at_the_last_release_that_its_budget_allows(ledger, tmp_path):
    ledger.set_run_budget("icu", run="r1", epsilon=6.0, delta=1e-3)
    count, refusal = fill(lambda _: ledger.reserve("icu", EVENT, run="r1"))
    message = str(refusal)
    assert epsilon(Repeated(EVENT.event, 5 * count), 1e-3) <= 6.0
    assert epsilon(Repeated(EVENT.event, 5 * count + 5), 1e-3) > 6.0
    assert "run 'r1'" in message
    assert "of ε = 6 left" in message
    assert len(stored(tmp_path / "ledger.sqlite")) == 2 + count, "A refused release was written."
    ledger.reserve("icu", EVENT, run="r2")  # another run is not bound by it
    ledger.verify()


def test_the_budget_of_a_run_is_set_again_alike_and_never_changed(ledger, tmp_path):
    ledger.set_run_budget("icu", run="r1", epsilon=4, delta=1e-3)
    ledger.set_run_budget("icu", run="r1", epsilon=4.0, delta=1e-3)
    assert len(stored(tmp_path / "ledger.sqlite")) == 2
    with pytest.raises(LedgerError, match="Start a new run"):
        ledger.set_run_budget("icu", run="r1", epsilon=5.0, delta=1e-3)
    ledger.set_run_budget("lab", run="r1", epsilon=5.0, delta=1e-3)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-6), (2.0, 1e-5), (8.0, 1e-3), (30.0, 1e-5)])
def test_the_filter_of_a_data_set_keeps_what_it_promises_over_all_runs(ledger, epsilon, delta):
    ledger.set_budget("icu", epsilon=epsilon, delta=delta)
    event = Repeated(Poisson(0.05, Gaussian(1.0)), 50)
    count, refusal = fill(lambda n: ledger.reserve("icu", event, run=f"r{n % 3}"))
    assert f"of ε = {epsilon:g} left" in str(refusal)
    # The filter is never looser than the tight price, and not wasteful.
    spent = ledger.spent("icu", delta).value
    assert spent <= epsilon
    if count > 5:
        assert spent > epsilon / 2


def test_the_budget_of_a_data_set_is_raised_by_a_new_record_at_the_same_order(ledger, tmp_path):
    ledger.set_budget("icu", epsilon=0.5, delta=1e-5, order=4)
    with pytest.raises(PrivacyBudgetExceeded, match=r"`privopt ledger budget ledger\.sqlite --dataset icu`"):
        ledger.reserve("icu", EVENT, run="r1")
    with pytest.raises(PrivacyParameterError, match=r"fixed \(4\), got 5"):
        ledger.set_budget("icu", epsilon=10.0, delta=1e-5, order=5)
    ledger.set_budget("icu", epsilon=10.0, delta=1e-5)
    ledger.reserve("icu", EVENT, run="r1")
    ledger.set_budget("icu", epsilon=0.5, delta=1e-5)
    with pytest.raises(PrivacyBudgetExceeded, match=r"has 0 of ε = 0\.5 left"):
        ledger.reserve("icu", EVENT, run="r1")
    bodies = [json.loads(row[1]) for row in stored(tmp_path / "ledger.sqlite")]
    orders = {body["order"] for body in bodies if body["kind"] == "budget"}
    assert orders == {4.0}
    with pytest.raises(PrivacyParameterError, match="order=1"):
        ledger.set_budget("lab", epsilon=1.0, delta=1e-5, order=1)


def test_the_order_of_a_filter_may_not_be_named_after_the_first_reservation(ledger):
    ledger.void(ledger.reserve("icu", EVENT, run="r1"))  # nothing was released
    ledger.set_budget("lab", epsilon=1.0, delta=1e-5, order=7)
    ledger.reserve("icu", EVENT, run="r1")
    with pytest.raises(PrivacyParameterError, match="before its first reservation, got order=7"):
        ledger.set_budget("icu", epsilon=10.0, delta=1e-5, order=7)
    ledger.set_budget("icu", epsilon=10.0, delta=1e-5)  # its own order, which follows from the budget


def test_a_clip_norm_is_kept_in_the_signed_record(ledger, tmp_path):
    assert ledger.reserve("icu", EVENT, run="r1", clip_norm=0.5).clip_norm == 0.5
    assert ledger.reserve("icu", EVENT, run="r1").clip_norm is None
    bodies = [json.loads(row[1]) for row in stored(tmp_path / "ledger.sqlite")]
    assert [body.get("clip_norm") for body in bodies if body["kind"] == "reserve"] == [0.5, None]
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(PrivacyParameterError, match="clip_norm"):
            ledger.reserve("icu", EVENT, run="r1", clip_norm=wrong)


def test_without_a_budget_everything_is_kept_and_with_one_the_unpriced_is_refused(ledger):
    ledger.reserve("icu", Unpriced("a plot"), run="r1")
    with pytest.raises(UnsupportedEvent):
        ledger.spent("icu", 1e-5)
    ledger.set_run_budget("lab", run="r1", epsilon=1.0, delta=1e-5)
    with pytest.raises(UnsupportedEvent):
        ledger.reserve("lab", Unpriced("a plot"), run="r1")
    ledger.set_budget("ward", epsilon=1.0, delta=1e-5)
    with pytest.raises(UnsupportedEvent):
        ledger.reserve("ward", Unpriced("a plot"), run="r1")
    assert len(ledger.events()) == 1


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (float("nan"), 1e-5), (float("inf"), 1e-5), (1, 0), (1, 1)]
)
def test_a_budget_that_promises_nothing_is_refused(ledger, epsilon, delta):
    with pytest.raises(PrivacyParameterError):
        ledger.set_run_budget("icu", run="r1", epsilon=epsilon, delta=delta)
    with pytest.raises(PrivacyParameterError):
        ledger.set_budget("icu", epsilon=epsilon, delta=delta)


@pytest.mark.parametrize("epsilon", [4.0, 1e9])
def test_no_noise_passes_every_budget(ledger, epsilon):
    ledger.set_run_budget("icu", run="r1", epsilon=epsilon, delta=1e-5)
    with pytest.raises(PrivacyBudgetExceeded):
        ledger.reserve("icu", Gaussian(0.0), run="r1")


# ---- the file ---------------------------------------------------------------------------------------------


def test_a_ledger_outlives_its_object(tmp_path, key):
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, key) as ledger:
        reservation = ledger.reserve("icu", EVENT, run="r1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Ledger.open(str(path), key) as ledger:
        assert ledger.releases("r1") == [reservation]
        ledger.commit(reservation)
        ledger.verify()
        assert ledger.public_key == key.public_key


def test_another_key_does_not_open_it(tmp_path, key):
    Ledger.open(tmp_path / "l", key).close()
    with pytest.raises(LedgerError, match="the key that it was begun with"):
        Ledger.open(tmp_path / "l", LedgerKey.generate())


def test_a_closed_ledger_says_so(tmp_path, key):
    ledger = Ledger.open(tmp_path / "l", key)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="was closed"):
        ledger.events()


def test_a_ledger_shows_and_gives_no_secret(tmp_path, key, ledger):
    key.save(tmp_path / "k")
    secret = json.loads((tmp_path / "k").read_text())["private_key"]
    assert secret not in repr(ledger)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(ledger)
    ledger.reserve("icu", EVENT, run="r1")
    ledger.export(tmp_path / "e.json")
    assert secret not in (tmp_path / "e.json").read_text()
    assert bytes.fromhex(secret) not in (tmp_path / "ledger.sqlite").read_bytes()


def test_the_table_is_append_only(ledger, tmp_path):
    ledger.reserve("icu", EVENT, run="r1")
    connection = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    try:
        for statement in (
            "UPDATE records SET hash = ''",
            "DELETE FROM records",
            "DELETE FROM records WHERE sequence = 2",
            "INSERT OR REPLACE INTO records VALUES (1, x'', '', x'')",
            "INSERT INTO records VALUES (9, x'', '', x'')",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    finally:
        connection.close()
    ledger.verify()


def test_every_commit_is_fully_synced(ledger):
    connection = ledger._file._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.mark.parametrize("content", [b"not a ledger" * 100, b"SQLite format 3\x00" + b"\xff" * 500])
def test_a_file_that_is_no_ledger_is_refused(tmp_path, key, content):
    path = tmp_path / "l"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="Expected a ledger"):
        Ledger.open(path, key)
    assert path.read_bytes() == content


def test_another_databases_file_is_refused(tmp_path, key):
    connection = sqlite3.connect(tmp_path / "l")
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(LedgerError, match="no such table"):
        Ledger.open(tmp_path / "l", key)


def test_a_file_cut_off_by_a_crash_at_the_first_instruction_opens(tmp_path, key):
    (tmp_path / "l").touch(mode=0o600)
    with Ledger.open(tmp_path / "l", key) as ledger:
        ledger.verify()


def test_a_missing_folder_is_a_file_system_error(tmp_path, key):
    with pytest.raises(FileNotFoundError):
        Ledger.open(tmp_path / "none" / "l", key)


def test_no_space_left_is_said_and_nothing_is_counted(ledger, key, tmp_path):
    ledger.reserve("icu", EVENT, run="r1")
    connection = ledger._file._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    _, refusal = fill(lambda _: ledger.reserve("icu", Unpriced("x" * 2000), run="r1"), error=OSError)
    assert refusal.errno == errno.ENOSPC
    counted = len(ledger.events())
    ledger.verify()
    with Ledger.open(tmp_path / "ledger.sqlite", key) as again:
        assert len(again.events()) == counted
        again.reserve("icu", EVENT, run="r1")
        again.verify()


# ---- several writers --------------------------------------------------------------------------------------


def test_two_objects_see_each_other_and_share_one_budget(tmp_path, key):
    with Ledger.open(tmp_path / "l", key) as one, Ledger.open(tmp_path / "l", key) as two:
        one.set_run_budget("icu", run="r1", epsilon=5.0, delta=1e-3)
        fill(lambda n: (one, two)[n % 2].reserve("icu", EVENT, run="r1"))
        assert one.releases("r1") == two.releases("r1")
        assert one.spent("icu", 1e-3).value <= 5.0
        one.verify()
        two.verify()


def test_threads_take_turns(ledger):
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(ledger.reserve("icu", EVENT, run=f"r{n}")))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.sequence for r in found) == list(range(2, 10))
    ledger.verify()


def test_a_fork_must_open_its_own(ledger, monkeypatch):
    pid = os.getpid()
    monkeypatch.setattr("dp.storage.os.getpid", lambda: pid + 1)
    with pytest.raises(LedgerError, match="Open it again"):
        ledger.reserve("icu", EVENT, run="r1")


# ---- damage -----------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path, key):
    """A closed ledger of seven records; returns how to damage it and see which record is named."""
    path = tmp_path / "l"
    with Ledger.open(path, key) as ledger:
        for _ in range(3):
            ledger.commit(ledger.reserve("icu", EVENT, run="r1"))

    def found(statement, *arguments):
        rewrite(path, statement, *arguments)
        with pytest.raises(LedgerError) as caught, Ledger.open(path, key) as opened:
            opened.verify()
        return caught.value.record

    found.rows = stored(path)
    return found


def body_with(row, **changes):
    return json.dumps(json.loads(row[1]) | changes, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("number", range(1, 8))
def test_an_altered_record_is_named(damaged, number):
    row = damaged.rows[number - 1]
    body = body_with(row, time="1970")
    assert damaged("UPDATE records SET body = ? WHERE sequence = ?", body, number) == number


@pytest.mark.parametrize("number", range(1, 8))
def test_an_altered_record_with_its_hash_made_to_fit_is_named(damaged, number):
    body = body_with(damaged.rows[number - 1], time="1970")
    sql = "UPDATE records SET body = ?, hash = ? WHERE sequence = ?"
    assert damaged(sql, body, hash_body(body), number) == number


@pytest.mark.parametrize("number", range(1, 8))
def test_a_swapped_signature_is_named(damaged, number):
    other = damaged.rows[number % 7][3]
    assert damaged("UPDATE records SET signature = ? WHERE sequence = ?", other, number) == number


@pytest.mark.parametrize("number", range(1, 7))
def test_a_removed_record_is_named(damaged, number):
    assert damaged("DELETE FROM records WHERE sequence = ?", number) == number


def test_an_inserted_record_is_named(damaged):
    row = damaged.rows[-1]
    assert damaged("INSERT INTO records VALUES (8, ?, ?, ?)", *row[1:]) == 8


@pytest.mark.parametrize("value", [None, 7, "text", b"", b"\xff"])
@pytest.mark.parametrize("column", ["body", "hash", "signature"])
def test_a_value_of_any_other_kind_is_named(damaged, column, value):
    if value is None:
        value = 1.5
    assert damaged(f"UPDATE records SET {column} = ? WHERE sequence = 4", value) == 4


def test_a_ledger_put_back_while_in_use_is_found(ledger, tmp_path):
    ledger.reserve("icu", EVENT, run="r1")
    last = ledger.reserve("icu", EVENT, run="r1")
    rewrite(tmp_path / "ledger.sqlite", "DELETE FROM records WHERE sequence = ?", last.sequence)
    for use in (ledger.events, ledger.verify, lambda: ledger.reserve("icu", EVENT, run="r1")):
        with pytest.raises(LedgerError, match="put back or replaced") as caught:
            use()
        assert caught.value.record == last.sequence


def test_what_another_process_wrote_without_the_key_is_not_taken(ledger, tmp_path):
    ledger.reserve("icu", EVENT, run="r1")
    row = stored(tmp_path / "ledger.sqlite")[-1]
    body = body_with(row, sequence=3, previous=row[2])
    rewrite(
        tmp_path / "ledger.sqlite", "INSERT INTO records VALUES (3, ?, ?, ?)", body, hash_body(body), row[3]
    )
    for _ in range(2):
        with pytest.raises(LedgerError, match="not signed") as caught:
            ledger.reserve("icu", EVENT, run="r1")
        assert caught.value.record == 3


# ---- records ----------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_bytes_that_are_no_record_are_refused(body):
    with pytest.raises(LedgerError):
        Record.from_bytes(body)


def test_records_are_read_in_canonical_form_only(ledger, tmp_path):
    ledger.reserve("icu", EVENT, run="r1")
    body = stored(tmp_path / "ledger.sqlite")[1][1]
    assert Record.from_bytes(body).to_bytes() == body
    assert json.loads(body)["event"] == EVENT.to_dict()
    for other in (body + b" ", body.replace(b":2,", b": 2,"), body.replace(b"0.2", b"0.20")):
        if other != body:
            with pytest.raises(LedgerError):
                Record.from_bytes(other)


def test_a_fork_of_the_parent_does_not_close_its_file(ledger):
    _close(ledger._file._connection, os.getpid() + 1)
    ledger.reserve("icu", EVENT, run="r1")


def test_a_round_far_from_its_budget_is_not_priced_by_the_slow_accountant(ledger, monkeypatch):
    ledger.set_run_budget("icu", run="r1", epsilon=8.0, delta=1e-5)
    priced = []
    slow = accounting._pld_epsilon
    monkeypatch.setattr(accounting, "_pld_epsilon", lambda *args: priced.append(args) or slow(*args))
    for _ in range(20):
        ledger.commit(ledger.reserve("icu", Poisson(0.013, Gaussian(1.3)), run="r1"))
    assert not priced
    # Where the fast one says no, the tight one decides.
    noise = next(z / 1000 for z in range(1000, 0, -1) if epsilon(Gaussian(z / 1000), 1e-5, by="RDP") > 7.5)
    ledger.set_run_budget("icu", run="r2", epsilon=7.5, delta=1e-5)
    ledger.reserve("icu", Gaussian(noise), run="r2")
    assert priced
    assert epsilon(Gaussian(noise), 1e-5) <= 7.5
