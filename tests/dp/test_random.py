"""Streams: uniform, never shared by processes, never copied, silent about their keys."""

from __future__ import annotations

import copy
import os
import pickle
import warnings

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dp.random import Stream, insecure_source, secure_source
from tests.statistical import assert_mean, assert_rejects, assert_uncorrelated, assert_uniform_bits


def test_words_are_uniform_and_the_test_would_see_a_stuck_bit() -> None:
    words = insecure_source(1).stream("uniform").uint64(50_000)
    assert_uniform_bits(words)
    assert_rejects(assert_uniform_bits, words | np.uint64(1 << 17))


def test_uniform_floats_lie_inside_the_open_interval() -> None:
    values = insecure_source(2).stream("floats").uniform(100_000)
    assert values.min() > 0
    assert values.max() < 1
    assert_mean(values, 0.5, 12**-0.5)


def test_the_insecure_stream_is_aes_ctr_under_an_hkdf_key() -> None:
    # Composed here from the primitives alone, so that what a seed means can never change unseen.
    key = HKDF(SHA256(), 32, None, b"dp/insecure-source/1/some label").derive((7).to_bytes(32, "little"))
    expected = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * 1000))
    stream = insecure_source(7).stream("some label")
    # In uneven pieces: how a stream is read does not change what it says.
    words = np.concatenate([stream.uint64(n) for n in (1, 0, 2, 500, 497)])
    assert words.astype("<u8").tobytes() == expected


def test_long_reads_cross_the_blocks_of_zeros() -> None:
    n = (1 << 18) // 8 * 2 + 3
    whole = insecure_source(3).stream("x").uint64(n)
    again = insecure_source(3).stream("x")
    assert np.array_equal(whole, np.concatenate([again.uint64(n - 10), again.uint64(10)]))


def test_labels_and_seeds_give_other_streams() -> None:
    a = insecure_source(1).stream("a").uint64(2_000)
    assert_uncorrelated(a, insecure_source(1).stream("b").uint64(2_000))
    assert_uncorrelated(a, insecure_source(2).stream("a").uint64(2_000))


def test_the_secure_source_never_repeats_even_for_one_label() -> None:
    source = secure_source()
    first = [int(source.stream("same").uint64(1)[0]) for _ in range(1_000)]
    assert len(set(first)) == 1_000


@pytest.mark.parametrize("made_before", [True, False])
def test_forked_processes_never_share_a_stream(made_before: bool) -> None:
    source = secure_source()
    stream = source.stream("noise")
    stream.uint64(5)
    seen = {stream.uint64(4).tobytes()} if made_before else set()
    for _ in range(8):
        words = _in_fork(lambda: (stream if made_before else source.stream("noise")).uint64(4).tobytes())
        assert len(words) == 32
        seen.add(words)
    # The parent goes on with its own key, and with words that no child has seen.
    seen.add(stream.uint64(4).tobytes())
    assert len(seen) == 9 + made_before


def test_an_insecure_stream_refuses_to_go_on_in_a_fork() -> None:
    stream = insecure_source(1).stream("x")

    def draw() -> bytes:
        try:
            stream.uint64(1)
        except RuntimeError as error:
            return str(error).encode()
        return b"words"

    assert b"forked" in _in_fork(draw)


@pytest.mark.parametrize("make", [secure_source, lambda: insecure_source(12345)])
def test_sources_and_streams_are_neither_copied_nor_shown(make) -> None:  # type: ignore[no-untyped-def]
    for thing in (make(), make().stream("x")):
        assert "12345" not in repr(thing)
        assert "0x" not in repr(thing)
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="key"):
                attempt(thing)


def test_wrong_arguments_are_refused_without_showing_the_seed() -> None:
    with pytest.raises(ValueError, match=r"int in \[0, 2\*\*256\)") as caught:
        insecure_source(-98765)
    assert "98765" not in str(caught.value)
    with pytest.raises(ValueError, match="n=-1"):
        secure_source().stream("x").uint64(-1)


def _in_fork(draw) -> bytes:  # type: ignore[no-untyped-def]
    """What `draw` returns in a forked child."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Another test of this process may have loaded jax, which warns of forks. The child calls none of it.
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        child = os.fork()
    if child == 0:
        os.write(write, draw())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read()


def test_a_stream_is_what_the_protocol_says() -> None:
    assert isinstance(secure_source().stream("x"), Stream)
