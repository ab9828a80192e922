"""Published answers, through our own wrappers; each once more with a byte flipped."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg import Identity
from secagg.ephemeral import _exchange as exchange
from secagg.errors import IdentityError
from secagg.keys import hkdf, verify_signature
from secagg.masks import add_keystreams, keystream
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
    *({str(i): [i] for i in range(n)} for n in (0, 15, 16, 2**16)),
]


@pytest.mark.parametrize("value", MSGPACK, ids=lambda value: f"{type(value).__name__}-{str(value)[:8]}")
def test_the_second_implementation_and_msgspec_agree_on_msgpack(value):
    encoded = msgspec.msgpack.encode(value)
    assert reference.packed(value) == encoded
    assert reference.unpacked(encoded) == value
    with pytest.raises((reference.MismatchError, *reference.MALFORMED)):
        reference.unpacked(encoded + b"\0")
