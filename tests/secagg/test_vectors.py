"""Published answers, through our own wrappers; each once more with a byte flipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secagg import Identity
from secagg.errors import IdentityError
from secagg.keys import exchange, hkdf, verify_signature
from secagg.masks import add_keystreams, keystream

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
