"""When what masks gave is what combining in clear gives."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_agrees(found: Any, clear: Any, bound: Any, what: str = "") -> None:
    """Entries no further apart than `bound`, which may differ by entry; NaN and infinities alike in both."""
    assert type(found) is type(clear), what
    found, clear = np.asarray(found, np.float64), np.asarray(clear, np.float64)
    assert found.shape == clear.shape, what
    with np.errstate(invalid="ignore"):
        near = np.abs(found - clear) <= bound
    wrong = ~(near | (found == clear) | (np.isnan(found) & np.isnan(clear)))
    assert not wrong.any(), f"{what}: {found[wrong]} under masks, {clear[wrong]} in clear; bound {bound}"
