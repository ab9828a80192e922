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
    MAX_CLIENTS,
    Advert,
    Agreement,
    Consistency,
    Delivery,
    Masked,
    Offer,
    RosterMessage,
    Shares,
    Survivors,
    Unmask,
    _digest,
    _signed,
    from_bits,
    is_signed,
    open_sealed,
    seal,
    signature_of,
    to_bits,
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
    degree=0,
    cipher="AES-128",
    hybrid=False,
)
ADVERT = Advert(
    **HEAD,
    sender="c0",
    offer=bytes(32),
    mask_key=b"\x01" * 32,
    transport_key=b"\x02" * 32,
    mask_kem=b"",
    transport_kem=b"",
    context=bytes(32),
    same={"model": bytes(32)},
    public={"note": "hi", "x": 1.5, "y": 3, "z": True},
    public_bytes={"blob": b"abc"},
)
MASKED = Masked(**HEAD, sender="c0", roster=bytes(32), start=0, receipts=b"r" * 16)
TAIL = np.arange(4, dtype=np.uint64)
ABOUT = {**HEAD, "roster": bytes(32)}
SEALED = {
    Offer: seal(SERVER, OFFER)[0],
    Advert: seal(CLIENT, ADVERT)[0],
    RosterMessage: seal(SERVER, RosterMessage(**HEAD, sender="", adverts=[b"x", b"y"]))[0],
    Shares: seal(CLIENT, Shares(**ABOUT, sender="c0", seed=bytes(32)), TAIL)[0],
    Delivery: seal(SERVER, Delivery(**ABOUT, sender="", present=b"\x05"), TAIL)[0],
    Masked: seal(CLIENT, MASKED, TAIL)[0],
    Survivors: seal(SERVER, Survivors(**ABOUT, sender="", survivors=b"\x07"))[0],
    Consistency: seal(CLIENT, Consistency(**ABOUT, sender="c0", survivors=bytes(32)))[0],
    Agreement: seal(SERVER, Agreement(**ABOUT, sender="", signers=b"\x07"), TAIL)[0],
    Unmask: seal(CLIENT, Unmask(**ABOUT, sender="c0", survivors=bytes(32)), TAIL)[0],
}
WITH_TAIL = (Shares, Delivery, Masked, Agreement, Unmask)
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
    assert bytes(opened.tail) == (TAIL.tobytes() if kind in WITH_TAIL else b"")
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
    for version in (0, 1, 3, 255):
        refuse(b"SAG" + bytes([version]) + SEALED[Advert][4:])
    for kind, data in SEALED.items():
        for number in (*(n for n in KINDS.values() if n != KINDS[kind]), 10, 255):
            refuse(data[:4] + bytes([number]) + data[5:])


def test_the_kind_is_signed_even_where_no_other_kind_could_be_decoded():
    digests = {_digest(number, b"header", memoryview(b"tail")) for number in range(256)}
    assert len(digests) == 256


@pytest.mark.parametrize("kind", EVERY)
def test_moving_the_border_between_header_and_tail_is_refused(kind):
    length = int.from_bytes(SEALED[kind][69:73], "little")
    for other in (length - 1, length + 1, 0, 2**32 - 1):
        refuse(SEALED[kind][:69] + struct.pack("<I", other) + SEALED[kind][73:])


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind not in WITH_TAIL])
def test_a_signed_tail_where_none_belongs_is_refused(kind):
    message = open_sealed(SEALED[kind], (kind,), KEYS, 10_000).message
    signer = SERVER if message.sender == "" else CLIENT
    assert open_sealed(seal(signer, message)[0], (kind,), KEYS, 10_000).message == message
    refuse(seal(signer, message, b"x")[0])


def forged(kind, fields):
    """A validly signed message with an arbitrary header: what a malicious but listed client can send."""
    header = msgspec.msgpack.encode(fields)

    length = len(header).to_bytes(4, "little")
    digest = _digest(KINDS[kind], length + header, memoryview(b""))
    return MAGIC + bytes([KINDS[kind]]) + CLIENT.sign(_signed(digest)) + length + header


def fields_of(message, **changes):
    values = {field: getattr(message, field) for field in message.__struct_fields__}
    return list({**values, **changes}.values())


def advert_fields(**changes):
    return fields_of(ADVERT, **changes)


