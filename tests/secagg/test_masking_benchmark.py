"""What `benchmarks masking` compares with does what it is said to do, or the comparison is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import masking
from benchmarks.harness import Disagreement, Unavailable
from benchmarks.secagg_peers import DeclearnMasks, FlowerMasks, imported

PEERS = {"flwr": FlowerMasks, "declearn": DeclearnMasks}


@pytest.mark.parametrize("package", PEERS)
def test_masks_of_a_peer_cancel(package):
    pytest.importorskip(package)
    PEERS[package].verify()


@pytest.mark.parametrize(("package", "error"), [("flwr", 1), ("declearn", 2**40)])
def test_a_peer_whose_sum_is_wrong_is_found_out(package, error, monkeypatch):
    """By 2 of 2^32, or where values have 63 bits by 4e-6 of a value's unit."""
    pytest.importorskip(package)
    peer = PEERS[package]
    masked = peer.__call__
    monkeypatch.setattr(peer, "__call__", lambda self: np.array(masked(self), object) + error)
    with pytest.raises(Disagreement, match="do not cancel"):
        peer.verify()


def test_flowers_masks_that_are_missing_are_found_out(monkeypatch):
    pytest.importorskip("flwr")
    monkeypatch.setattr(FlowerMasks, "__call__", lambda self: self.values[0].astype(np.int64))
    with pytest.raises(Disagreement, match="do not cancel"):
        FlowerMasks.verify()


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(Unavailable, match=r"flwr.*pip install 'privopt\[bench\]'"):
        imported("flwr")


def test_two_threads_make_the_same_keystream_as_one(monkeypatch):
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(
        masking, "raw_keystream", lambda size, keys, start=0: made.append((start, start + size))
    )
    masking.raw_keystream_on_two(1_000_008, 3)
    assert sorted(made) == [(0, 500_000), (500_000, 1_000_008)]


def test_our_pair_of_clients_is_checked(monkeypatch):
    values = {"update": np.linspace(-9, 9, 1000, dtype=np.float32)}
    masking._verify_pair(values)
    monkeypatch.setattr(masking, "Mask", lambda key, sign: _Positive(key))
    with pytest.raises(Exception, match="masks did not cancel"):
        masking._verify_pair(values)


class _Positive:
    """A mask that is always added."""

    sign = 1

    def __init__(self, key: bytes) -> None:
        self.key = key


def test_cases_have_names_of_their_own_and_bars():
    names = [benchmark.case for benchmark in masking.cases()]
    assert len(set(names)) == len(names) == 14
    assert any("memory" in name for name in names)
