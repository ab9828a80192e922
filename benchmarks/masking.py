"""Masks and encoding of one client, single thread, against AES-CTR keystream of the same bytes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg import Encoding, Schema, summed
from secagg.masks import Mask, Masks

from .harness import Benchmark, Case, compare

_BLOCK = 1 << 18
_ZEROS = memoryview(bytes(_BLOCK))


def raw_keystream(num_bytes: int, keys: int) -> None:
    """What the masks cannot do without: the keystream itself, into one block that stays in cache."""
    out = memoryview(bytearray(_BLOCK + 16))
    for _ in range(keys):
        cipher = Cipher(algorithms.AES128(os.urandom(16)), modes.CTR(bytes(16))).encryptor()
        for start in range(0, num_bytes, _BLOCK):
            cipher.update_into(_ZEROS[: min(_BLOCK, num_bytes - start)], out)


def cases() -> Iterator[Benchmark]:
    """Masks of k peers on 40 MB; a whole client of 10 M float32."""
    for k in (10, 50):
        case = f"{k} pair masks on 40 MB"
        yield Benchmark(case, functools.partial(_masks, case, k))
    case = "encode and mask 10 M float32, 31 peers"
    yield Benchmark(case, functools.partial(_client, case, 10_000_000, 31))


def _masks(case: str, k: int) -> Case:
    words = np.zeros(5_000_000, np.uint64)

    def masked() -> None:
        Masks([Mask(os.urandom(16), 1 if i % 2 else -1) for i in range(k)]).apply(words)

    return compare(case, masked, lambda: raw_keystream(words.nbytes, k), "raw keystream", runs=5, seconds=0)


def _client(case: str, size: int, k: int) -> Case:
    values = {"update": np.random.default_rng(0).standard_normal(size).astype(np.float32)}
    encoding = Encoding(Schema(update=summed(8.0, bits=16, shape=(size,))), k + 1)

    def client() -> None:
        vector = encoding.encode(values, np.random.Generator(np.random.SFC64(1)))
        Masks([Mask(os.urandom(16), 1 if i % 2 else -1) for i in range(k)]).apply(vector)

    return compare(
        case, client, lambda: raw_keystream(8 * encoding.words, k), "raw keystream", runs=5, seconds=0
    )