def test_the_forger_of_these_tests_can_forge_a_good_message():
    assert open_sealed(forged(Advert, advert_fields()), (Advert,), KEYS, 10_000).message == ADVERT
    assert open_sealed(forged(Masked, fields_of(MASKED)), (Masked,), KEYS, 10_000).message == MASKED


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Offer, {"capacity": 0}),
        (Offer, {"capacity": 2**31 + 1}),
        (Offer, {"min_clients": 0}),
        (Offer, {"threshold_fraction": 1.5}),
        (Offer, {"threshold_fraction": -0.1}),
        (Offer, {"threshold_fraction": None}),
        (Offer, {"degree": -2}),
        (Offer, {"degree": 3}),
        (Offer, {"degree": MAX_CLIENTS + 2}),
        (Offer, {"cipher": "AES-64"}),
        (Offer, {"hybrid": 1}),
        (Offer, {"hybrid": None}),
        (RosterMessage, {"adverts": b""}),
        (RosterMessage, {"adverts": ["text"]}),
        (RosterMessage, {"adverts": [bytes(2**16 + 1)]}),
        (Shares, {"roster": bytes(31)}),
        (Shares, {"seed": bytes(33)}),
        (Delivery, {"roster": b""}),
        (Delivery, {"present": "x"}),
        (Delivery, {"present": bytes(MAX_CLIENTS // 8 + 1)}),
        (Masked, {"start": -1}),
        (Masked, {"start": 2**48}),
        (Masked, {"start": 0.0}),
        (Masked, {"receipts": "text"}),
        (Masked, {"receipts": bytes(16 * MAX_CLIENTS + 1)}),
        (Survivors, {"roster": bytes(33)}),
        (Survivors, {"survivors": bytes(MAX_CLIENTS // 8 + 1)}),
        (Survivors, {"survivors": [1]}),
        (Consistency, {"survivors": bytes(31)}),
        (Consistency, {"survivors": None}),
        (Agreement, {"signers": bytes(MAX_CLIENTS // 8 + 1)}),
        (Agreement, {"signers": 7}),
        (Unmask, {"survivors": bytes(31)}),
        (Unmask, {"roster": None}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "".join(value),
)
def test_signed_fields_outside_their_range_are_refused_alike(kind, changes):
    message = open_sealed(SEALED[kind], (kind,), KEYS, 10_000).message
    assert open_sealed(forged(kind, fields_of(message, sender="c0")), (kind,), KEYS, 10_000)
    refuse(forged(kind, fields_of(message, sender="c0", **changes)), max_bytes=10**7)


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
        {"transport_key": bytes(31)},
        {"mask_kem": bytes(1185)},
        {"transport_kem": None},
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


@given(st.integers(1, 40), st.data())
def test_bits_name_the_members_and_nothing_else(size, data):
    names = [f"c{i:02}" for i in range(size)]
    members = data.draw(st.sets(st.sampled_from(names)))
    bits = to_bits(names, members)
    assert len(bits) == (size + 7) // 8
    assert sum(1 << names.index(name) for name in members) == int.from_bytes(bits, "little")
    assert from_bits(names, bits) == tuple(sorted(members))


def test_bits_of_another_length_or_with_padding_are_refused():
    names = [f"c{i}" for i in range(9)]
    good = to_bits(names, names[:2] + names[8:])
    assert from_bits(names, good) == ("c0", "c1", "c8")
    for bad in (b"", good[:1], good + b"\0", b"\0\0\0", good[:1] + b"\x03", good[:1] + b"\x81"):
        with pytest.raises(MessageError, match=REFUSAL):
            from_bits(names, bad)
    for unused in range(1, 8):
        with pytest.raises(MessageError, match=REFUSAL):
            from_bits(names, bytes([good[0], good[1] | 1 << unused]))


def test_a_signature_taken_out_of_a_message_is_that_of_its_content_alone():
    """What a client checks of its neighbours' signatures: they come without the messages they stood in."""
    message = Consistency(**ABOUT, sender="c0", survivors=bytes(32))
    sealed = SEALED[Consistency]
    for data in (sealed, bytearray(sealed), memoryview(sealed)):
        assert is_signed(message, signature_of(data), CLIENT.public_key)
    signature = signature_of(sealed)
    for field, value in (
        ("session", b"s" * 16),
        ("round", 4),
        ("sender", "c1"),
        ("roster", b"r" * 32),
        ("survivors", b"s" * 32),
    ):
        assert not is_signed(msgspec.structs.replace(message, **{field: value}), signature, CLIENT.public_key)
    assert not is_signed(message, signature, OTHER.public_key)
    for other in (signature[:-1], b"", bytes(64), signature_of(SEALED[Unmask])):
        assert not is_signed(message, other, CLIENT.public_key)
    # The same fields under another kind are another message.
    unmask = seal(CLIENT, Unmask(**ABOUT, sender="c0", survivors=bytes(32)))[0]
    assert not is_signed(message, signature_of(unmask), CLIENT.public_key)


def test_the_magic_and_kinds_are_stable():
    """A change of these is a change of the protocol's version."""
    assert MAGIC == b"SAG\x02"
    assert {kind.__name__: number for kind, number in KINDS.items()} == {
        "Offer": 0,
        "Advert": 1,
        "RosterMessage": 2,
        "Shares": 3,
        "Delivery": 4,
        "Masked": 5,
        "Survivors": 6,
        "Consistency": 7,
        "Agreement": 8,
        "Unmask": 9,
    }


def test_messages_of_the_first_version_are_refused():
    header = msgspec.msgpack.encode([bytes(16), 3, "c0", bytes(32)])
    length = len(header).to_bytes(4, "little")
    for kind in (4, 5):
        digest = _digest(kind, length + header, memoryview(b""))
        refuse(b"SAG\x01" + bytes([kind]) + CLIENT.sign(_signed(digest)) + length + header)
