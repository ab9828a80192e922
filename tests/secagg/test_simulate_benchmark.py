"""The benchmark's cheap peers pass for real ones, and its result is compared with the clear sum."""

from __future__ import annotations

import pytest

from benchmarks import secagg as benchmark
from benchmarks.harness import Disagreement


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_round_among_cheap_peers_releases_the_clear_sum(dropout: float) -> None:
    measured = benchmark.Round(20, 50, dropout).run()
    stages = {"advert", "shares", "delivery", "vector", "consistency", "unmask"}
    assert set(measured.client) == stages
    assert set(measured.server) == stages - {"delivery"} | {"offer", "result"}


def test_a_vector_that_is_no_part_of_the_clear_sum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = benchmark.Round(20, 5, 0.0)
    vectors = found._vectors

    def other_values(own: bytes, given: object) -> bytes:
        answer = vectors(own, given)
        found.clear = found.clear + 1
        return answer

    monkeypatch.setattr(found, "_vectors", other_values)
    with pytest.raises(Disagreement, match="not the clear one"):
        found.run()


def test_every_row_of_the_table_is_a_case() -> None:
    cases = [each.case for each in benchmark.cases()]
    rows = [case for case in cases if case.startswith("table")]
    assert len(rows) == 2 * 3 * 2
    assert len(cases) - len(rows) == sum(map(len, benchmark.GROWTH.values()))
    assert all((n, dropout) in benchmark.PAPER for n in (500, 1000) for dropout in (0.3,))
