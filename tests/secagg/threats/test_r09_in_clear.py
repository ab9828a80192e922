"""R9: what is sent beside the vector tells of one client what the vector hides."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from secagg import EncodingError, Schema, averaged, counted, public, summed
from secagg.masks import Masks
from tests.secagg.parties import make_parties, run_round
from tests.secagg.threats.attacker import THREE, Attacker
from tests.statistical import ALPHA, assert_rejects

SIZE = 20_000


def test_counts_that_are_declared_public_name_their_client():
    """What a schema declares public is public: the result lists it by client."""
    schema = Schema(x=summed(1.0), n=public())
    parties = make_parties(3, schema)
    sizes = [{"n": 100 + 7 * i} for i in range(3)]
    result = run_round(parties, [{"x": 0.5}] * 3, declared=sizes)
    assert result.public["n"] == {"c0": 100, "c1": 107, "c2": 114}


SCHEMA = Schema(x=summed(1.0, shape=(SIZE,)), loss=averaged(10.0, weight="n"), n=counted())


def constant(x: float, loss: float, n: int) -> dict:
    return {"x": np.full(SIZE, x), "loss": loss, "n": n}


def c0s_vector(values) -> tuple[Attacker, bytes]:
    """The words that c0 sends in a round of three."""
    parties = Attacker(3, SCHEMA, policy=THREE)
    parties.advertise(parties.offer())
    parties.share()
    parties.deliver()
    parties.submit({"c0": values})
    return parties, bytes(parties.now.vectors["c0"][0].tail)


def assert_uniform(words: bytes) -> None:
    """Chi-square of the frequencies of bytes."""
    counts = np.bincount(np.frombuffer(words, np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > ALPHA


def test_a_vector_without_masks_is_read(monkeypatch):
    monkeypatch.setattr(Masks, "apply", lambda self, words, *, threads=1: None)
    parties, vector = c0s_vector(constant(0.25, 1.5, 12_345))
    found = parties.learn(["c0"])
    assert found["n"] == 12_345
    assert abs(found["loss"] - 1.5) < 1e-3
    assert_rejects(assert_uniform, vector)


def test_values_counts_and_losses_are_all_under_the_mask():
    values = constant(0.25, 1.5, 12_345)
    parties, vector = c0s_vector(values)
    assert_uniform(vector)
    with pytest.raises(EncodingError, match="The zero lane of 1 clients is not zero: masks did not cancel"):
        parties.learn(["c0"])


def test_nothing_that_is_sent_depends_on_the_values_but_the_words_under_the_mask():
    """Adverts and boxes leave before there are values; of the vector's message only the words are new."""
    one, two = (c0s_vector(values) for values in (constant(0.0, 0.0, 0), constant(1.0, 10.0, 2**20)))
    heads = [parties.now.vectors["c0"][0].message for parties, _ in (one, two)]
    assert [type(head).__struct_fields__ for head in heads] == [
        ("session", "round", "sender", "roster", "start", "receipts")
    ] * 2
    assert [head.start for head in heads] == [0, 0]
    assert len(one[1]) == len(two[1])
