"""Statements: hashes that cannot be linked between rounds, and who is blamed for a difference."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from secagg import Identity, RoundAborted, Schema, counted, public, same
from secagg.cohort import (
    Statement,
    bind_beacon,
    differing,
    hash_context,
    hash_roster,
    hash_same,
    hash_survivors,
    public_keys,
    verify_alike,
)
from secagg.messages import Advert, open_sealed, seal


def test_hashes_differ_between_sessions_rounds_fields_and_values():
    contexts = {
        hash_context(session, number, context)
        for session, number, context in product((bytes(16), b"s" * 16), (1, 2), (b"", b"model"))
    }
    assert len(contexts) == 8
    values = {
        hash_same(session, number, field, value)
        for session, number, field, value in product(
            (bytes(16), b"s" * 16), (1, 2), ("a", "b"), ("1", 1, 1.0, True, b"1")
        )
    }
    assert len(values) == 2 * 2 * 2 * 5


def statement(context=b"c", **same):
    return Statement(context, same, {})


def test_everybody_alike_differs_in_nothing():
    assert differing({"a": statement(m=b"1"), "b": statement(m=b"1")}) == {}
    assert differing({}) == {}


def test_blame_falls_on_the_minority_or_on_all_when_nobody_can_tell():
    a, b, c = statement(m=b"1"), statement(m=b"2"), statement(b"other", m=b"1")
    assert differing({"x": a, "y": a, "z": b}) == {"field 'm'": {"z"}}
    assert differing({"x": a, "z": b}) == {"field 'm'": {"x", "z"}}
    assert differing({"x": a, "y": a, "z": c}) == {"the context": {"z"}}


def test_a_client_blames_whoever_differs_from_itself():
    a, b = statement(m=b"1"), statement(m=b"2")
    assert differing({"x": a, "y": b, "z": b}, mine=a) == {"field 'm'": {"y", "z"}}


def opened(name, **changes):
    """A verified advert of `name`, with keys of its own."""
    identity = Identity.generate(name)
    rng = np.random.default_rng(list(name.encode()))
    fields = {
        "offer": bytes(32),
        "mask_key": rng.bytes(32),
        "transport_key": rng.bytes(32),
        "mask_kem": b"",
        "transport_kem": b"",
        "context": bytes(32),
        "same": {"model": bytes(32)},
        "public": {"note": name},
        "public_bytes": {},
    }
    advert = Advert(session=bytes(16), round=1, sender=name, **{**fields, **changes})
    return open_sealed(seal(identity, advert)[0], (Advert,), {name: identity.public_key}, 10**5)


def test_the_roster_hash_covers_the_offer_and_every_advert_whatever_their_order():
    a, b, c = (opened(name) for name in "abc")
    right = hash_roster(b"offer", {"a": a, "b": b})
    assert hash_roster(b"offer", {"b": b, "a": a}) == right
    others = [
        hash_roster(b"other", {"a": a, "b": b}),
        hash_roster(b"offer", {"a": a}),
        hash_roster(b"offer", {"a": a, "b": b, "c": c}),
        hash_roster(b"offer", {"a": a, "b": opened("b", transport_key=b"t" * 32)}),
        hash_roster(b"offer", {}),
    ]
    assert len({right, *others}) == 6


def test_a_beacon_changes_the_roster_hash_and_has_enough_bytes():
    bound = {
        bind_beacon(bytes(32), bytes(16)),
        bind_beacon(bytes(32), bytes(17)),
        bind_beacon(b"", bytes(16)),
    }
    assert len(bound | {bytes(32)}) == 4
    assert bind_beacon(bytes(32), bytearray(16)) in bound
    for short in (b"", bytes(15)):
        with pytest.raises(ValueError, match="beacon of at least 16 bytes"):
            bind_beacon(bytes(32), short)
    for other in ("x" * 16, None):
        with pytest.raises(TypeError, match="beacon as bytes"):
            bind_beacon(bytes(32), other)


def test_a_set_of_survivors_is_hashed_for_its_roster():
    sets = {hash_survivors(roster, bits) for roster, bits in product((b"r", b"s"), (b"\x01", b"\x03", b""))}
    assert len(sets) == 6
    assert hash_survivors(b"r" + b"\x01", b"") not in sets, (
        "where one ends and the other begins is hashed too"
    )


SCHEMA = Schema(model=same(), note=public(), n=counted())


def alike(**adverts):
    verify_alike(7, SCHEMA, {name: each.message for name, each in adverts.items()})


def test_adverts_of_one_mind_pass():
    alike(a=opened("a"), b=opened("b"), c=opened("c", public={"note": "another"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"same": {}}, "did not declare the fields"),
        ({"same": {"model": bytes(32), "spy": bytes(32)}}, "did not declare the fields"),
        ({"public": {}}, "did not declare the fields"),
        ({"public_bytes": {"note": b"twice"}}, "did not declare the fields"),
        ({"same": {"model": b"\x01" * 32}}, r"field 'model': \['c'\]"),
        ({"context": b"\x01" * 32}, r"the context: \['c'\]"),
    ],
)
def test_whoever_differs_is_named(changes, said):
    with pytest.raises(RoundAborted, match=f"Round 7.*{said}") as info:
        alike(a=opened("a"), b=opened("b"), c=opened("c", **changes))
    assert info.value.blame == ("c",)


@pytest.mark.parametrize("mine", ["mask_key", "transport_key"])
@pytest.mark.parametrize("theirs", ["mask_key", "transport_key"])
def test_no_two_clients_may_state_one_key_even_for_different_purposes(mine, theirs):
    copied = getattr(opened("a").message, theirs)
    with pytest.raises(RoundAborted, match="'a' and 'c' share one key") as info:
        alike(a=opened("a"), b=opened("b"), c=opened("c", **{mine: copied}))
    assert info.value.blame == ("a", "c")


def test_nor_may_one_client_use_its_mask_key_to_seal_boxes():
    """Its mask key comes to light if it drops; boxes under it would be open then."""
    with pytest.raises(RoundAborted, match="share one key") as info:
        alike(a=opened("a"), b=opened("b", transport_key=opened("b").message.mask_key))
    assert info.value.blame == ("b",)


def test_encapsulation_keys_count_as_keys():
    kem = {"mask_kem": b"m" * 1184, "transport_kem": b"t" * 1184}
    assert len(public_keys(opened("a", **kem).message).parts()) == 4
    with pytest.raises(RoundAborted, match="'a' and 'b' share one key"):
        alike(a=opened("a", **kem), b=opened("b", mask_kem=b"x" * 1184, transport_kem=b"m" * 1184))
