"""Which rounds outlast their dropouts: floor 6, what masks ask of a round and what a trial takes from it.

Under masks a round comes to a sum only while enough clients stay: `masks.min_clients` in the sum, and of
those who advertised as many to the end as the threshold says. `dropout` takes clients away on purpose.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from .tables import Config, MasksConfigError, mask_policy

if TYPE_CHECKING:
    import secagg

__all__ = ["DropoutWarning", "chance", "check_dropout", "vanishing", "warn_of_dropout"]


class DropoutWarning(UserWarning):
    """A trial of dropouts in which some rounds will come to nothing."""


def vanishing(share: float, clients: int) -> int:
    """How many clients a share of them is, rounded down: the largest k with ``k / clients <= share``.

    Example:
        >>> vanishing(0.29, 100), vanishing(2 / 3, 3), vanishing(0.9999999999, 8)
        (29, 2, 7)
    """
    # The product may lie on the wrong side of a whole number by its rounding; the quotient is what was meant.
    count = math.floor(share * clients)
    if (count + 1) / clients <= share:
        return count + 1
    return count - 1 if count / clients > share else count


def chance(policy: secagg.Policy, clients: int, gone: int) -> float:
    """Probability that a masked round comes to a sum, where `gone` of its clients vanish as `Dropouts` draws.

    Each of them is as likely to vanish at one of five stages as at another: the first makes the cohort, the
    next two the sum, and the last two leave the sum as it is.

    Args:
        policy: What clients and server insist on; the graph is complete.
        clients: Clients that the round asks, at least 1.
        gone: How many of them vanish, at most all.

    Returns:
        In [0, 1]; 0 exactly where no way of vanishing leaves enough.
    """
    from secagg.graph import is_exclusive, threshold

    ways = 0
    for at_advert in range(gone + 1):
        cohort = clients - at_advert
        if cohort < max(1, policy.min_clients):
            break
        needed, colluders = threshold(policy.threshold_fraction, cohort), policy.colluding(cohort)
        if clients - gone < needed or not is_exclusive(cohort, needed, colluders):
            continue
        rest = gone - at_advert
        # Two that do not collude are to be in a sum, or it shows what the only one sent.
        spare = cohort - max(policy.min_clients, needed, colluders + 2)
        splits = 2**rest if spare >= rest else sum(math.comb(rest, count) for count in range(spare + 1))
        # Two of the five stages come before the sum and two after it, for each of the rest.
        ways += math.comb(gone, at_advert) * 2**rest * splits
    return 0.0 if ways == 0 else max(ways / 5**gone, math.ulp(0.0))


def check_dropout(config: Config) -> None:
    """Refuse a trial in which no round can come to a sum.

    Raises:
        MasksConfigError: Saying how many clients vanish, how many must stay, and what to change.
    """
    asked, gone, likely = _trial(config)
    if likely == 0:
        raise MasksConfigError(
            f"Expected a dropout that leaves enough clients for a sum, got dropout = {config.dropout:g}: "
            f"{gone} of {asked} vanish from each round, and every round would fail. {_remedy(config)}"
        )


def warn_of_dropout(config: Config) -> None:
    """Warn of a trial in which some rounds will be aborted, with how many that are to be."""
    asked, gone, likely = _trial(config)
    if likely < 1:
        warnings.warn(
            f"dropout = {config.dropout:g} takes {gone} of {asked} clients from each round: about "
            f"{100 * (1 - likely):.2g} % of the rounds will be aborted, as too few stay. {_remedy(config)}",
            DropoutWarning,
            stacklevel=2,
        )


def _trial(config: Config) -> tuple[int, int, float]:
    """Clients that a round asks, how many of them vanish, and the probability that it comes to a sum."""
    asked = config.server.selection.clients or config.num_clients
    gone = vanishing(config.dropout, asked)
    # In clear one client's values are enough, and a share below 1 always leaves one.
    likely = chance(mask_policy(config.masks), asked, gone) if config.masks.enabled else 1.0
    return asked, gone, likely


def _remedy(config: Config) -> str:
    policy = mask_policy(config.masks)
    asked = config.server.selection.clients or config.num_clients
    safe = next((n - 1 for n in range(1, asked + 1) if chance(policy, asked, n) < 1), asked)
    spared = (
        f"{safe} can be spared at any stage: dropout={safe / asked:.3g}" if safe else "none can be spared"
    )
    return f"Of {asked} clients {spared}. Ask more clients, or lower masks.min_clients or masks.threshold."
