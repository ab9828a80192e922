"""R11, a stated non-goal: a client may send any words. What remains is what lanes are wide enough for."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import Encoding, Schema, counted, summed
from tests.secagg.parties import make_parties, run_round

N, SIZE, BOUND = 8, 5, 2.0
SCHEMA = Schema(x=summed(BOUND, shape=(SIZE,)), n=counted())
FAIR = {"x": [0.5] * SIZE, "n": 1}


def test_the_influence_of_a_client_is_at_most_its_bound():
    parties = make_parties(N, SCHEMA)
    poisoned = {"x": [1e30, -1e30, BOUND, -BOUND, 0.0], "n": 1}
    others = 0.5 * (N - 1)
    result = run_round(parties, [poisoned, *[FAIR] * (N - 1)])
    slack = N * SCHEMA["x"].quantum * (1 + 1e-9)
    wanted = np.array([BOUND, -BOUND, BOUND, -BOUND, 0.0]) + others
    assert np.abs(result.values["x"] - wanted).max() <= slack
    assert result.clipped == {"x": 2}, "and the server hears that somebody was clipped"


@pytest.mark.parametrize("seed", range(20))
def test_words_that_no_encoder_makes_stay_within_the_width_of_the_lanes(seed):
    """Any words at all: a lane of w bits decodes to a level within 2^w, so the sum to about n bounds."""
    encoding, rng = Encoding(SCHEMA, N), np.random.default_rng(seed)
    total = sum((encoding.encode(FAIR, rng) for _ in range(N - 1)), np.zeros(encoding.words, np.uint64))
    words = rng.integers(0, 2**64, encoding.words, dtype=np.uint64)
    words[:2] = 0, 1  # or the zero lane and the count lane would tell
    total += words
    run = encoding.runs[0]
    assert run.field == "x"
    most = (2**run.width - 1) * SCHEMA["x"].quantum
    found = encoding.decode(total, N).values["x"]
    assert np.abs(found).max() <= most
    assert most < 4 * N * BOUND, "a width of the next power of two, of a lane of twice the bound"


def test_words_that_no_encoder_makes_may_spoil_the_lanes_beside_theirs():
    """What is not promised: lanes carry into each other where a client sends more than a lane holds."""
    encoding, rng = Encoding(SCHEMA, N), np.random.default_rng(0)
    total = sum((encoding.encode(FAIR, rng) for _ in range(N)), np.zeros(encoding.words, np.uint64))
    before = encoding.decode(total.copy(), N).values["x"]
    run = encoding.runs[0]
    total[run.start] += np.uint64(2**run.width)  # one level of the second lane, by a carry
    after = encoding.decode(total, N).values["x"]
    changed = np.flatnonzero(before != after)
    assert changed.size == 1
    assert changed[0] >= run.words, "not the lane that was written to"


def test_the_zero_lane_tells_of_words_that_touch_it():
    encoding, rng = Encoding(SCHEMA, N), np.random.default_rng(0)
    total = sum((encoding.encode(FAIR, rng) for _ in range(N)), np.zeros(encoding.words, np.uint64))
    total[0] += np.uint64(1)
    with pytest.raises(ValueError, match="The zero lane of 8 clients is not zero"):
        encoding.decode(total, N)
