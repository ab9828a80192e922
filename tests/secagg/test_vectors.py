"""Published answers, through our own wrappers; each once more with a byte flipped."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg import Identity, ephemeral
from secagg.ephemeral import _exchange as exchange
from secagg.errors import IdentityError, MessageError
from secagg.keys import hkdf, verify_signature
from secagg.masks import add_keystreams, keystream
from secagg.messages import KINDS, open_sealed
from tests.vectors import make_secagg_protocol as generator
from tests.vectors import verify_secagg_protocol as reference

VECTORS = Path(__file__).parents[1] / "vectors"


def cases(name):
    return json.loads((VECTORS / f"{name}.json").read_text())["cases"]


def unhex(case):
    return {key: bytes.fromhex(value) for key, value in case.items()}


def flipped(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("case", cases("x25519"))
def test_x25519_gives_the_rfc_secret(case):
    v = unhex(case)
    private = X25519PrivateKey.from_private_bytes(v["private"])
    assert exchange(private, v["public"]) == v["shared"]
    assert exchange(private, flipped(v["public"], 5)) != v["shared"]


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_x25519_refuses_points_of_low_order(point):
    with pytest.raises(IdentityError, match="low order"):
        exchange(X25519PrivateKey.generate(), point)
    with pytest.raises(reference.MismatchError, match="all-zero"):
        reference.x25519(bytes(range(32)), point)


@pytest.mark.parametrize("case", cases("ed25519"))
def test_ed25519_gives_the_rfc_signature(case):
    v = unhex(case)
    identity = Identity("rfc", v["private"])
    assert identity.public_key == v["public"]
    assert identity.sign(v["message"]) == v["signature"]
    assert verify_signature(v["public"], v["signature"], v["message"])
    assert not verify_signature(v["public"], flipped(v["signature"], 40), v["message"])
    assert not verify_signature(v["public"], v["signature"], v["message"] + b"x")
    assert not verify_signature(flipped(v["public"]), v["signature"], v["message"])


@pytest.mark.parametrize("case", cases("hkdf_sha256"))
def test_hkdf_gives_the_rfc_output(case):
    v = unhex(case)
    assert hkdf(v["secret"], v["info"], len(v["output"]), v["salt"] or None) == v["output"]
    assert hkdf(flipped(v["secret"]), v["info"], len(v["output"]), v["salt"] or None) != v["output"]
    assert hkdf(v["secret"], v["info"] + b"x", len(v["output"]), v["salt"] or None) != v["output"]


@pytest.mark.parametrize("case", cases("aes_ctr"))
def test_aes_ctr_gives_the_nist_ciphertext(case):
    v = unhex(case)
    start = int.from_bytes(v["counter"], "big")
    assert keystream(v["key"], start).update(v["plaintext"]) == v["ciphertext"]
    assert keystream(flipped(v["key"]), start).update(v["plaintext"]) != v["ciphertext"]
    # And as words that are added: NIST's keystream is plaintext xor ciphertext.
    words = np.zeros(8, np.uint64)
    add_keystreams(words, [(keystream(v["key"], start), 1)])
    stream = bytes(a ^ b for a, b in zip(v["plaintext"], v["ciphertext"], strict=True))
    assert words.astype("<u8").tobytes() == stream


@pytest.mark.parametrize("case", cases("x25519"))
def test_the_second_implementation_gives_the_rfc_secret(case):
    v = unhex(case)
    assert reference.x25519(v["private"], v["public"]) == v["shared"]


@pytest.mark.parametrize("case", cases("ed25519"))
def test_the_second_implementation_gives_the_rfc_signature(case):
    v = unhex(case)
    assert reference.ed25519_sign(v["private"], v["message"]) == v["signature"]
    assert reference.ed25519_verify(v["public"], v["signature"], v["message"])
    assert not reference.ed25519_verify(v["public"], flipped(v["signature"], 40), v["message"])
    assert not reference.ed25519_verify(v["public"], v["signature"], v["message"] + b"x")


@pytest.mark.parametrize("case", cases("hkdf_sha256"))
def test_the_second_implementation_gives_the_rfc_output(case):
    v = unhex(case)
    if not v["salt"]:
        assert reference.hkdf(v["secret"], v["info"], len(v["output"])) == v["output"]


@pytest.mark.parametrize("case", cases("aes_ctr"))
def test_the_second_implementation_gives_the_nist_ciphertext(case):
    v = unhex(case)
    start = int.from_bytes(v["counter"], "big")
    stream = reference.aes_ctr(v["key"], len(v["plaintext"]), start)
    assert reference.xor(v["plaintext"], stream) == v["ciphertext"]


@pytest.mark.parametrize("length", [0, 1, 16, 72])
def test_the_second_implementation_seals_and_opens_as_openssl_does(length):
    key, associated = bytes(range(32)), bytes(range(7 * length % 90))
    sealed = AESGCM(key).encrypt(bytes(12), bytes(range(length)), associated)
    assert reference.gcm_seal(key, bytes(range(length)), associated) == sealed
    assert reference.gcm_open(key, sealed, associated) == bytes(range(length))
    with pytest.raises(reference.MismatchError):
        reference.gcm_open(key, flipped(sealed, length), associated)


def test_the_second_implementation_and_openssl_agree_on_ml_kem():
    seed = bytes(range(64))
    private = MLKEM768PrivateKey.from_seed_bytes(seed)
    public = private.public_key().public_bytes_raw()
    assert reference.kem_key(seed).public == public
    secret, ciphertext = private.public_key().encapsulate()
    assert reference.kem_decapsulate(seed, ciphertext) == secret
    ciphertext, secret = reference.kem_encapsulate(public, bytes(32))
    assert private.decapsulate(ciphertext) == secret
    # A wrong ciphertext gives a secret, too: the same one, and another one.
    rejected = private.decapsulate(flipped(ciphertext, 700))
    assert reference.kem_decapsulate(seed, flipped(ciphertext, 700)) == rejected != secret


MSGPACK = [
    *(x + d for x in (0, 2**7, 2**8, 2**16, 2**32, -(2**5), -(2**7), -(2**15), -(2**31)) for d in (-1, 0)),
    *(2**64 - 1, -(2**63), True, False, 1.5, "", "é" * 15, "é" * 16, "a" * 255, "a" * 256, "a" * 2**16),
    *(b"", b"x" * 255, b"x" * 256, b"x" * 2**16, [1] * 15, [b"a"] * 16, [None] * 0, [0] * 2**16),
    *({str(i): [i] for i in range(n)} for n in (0, 15, 16, 2**8)),
]


@pytest.mark.parametrize("value", MSGPACK, ids=lambda value: f"{type(value).__name__}-{str(value)[:8]}")
def test_the_second_implementation_and_msgspec_agree_on_msgpack(value):
    encoded = msgspec.msgpack.encode(value)
    assert reference.packed(value) == encoded
    assert reference.unpacked(encoded) == value
    with pytest.raises((reference.MismatchError, *reference.MALFORMED)):
        reference.unpacked(encoded + b"\0")


SESSION, HASH = b"\xc4\x10" + bytes(16), b"\xc4\x20" + bytes(32)
CONSISTENCY = SESSION + b"\x07\xa2c0" + HASH + HASH
ADVERT = SESSION + b"\x07\xa2c0" + 3 * HASH + 2 * b"\xc4\0" + HASH
OFFER = b"\x9a" + SESSION + b"\x07\xa0\xc4\x01s"
REST_OF_OFFER = b"\0\xa7AES-128\xc2"
TWO_THIRDS = b"\xcb" + struct.pack(">d", 2 / 3)
REFUSED = {
    "a header that says it is longer": (7, b"\x95" + CONSISTENCY[:-1]),
    "a byte after the header": (7, b"\x95" + CONSISTENCY + b"\0"),
    "an entry too many": (7, b"\x96" + CONSISTENCY + b"\0"),
    "an entry too few": (7, b"\x94" + CONSISTENCY[:-34]),
    "text for bytes": (7, b"\x95\xb0" + CONSISTENCY[2:]),
    "a float for an integer": (7, b"\x95" + SESSION + b"\xcb" + struct.pack(">d", 7) + CONSISTENCY[19:]),
    "a round too large": (7, b"\x95" + SESSION + b"\xcf\0\x20" + bytes(6) + CONSISTENCY[19:]),
    "a hash too short": (7, b"\x95" + CONSISTENCY[:-34] + b"\xc4\x1f" + bytes(31)),
    "a field without a name": (1, b"\x9c" + ADVERT + b"\x81\xa0" + HASH + b"\x80\x80"),
    "a hash of a field too long": (1, b"\x9c" + ADVERT + b"\x81\xa1x\xc4\x21" + bytes(33) + b"\x80\x80"),
    "no value": (1, b"\x9c" + ADVERT + b"\x80\x81\xa1x\xc0\x80"),
    "a list for a value": (1, b"\x9c" + ADVERT + b"\x80\x81\xa1x\x90\x80"),
    "bytes among values that are none": (1, b"\x9c" + ADVERT + b"\x80\x81\xa1x\xc4\0\x80"),
    "text among bytes": (1, b"\x9c" + ADVERT + b"\x80\x80\x81\xa1x\xa0"),
    "a capacity of none": (0, OFFER + b"\0\5" + TWO_THIRDS + REST_OF_OFFER),
    "a fraction above one": (0, OFFER + b"\5\5\xcb" + struct.pack(">d", 1.5) + REST_OF_OFFER),
    "a fraction that is no number": (0, OFFER + b"\5\5\xcb\x7f\xf8" + bytes(6) + REST_OF_OFFER),
    "an odd degree": (0, OFFER + b"\5\5" + TWO_THIRDS + b"\3" + REST_OF_OFFER[1:]),
    "another cipher": (0, OFFER + b"\5\5" + TWO_THIRDS + REST_OF_OFFER.replace(b"128", b"192")),
    "a number for a truth value": (0, OFFER + b"\5\5" + TWO_THIRDS + REST_OF_OFFER[:-1] + b"\1"),
}


def signed(kind, header):
    """A message with this header, signed as it is; and the signer's public key."""
    body, identity = reference.u32(len(header)) + header, Identity("c0", bytes(32))
    digest = reference.message_digest(reference.KINDS[kind], body)
    signature = identity.sign(reference.L("secagg signed message", digest))
    return reference.MAGIC + bytes([kind]) + signature + body, identity.public_key


