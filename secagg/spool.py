"""Spool: the parts of one client's vector, kept on disk until the last one is there.

A client that vanishes half-way must not be half in the sum, and a server that kept its words in memory would
hold many vectors at once. What lies in the file is masked; the file has no name and goes with the process.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .keys import PROTOCOL, length_prefixed

_BLOCK_BYTES: Final = 1 << 20


class Spool:
    """Parts of one vector, in order.

    Args:
        folder: Where to keep them; the system's folder for temporary files by default.

    Attributes:
        words: How many words have come.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # it lives as long as the object
        # What hash_parts("parts", *digests) gives, without the list.
        self._digest = hashlib.sha256(length_prefixed(PROTOCOL, b"parts"))
        self.words = 0

    def append(self, words: Any, digest: bytes) -> None:
        """Keep the next part; raises OSError if the disk is full, and then keeps nothing of it."""
        left = memoryview(words).cast("B")
        self._file.seek(8 * self.words)
        while left:
            left = left[self._file.write(left) :]
        self._digest.update(length_prefixed(digest))
        self.words += memoryview(words).nbytes // 8

    def pour(self, total: NDArray[np.uint64]) -> bytes:
        """Add the vector to `total`, forget it, and return a hash of its parts' digests."""
        self._file.seek(0)
        start = 0
        while block := self._file.read(min(_BLOCK_BYTES, 8 * (self.words - start))):
            words = np.frombuffer(block, "<u8")
            target = total[start : start + words.size]
            np.add(target, words, out=target)
            start += words.size
        self._file.close()
        return self._digest.digest()

    def close(self) -> None:
        """Forget the parts."""
        self._file.close()

    def __del__(self) -> None:
        """A server that is let go in mid-round has nobody to close its spools."""
        if hasattr(self, "_file"):  # it is missing where no file could be made
            self.close()
