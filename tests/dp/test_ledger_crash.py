"""Processes that are killed, and processes that write at once: nothing drawn goes uncounted.

A killed process is not a lost disk: that a commit is on disk when it returns rests on SQLite's full sync,
which test_ledger.py checks is on.
"""

from collections import Counter

import pytest

from dp.audit import audit_ledger
from dp.ledger import Ledger, LedgerKey
from tests.dp.ledger_children import finish, start


@pytest.fixture
def home(tmp_path):
    LedgerKey.generate().save(tmp_path / "ledger.key")
    return tmp_path


def opened(home):
    return Ledger.open(home / "ledger.sqlite", LedgerKey.load(home / "ledger.key"))


def test_fifty_kills_at_random_moments_leave_no_draw_uncounted_and_nothing_damaged(home):
    finish(start("kill", home, 50, 20261121))
    rounds = [tuple(map(int, line.split())) for line in (home / "rounds").read_text().splitlines()]
    drawn = [int(line) for line in (home / "drawn").read_text().split()]
    assert len(rounds) == 50
    assert len(set(drawn)) == len(drawn), "Two draws under one reservation."
    with opened(home) as ledger:
        ledger.verify()
        counted = {found.sequence for run in range(50) for found in ledger.releases(f"run-{run}")}
        uncommitted = counted - ledger._file.history.committed
        assert set(drawn) <= counted
        ledger.export(home / "export.json")
    # The test has power only where kills fell into work under way, some between a reservation and its commit.
    assert sum(lines > 0 for _, lines in rounds) >= 10
    assert len(uncommitted) >= 3, "Too few kills fell between reserve and commit."
    audit = audit_ledger(
        home / "export.json", client="c", public_key=None, run="none", delta=1e-3, recorded=[]
    )
    assert audit.chain
    assert audit.signature


def test_four_processes_write_one_ledger_from_its_first_record_on(home):
    children = [start("write", home, 25, name) for name in range(4)]
    for child in children:
        finish(child)
    with opened(home) as ledger:
        ledger.verify()
        assert [len(ledger.releases(f"run-{name}")) for name in range(4)] == [20] * 4
        assert ledger._file.history.sequence == 1 + 4 * 25 * 2


@pytest.mark.slow
def test_a_thousand_kills_among_sixteen_processes_lose_double_and_miss_no_event(home):
    finish(start("hammer", home, 1000, 7), timeout=1500)
    assert int((home / "kills").read_text()) >= 1000
    drawn = {}  # number of a reservation: whose, and which of its releases
    for path in home.glob("drawn-*"):
        for line in path.read_text().splitlines():
            sequence, count = map(int, line.split())
            assert sequence not in drawn, "Two draws under one reservation."
            drawn[sequence] = (f"run-{path.name.partition('-')[2]}", count)
    with opened(home) as ledger:
        ledger.verify()
        counted = {}
        for found in ledger._file.history.counted():
            counted[found.sequence] = (found.run, found.event.count)
        committed = set(ledger._file.history.committed)
        last = ledger.head().sequence
    assert drawn.items() <= counted.items(), "A draw that is not counted, or counted as another."
    assert len(set(counted.values())) == len(counted), "A release that is counted twice."
    # Whoever was not killed in between has every number from 1 on: none is lost.
    by_run = {}
    for run, count in counted.values():
        by_run.setdefault(run, []).append(count)
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in by_run.values())
    # At most the one release of each process that was under way has no draw, or no commit.
    assert committed <= set(drawn)
    for settled in (set(drawn), committed):
        under_way = Counter(run for number, (run, _) in counted.items() if number not in settled)
        assert max(under_way.values(), default=0) <= 1
    budgets = last - 1 - len(counted) - len(committed)
    assert 0 <= budgets <= 1 + 1015 // 7, "Records that nobody asked for."
    # Power: work went on all the time, and kills fell between a reservation and its commit.
    assert len(drawn) > 1000
    assert len(set(counted) - committed) >= 50