def opened(kind, header):
    data, key = signed(kind, header)
    return open_sealed(data, tuple(KINDS), {"c0": key, "": key}, 10**6).message


def test_headers_made_by_hand_are_read_alike():
    """The good ones of which those below are changes."""
    for kind, header in (
        (7, b"\x95" + CONSISTENCY),
        (1, b"\x9c" + ADVERT + b"\x81\xa1x" + HASH + b"\x81\xa1y\xc3" + b"\x81\xa1z\xc4\0"),
        (0, OFFER + b"\5\5" + TWO_THIRDS + REST_OF_OFFER),
    ):
        message = reference.read_message(signed(kind, header)[0])
        ours = opened(kind, header)
        names = ours.__struct_fields__
        assert {name: getattr(ours, name) for name in names[3:]} == message.entries
        assert (ours.session, ours.round, ours.sender) == (message.session, message.round, message.sender)


@pytest.mark.parametrize(("kind", "header"), REFUSED.values(), ids=REFUSED)
def test_both_implementations_refuse(kind, header):
    with pytest.raises(MessageError):
        opened(kind, header)
    with pytest.raises((reference.MismatchError, *reference.MALFORMED)):
        reference.read_message(signed(kind, header)[0])


# The protocol ---------------------------------------------------------------------------------------------

