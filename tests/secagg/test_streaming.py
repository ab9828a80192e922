"""Vectors in parts: encoded, masked, sent and summed without ever being whole in memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from secagg import ClientPhase, EncodingError, MessageError, PhaseError, RoundReused, Schema, counted, summed
from secagg.spool import Spool
from tests.secagg.parties import Parties, finish, make_parties, ready, run_round

SIZE = 5_000
SCHEMA = Schema(x=summed(1.0, shape=(SIZE,)), n=counted())


def values(n: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.uniform(-1, 1, SIZE), "n": i} for i in range(n)]


def send(parties: Parties, who: int, given: dict[str, object], part_words: int) -> int:
    client, sent = parties.clients[who], 0
    for message in client.submit_parts(given, part_words=part_words):
        assert parties.server.receive(message) == client.name
        sent += 1
    return sent


@pytest.mark.parametrize("part_words", [1, 7, 500, 100_000])
def test_parts_of_any_size_give_the_sum_of_whole_vectors(part_words, tmp_path):
    given = values(4)
    whole = run_round(make_parties(4, SCHEMA), given)
    parties = make_parties(4, SCHEMA, scratch=tmp_path)
    ready(parties)
    size = part_words if part_words > 1 else 300  # one word a message is tried on the last client only
    for i in range(3):
        assert send(parties, i, given[i], size) >= 1
    send(parties, 3, given[3], 1 if part_words == 1 else part_words)
    result = finish(parties)
    np.testing.assert_array_equal(result.values["x"], whole.values["x"])
    assert result.values["n"] == whole.values["n"]
    assert list(tmp_path.iterdir()) == [], "nothing stays on disk"


def test_whole_vectors_and_vectors_in_parts_add_up_in_one_round():
    given, parties = values(4), make_parties(4, SCHEMA)
    ready(parties)
    assert send(parties, 0, given[0], 400) > 2
    for i in (1, 2, 3):
        parties.server.receive(parties.clients[i].submit(given[i]))
    exact = sum(each["x"] for each in given)
    assert np.abs(finish(parties).values["x"] - exact).max() <= 4 / (2**15 - 1)


def test_parts_of_several_clients_may_come_in_between_one_another():
    given, parties = values(3), make_parties(3, SCHEMA)
    ready(parties)
    streams = {c.name: c.submit_parts(v, part_words=300) for c, v in zip(parties.clients, given, strict=True)}
    while streams:
        for name, stream in list(streams.items()):
            message = next(stream, None)
            if message is None:
                del streams[name]
            else:
                parties.server.receive(message)
    exact = sum(each["x"] for each in given)
    assert np.abs(finish(parties).values["x"] - exact).max() <= 3 / (2**15 - 1)


def test_a_client_that_stops_half_way_is_in_no_part_of_the_sum():
    given, parties = values(5), make_parties(5, SCHEMA)
    ready(parties)
    half = parties.clients[2].submit_parts(given[2], part_words=300)
    for _ in range(3):
        parties.server.receive(next(half))
    for i in (0, 1, 3, 4):
        send(parties, i, given[i], 300)
    assert parties.server.missing == ("c2",)
    late = next(half)
    result = finish(parties)
    assert result.survivors == ("c0", "c1", "c3", "c4")
    assert result.dropped == ("c2",)
    exact = sum(given[i]["x"] for i in (0, 1, 3, 4))
    assert np.abs(result.values["x"] - exact).max() <= 4 / (2**15 - 1)
    with pytest.raises(MessageError, match="no round is open"):
        parties.server.receive(late)


def test_parts_out_of_order_doubled_or_too_long_are_refused_and_change_nothing():
    given, parties = values(3), make_parties(3, SCHEMA)
    ready(parties)
    first, second, *rest = list(parties.clients[0].submit_parts(given[0], part_words=700))
    with pytest.raises(MessageError, match="expected words from 0 on"):
        parties.server.receive(second)
    parties.server.receive(first)
    with pytest.raises(MessageError, match="expected words from 700 on"):
        parties.server.receive(first)
    with pytest.raises(MessageError, match="expected words from 700 on"):
        parties.server.receive(rest[-1])
    for message in (second, *rest):
        parties.server.receive(message)
    with pytest.raises(MessageError, match="sent one before"):
        parties.server.receive(rest[-1])
    for i in (1, 2):
        send(parties, i, given[i], 700)
    exact = sum(each["x"] for each in given)
    assert np.abs(finish(parties).values["x"] - exact).max() <= 3 / (2**15 - 1)


def test_a_bad_value_anywhere_is_found_before_the_first_part_and_can_be_corrected():
    given, parties = values(3), make_parties(3, SCHEMA)
    ready(parties)
    bad = {**given[0], "x": np.where(np.arange(SIZE) == SIZE - 1, np.nan, given[0]["x"])}
    with pytest.raises(EncodingError, match="'x'"):
        parties.clients[0].submit_parts(bad, part_words=300)
    for i in range(3):
        send(parties, i, given[i], 300)
    assert finish(parties).values["n"] == 3


def test_masks_belong_to_one_vector_whether_whole_or_in_parts():
    given, parties = values(3), make_parties(3, SCHEMA)
    ready(parties)
    stream = parties.clients[0].submit_parts(given[0], part_words=300)
    with pytest.raises(RoundReused):
        parties.clients[0].submit(given[0])
    with pytest.raises(RoundReused):
        parties.clients[0].submit_parts(given[0])
    assert len(next(stream)) > 300 * 8


def test_a_stream_whose_round_is_over_sends_nothing_more():
    given, parties = values(4), make_parties(4, SCHEMA)
    ready(parties)
    stream = parties.clients[0].submit_parts(given[0], part_words=300)
    next(stream)
    parties.server.abort()
    ready(parties, 2)
    with pytest.raises(PhaseError, match="round 1"):
        next(stream)
    for i in range(4):
        send(parties, i, given[i], 300)
    assert finish(parties).survivors == ("c0", "c1", "c2", "c3"), "the new round is untouched"


def test_a_client_that_closes_its_stream_has_left_the_round():
    given, parties = values(4), make_parties(4, SCHEMA)
    ready(parties)
    stream = parties.clients[0].submit_parts(given[0], part_words=300)
    assert isinstance(stream, Iterator)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert parties.clients[0].phase.value == "idle"
    for i in (1, 2, 3):
        send(parties, i, given[i], 300)
    assert finish(parties).dropped == ("c0",)


def test_memory_is_bounded_by_the_part_at_the_client_and_at_the_server(tmp_path: Path):
    size = 4_000_000
    schema = Schema(x=summed(1.0, shape=(size,)))
    path = tmp_path / "values.f32"
    source = np.memmap(path, np.float32, "w+", shape=(size,))
    source[:] = np.linspace(-1, 1, size, dtype=np.float32)
    received = np.memmap(tmp_path / "sum.f64", np.float64, "w+", shape=(size,))
    parties = make_parties(3, schema, scratch=tmp_path)
    ready(parties)
    tracemalloc.start()
    for client in parties.clients:
        for message in client.submit_parts({"x": source}, part_words=1 << 16):
            parties.server.receive(message)
    for _ in range(2):
        messages = parties.server.advance()
        for client in parties.clients:
            parties.server.receive(client.receive(messages[client.name]))
    result = parties.server.result(out={"x": received})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The vector alone takes 11 MB a client and its sum 32 MB; tracemalloc sees no memory that maps a file.
    assert peak < 8e6
    assert np.shares_memory(result.values["x"], received)
    assert np.abs(received - 3 * source.astype(np.float64)).max() <= 3 / (2**15 - 1)


def test_a_spool_that_finds_no_room_for_its_file_says_so_and_nothing_else(tmp_path):
    with pytest.raises(FileNotFoundError):
        Spool(tmp_path / "missing")
    gc.collect()  # warnings are errors here: one from its finalizer would be, too


def test_whoever_took_the_last_part_may_let_the_iterator_go():
    """As ``zip`` and ``islice`` do: the server has the whole vector, so the client must stay in the round."""
    given, parties = values(3), make_parties(3, SCHEMA)
    ready(parties)
    count = len(list(range(0, parties.server._round.encoding.words, 700)))
    for client, each in zip(parties.clients, given, strict=True):
        for _, message in zip(range(count), client.submit_parts(each, part_words=700), strict=False):
            parties.server.receive(message)
        gc.collect()
        assert client.phase is ClientPhase.SUBMITTED
    exact = sum(each["x"] for each in given)
    assert np.abs(finish(parties).values["x"] - exact).max() <= 3 / (2**15 - 1)


def test_fields_may_be_named_as_for_a_whole_vector():
    given, parties = values(3), make_parties(3, SCHEMA)
    ready(parties)
    for client, each in zip(parties.clients, given, strict=True):
        for message in client.submit_parts(**each):
            parties.server.receive(message)
    assert finish(parties).values["n"] == 3
