"""Policies: what protects nobody cannot be written, and no offer can weaken one."""

from __future__ import annotations

import msgspec
import pytest

from secagg import Policy, PolicyError
from tests.secagg.test_messages import OFFER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_clients": 2}, "min_clients >= 3, got 2: a sum over two"),
        ({"min_clients": 2, "allow_three": True}, "min_clients >= 3, got 2"),
        ({"min_clients": 0}, "got 0"),
        ({"min_clients": 3}, "consent with allow_three=True"),
        ({"max_clients": 4}, r"max_clients in 5 \(min_clients\)..65536, got 4"),
        ({"max_clients": 2**17}, "got 131072"),
        ({"threshold_fraction": 0.5}, r"in \(0.5, 1\], got 0.5"),
        ({"threshold_fraction": 1.1}, "got 1.1"),
        ({"threshold_fraction": float("nan")}, "got nan"),
        ({"cipher": "AES-64"}, "'AES-64'"),
    ],
)
def test_policies_that_protect_nobody_are_refused(arguments, message):
    with pytest.raises(PolicyError, match=message):
        Policy(**arguments)


def test_small_cohorts_take_consent():
    assert Policy(min_clients=4).min_clients == 4
    assert Policy(min_clients=3, allow_three=True).min_clients == 3


def offer(**changes):
    return msgspec.structs.replace(OFFER, **{"capacity": 9, "min_clients": 5, **changes})


@pytest.mark.parametrize(
    ("policy", "changes", "message"),
    [
        ({}, {"min_clients": 4}, "min_clients=4, at least 5 wanted"),
        ({}, {"threshold_fraction": 0.6}, "threshold_fraction=0.600, at least 0.667 wanted"),
        ({}, {"threshold_fraction": float("nan")}, "threshold_fraction=nan"),
        ({"max_clients": 8}, {}, "capacity=9, at most 8 clients wanted"),
        ({}, {"capacity": 4}, "capacity=4, at least 5 clients wanted"),
        ({"cipher": "AES-256"}, {}, "cipher=AES-128, at least AES-256 wanted"),
    ],
)
def test_a_weaker_offer_is_refused_with_its_reason(policy, changes, message):
    Policy().verify_offer(offer())
    with pytest.raises(PolicyError, match=message):
        Policy(**policy).verify_offer(offer(**changes))


def test_all_reasons_are_given_at_once():
    with pytest.raises(PolicyError, match=r"min_clients=1.*; threshold_fraction=0.1.*"):
        Policy().verify_offer(offer(min_clients=1, threshold_fraction=0.1))


def test_a_stronger_offer_is_welcome():
    Policy().verify_offer(offer(min_clients=8, cipher="AES-256"))


@pytest.mark.parametrize("size", [0, 4, 10])
def test_rosters_outside_the_limits_are_refused(size):
    with pytest.raises(PolicyError, match=f"roster of 5..9 clients, got {size}"):
        Policy(max_clients=9).verify_cohort(1, size)