PROTOCOL = cases("secagg_protocol")
ROUNDS = [case for case in PROTOCOL if case["check"] == "round"]
PARTS = [case for case in PROTOCOL if case["check"] != "round"]


def label(case):
    return f"{case['check']}, {case['name']}"


def leaves(value, path=()):
    """Where hexadecimal bytes stand in a case, four digits or more, and how many matter."""
    if isinstance(value, str) and re.fullmatch("([0-9a-f]{2}){2,}", value):
        # The second half of an ML-KEM seed says what a ciphertext that nobody made is opened to.
        yield path, 32 if path[-1] == "transport_kem" else len(value) // 2
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def with_changed_byte(case, path, at, change):
    """A copy of a case where one byte of one string of bytes is another."""
    changed = json.loads(json.dumps(case))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    data = bytearray.fromhex(inner[path[-1]])
    data[at] ^= change
    inner[path[-1]] = data.hex()
    return changed


def assert_refused(case, path, at, change):
    try:
        reference.verify(with_changed_byte(case, path, at, change))
    except reference.MismatchError:
        return
    pytest.fail(f"{label(case)}: byte {at} of {path} changed by {change}, and nobody noticed")


def test_the_package_makes_the_committed_vectors():
    # What differs is another protocol, which needs another version; or a freedom that the page leaves,
    # such as whose signatures a server passes on: then the second implementation accepts the file as it is.
    assert generator.text() == generator.PATH.read_text("utf-8")


