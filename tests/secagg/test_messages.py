"""Messages: whatever is not exactly what a pinned party signed is one and the same refusal."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import Identity, MessageError, Schema, counted
from secagg.messages import (
    KINDS,
    MAGIC,
    Advert,
    Masked,
    Offer,
    RosterMessage,
    _digest,
    _signed,
    open_sealed,
    seal,
)

SERVER, CLIENT, OTHER = (Identity.generate(name) for name in ("server", "c0", "other"))
KEYS = {"": SERVER.public_key, "c0": CLIENT.public_key}
HEAD = {"session": bytes(16), "round": 3}
OFFER = Offer(
    **HEAD,
    sender="",
    schema=Schema(n=counted()).to_bytes(),
    capacity=5,
    min_clients=3,
    threshold_fraction=1.0,
    cipher="AES-128",
)
ADVERT = Advert(
    **HEAD,
    sender="c0",
    offer=bytes(32),
    mask_key=b"\x01" * 32,
    context=bytes(32),
    same={"model": bytes(32)},
    public={"note": "hi", "x": 1.5, "y": 3, "z": True},
    public_bytes={"blob": b"abc"},
)
MASKED = Masked(**HEAD, sender="c0", roster=bytes(32))
TAIL = np.arange(4, dtype=np.uint64)
SEALED = {
    Offer: seal(SERVER, OFFER)[0],
    Advert: seal(CLIENT, ADVERT)[0],
    RosterMessage: seal(SERVER, RosterMessage(**HEAD, sender="", adverts=[b"x", b"y"]))[0],
    Masked: seal(CLIENT, MASKED, TAIL)[0],
}
REFUSAL = "not one that a party of the roster signed"
EVERY = tuple(KINDS)


def refuse(data, kinds=EVERY, keys=None, max_bytes=10_000):
    with pytest.raises(MessageError, match=REFUSAL) as info:
        open_sealed(data, kinds, KEYS if keys is None else keys, max_bytes)
    assert info.value.sender is None
    assert info.value.__cause__ is None, "refusals all look alike"
    return str(info.value)


@pytest.mark.parametrize("kind", EVERY)
def test_a_message_comes_back_as_it_was(kind):
    opened = open_sealed(SEALED[kind], (kind,), KEYS, 10_000)
    assert type(opened.message) is kind
    assert bytes(opened.tail) == (TAIL.tobytes() if kind is Masked else b"")
    for data in (bytearray(SEALED[kind]), memoryview(SEALED[kind])):
        assert open_sealed(data, EVERY, KEYS, 10_000).digest == opened.digest


@pytest.mark.parametrize("kind", EVERY)
def test_a_flipped_bit_anywhere_is_refused(kind):
    for at in range(len(SEALED[kind])):
        for bit in (1, 0x80):
            data = bytearray(SEALED[kind])
            data[at] ^= bit
            refuse(bytes(data))


@pytest.mark.parametrize("kind", EVERY)
def test_every_truncation_and_any_addition_is_refused(kind):
    for length in range(len(SEALED[kind])):
        refuse(SEALED[kind][:length])
    refuse(SEALED[kind] + b"\0")
    refuse(b"\0" + SEALED[kind])


@pytest.mark.parametrize("kind", EVERY)
def test_a_message_over_the_limit_is_refused_unread(kind):
    refuse(SEALED[kind], max_bytes=len(SEALED[kind]) - 1)


@pytest.mark.parametrize("kind", EVERY)
def test_a_kind_that_is_not_awaited_is_refused(kind):
    refuse(SEALED[kind], kinds=tuple(k for k in EVERY if k is not kind))


def test_a_signature_of_another_key_is_refused():
    refuse(seal(OTHER, ADVERT)[0])
    refuse(seal(CLIENT, OFFER)[0])
    refuse(seal(OTHER, msgspec.structs.replace(ADVERT, sender="other"))[0])
    refuse(SEALED[Advert], keys={})


def test_a_signature_moved_to_another_message_is_refused():
    other = seal(CLIENT, msgspec.structs.replace(ADVERT, round=4))[0]
    refuse(other[:5] + SEALED[Advert][5:69] + other[69:])


def test_another_version_or_kind_under_the_same_signature_is_refused():
    refuse(b"SAG\x02" + SEALED[Advert][4:])
    refuse(SEALED[Masked][:4] + bytes([KINDS[Advert]]) + SEALED[Masked][5:])
    refuse(SEALED[Masked][:4] + b"\x03" + SEALED[Masked][5:])


def test_the_kind_is_signed_even_where_no_other_kind_could_be_decoded():
    digests = {_digest(number, b"header", memoryview(b"tail")) for number in range(256)}
    assert len(digests) == 256


def test_moving_the_border_between_header_and_tail_is_refused():
    length = int.from_bytes(SEALED[Masked][69:73], "little")
    for other in (length - 1, length + 1, 0, 2**32 - 1):
        refuse(SEALED[Masked][:69] + struct.pack("<I", other) + SEALED[Masked][73:])


def forged(kind, fields):
    """A validly signed message with an arbitrary header: what a malicious but listed client can send."""
    header = msgspec.msgpack.encode(fields)

    length = len(header).to_bytes(4, "little")
    digest = _digest(KINDS[kind], length + header, memoryview(b""))
    return MAGIC + bytes([KINDS[kind]]) + CLIENT.sign(_signed(digest)) + length + header


def advert_fields(**changes):
    values = {field: getattr(ADVERT, field) for field in Advert.__struct_fields__}
    return [{**values, **changes}[field] for field in Advert.__struct_fields__]


def test_the_forger_of_these_tests_can_forge_a_good_message():
    assert open_sealed(forged(Advert, advert_fields()), (Advert,), KEYS, 10_000).message == ADVERT


@pytest.mark.parametrize(
    "changes",
    [
        {"session": bytes(15)},
        {"session": bytes(17)},
        {"session": "x" * 16},
        {"round": -1},
        {"round": 2**53},
        {"round": 1.0},
        {"round": None},
        {"sender": 3},
        {"offer": bytes(31)},
        {"mask_key": bytes(33)},
        {"context": b""},
        {"same": {"model": bytes(31)}},
        {"same": {"": bytes(32)}},
        {"same": {"x" * 129: bytes(32)}},
        {"same": {3: bytes(32)}},
        {"same": []},
        {"public": {"x": None}},
        {"public": {"x": [1]}},
        {"public": {"x": b"bytes"}},
        {"public": {"x": "y" * 4097}},
        {"public": {"x": {"nested": 1}}},
        {"public_bytes": {"x": "text"}},
        {"public_bytes": {"x": bytes(4097)}},
    ],
    ids=str,
)
def test_signed_headers_of_another_form_are_refused_alike(changes):
    refuse(forged(Advert, advert_fields(**changes)), max_bytes=10**6)


@pytest.mark.parametrize(
    "header",
    [[], [1], {}, None, "x", advert_fields()[:-1], [*advert_fields(), 1], [[[[]]]], advert_fields()[::-1]],
    ids=lambda header: str(header)[:20],
)
def test_signed_headers_of_another_shape_are_refused_alike(header):
    refuse(forged(Advert, header))


def test_deep_nesting_is_refused():
    refuse(SEALED[Advert][:69] + struct.pack("<I", 5000) + b"\x91" * 5000)


def test_all_refusals_read_the_same():
    texts = {
        refuse(b""),
        refuse(SEALED[Advert][:-1]),
        refuse(seal(OTHER, ADVERT)[0]),
        refuse(forged(Advert, [1])),
        refuse(SEALED[Advert], kinds=(Offer,)),
    }
    assert len(texts) == 1


@pytest.mark.parametrize("data", [None, "text", 3, [1]])
def test_what_is_no_bytes_is_a_type_error(data):
    with pytest.raises(TypeError, match="Expected a message as bytes"):
        open_sealed(data, EVERY, KEYS, 10_000)


@given(st.binary(max_size=400))
@settings(max_examples=1_500)
def test_random_bytes_are_refused(data):
    refuse(data)


@given(st.sampled_from(EVERY), st.binary(max_size=300))
@settings(max_examples=1_500)
def test_random_headers_behind_a_good_frame_are_refused(kind, header):
    frame = MAGIC + bytes([KINDS[kind]]) + bytes(64) + len(header).to_bytes(4, "little")
    refuse(frame + header)


@given(st.sampled_from(EVERY), st.integers(0, 2**32))
@settings(max_examples=2_000)
def test_mutated_messages_are_refused(kind, seed):
    """Bytes replaced, removed, doubled or swapped at several places of a good message."""
    rng = np.random.default_rng(seed)
    data = bytearray(SEALED[kind])
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(data)))
        step = int(rng.integers(1, 20))
        match int(rng.integers(0, 4)):
            case 0:
                data[at] = int(rng.integers(0, 256))
            case 1:
                del data[at : at + step]
            case 2:
                data[at:at] = data[at : at + step]
            case _:
                data[at : at + step] = rng.bytes(step)
        if not data:
            break
    if bytes(data) != SEALED[kind]:
        refuse(bytes(data))