def test_the_vectors_cover_every_kind_of_message_and_of_case():
    assert {case["check"] for case in PROTOCOL} == set(reference.CHECKS)
    assert {case["kind"] for case in PARTS if case["check"] == "message"} == set(reference.KINDS)
    for case in ROUNDS:
        sent = {reference.read_message(bytes.fromhex(entry["bytes"])).kind for entry in case["messages"]}
        assert sent == set(reference.KINDS)


@pytest.mark.parametrize("case", PROTOCOL, ids=label)
def test_the_second_implementation_accepts(case):
    reference.verify(case)


@pytest.mark.parametrize("case", PARTS, ids=label)
def test_the_second_implementation_refuses_each_part_with_a_changed_byte(case):
    random = Random(label(case))
    for path, size in leaves(case):
        assert_refused(case, path, random.randrange(size), random.randrange(1, 256))


def refused_in_random_places(case, times):
    """Half of the places are drawn among strings of bytes, so that short ones come up; half among bytes."""
    random, found = Random(label(case)), list(leaves(case))
    weights = [size for _, size in found]
    for i in range(times):
        path, size = random.choice(found) if i % 2 else random.choices(found, weights)[0]
        assert_refused(case, path, random.randrange(size), random.randrange(1, 256))


@pytest.mark.parametrize("case", [ROUNDS[0], ROUNDS[2]], ids=label)
def test_the_second_implementation_refuses_a_round_with_a_changed_byte(case):
    refused_in_random_places(case, 40)


@pytest.mark.slow
@pytest.mark.parametrize("case", ROUNDS, ids=label)
def test_the_second_implementation_refuses_rounds_with_bytes_changed_anywhere(case):
    refused_in_random_places(case, 100)


def info_without_config(self, purpose, names, publics):
    return INFO(dataclasses.replace(self, config=b""), purpose, names, publics)


def associated_with_the_other_first(self, sender, receiver):
    return ASSOCIATED(self, receiver, sender)


def contributions_crossed(secret, mine, peers, *rest):
    return PAIR_MASK_KEY(secret, (*mine[:2], peers[2]), (*peers[:2], mine[2]), *rest)


def self_mask_of_everybody(seed, name, *rest):
    return SELF_MASK_KEY(seed, "everybody", *rest)


INFO, ASSOCIATED = ephemeral.Binding.info, ephemeral.Binding.associated
PAIR_MASK_KEY, SELF_MASK_KEY = ephemeral.pair_mask_key, ephemeral.self_mask_key
OTHER_PROTOCOLS = {
    "ephemeral.Binding.info": info_without_config,
    "ephemeral.Binding.associated": associated_with_the_other_first,
    "ephemeral._NONCE": b"\1" + bytes(11),
    "pair_mask_key": contributions_crossed,
    "self_mask_key": self_mask_of_everybody,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_PROTOCOLS)
def test_a_protocol_that_agrees_with_itself_alone_is_noticed(name, monkeypatch):
    """Both sides of the package would derive the same, so that only these vectors can tell."""
    places = [name] if "." in name else [f"{module}.{name}" for module in ("sharing", "unmasking")]
    for place in places:
        monkeypatch.setattr(f"secagg.{place}", OTHER_PROTOCOLS[name])
    made = json.loads(generator.text())["cases"]
    assert made != PROTOCOL
    with pytest.raises(reference.MismatchError):
        list(map(reference.verify, made))
