"""What a data holder allows, whatever a server asks: a file beside its ledger.

Place in the picture: `dp.Ledger` reads it before each run budget and each reservation, so that no caller, and
no message that led to the call, can pass it by. Only who can write the file changes it.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from .accounting import epsilon as price
from .errors import DPError, PrivacyParameterError, UnsupportedEvent
from .events import Event, Gaussian

__all__ = ["LocalPolicy", "PolicyRefused", "policy_path"]

_EXAMPLE: Final = "max_epsilon = 4.0"


class PolicyRefused(DPError):  # noqa: N818 - a verdict, as PrivacyBudgetExceeded is
    """A holder's policy forbids a release or a budget; nothing was written or drawn."""


class LocalPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one holder on what any run may do with its data; a bound that is left out allows anything.

    Attributes:
        max_epsilon: Largest epsilon of one run on one data set, by PLD, at `max_delta`.
        max_delta: Largest delta at which a run may be budgeted; needed beside `max_epsilon`.
        min_noise_multiplier: Smallest noise multiplier of a release.
        samplers: Allowed samplers, as events name them: ``"poisson"``, and ``"none"`` for a release about all
            rows. None allows any.

    Example:
        >>> from dp.events import Gaussian
        >>> policy = LocalPolicy(min_noise_multiplier=1.0)
        >>> policy.verify(Gaussian(0.5), where="ledger.policy.toml")
        Traceback (most recent call last):
            ...
        dp.policy.PolicyRefused: Expected a noise multiplier of at least 1, got 0.5 in gaussian(z=0.5). ...
    """

    max_epsilon: Annotated[float, msgspec.Meta(gt=0)] = math.inf
    max_delta: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    min_noise_multiplier: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    samplers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_epsilon < math.inf and self.max_delta >= 1:
            raise PrivacyParameterError(
                f"Expected max_delta in (0, 1) beside max_epsilon = {self.max_epsilon:g}, got none: an "
                "epsilon says nothing without a delta."
            )

    @classmethod
    def load(cls, path: str | Path) -> LocalPolicy:
        """Read a policy file (TOML).

        Raises:
            PrivacyParameterError: If it holds anything but a policy, or others than its owner can write it.
            OSError: If it cannot be read.
        """
        import tomllib

        path = Path(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name == "posix" and mode & 0o022:
            raise PrivacyParameterError(
                f"Expected {path} to be writable by its owner only, got mode {mode:04o}: others could weaken "
                "it. chmod go-w."
            )
        try:
            return msgspec.convert(tomllib.loads(path.read_text("utf-8")), cls)
        except (ValueError, RecursionError) as error:
            raise PrivacyParameterError(
                f"Expected a policy such as `{_EXAMPLE}` in {path}, got something else: {error}. Nothing is "
                "released until its owner has put it right."
            ) from error

    def verify_budget(self, epsilon: float, delta: float, *, where: str) -> None:
        """Refuse a run's budget that is beyond the policy.

        Raises:
            PolicyRefused: Naming the bound and what its owner would have to change.
        """
        if not epsilon <= self.max_epsilon:
            raise _refused(
                f"a run's epsilon of at most {self.max_epsilon:g}, got {epsilon:g}", "max_epsilon", where
            )
        if not delta <= self.max_delta:
            raise _refused(f"a run's delta of at most {self.max_delta:g}, got {delta:g}", "max_delta", where)

    def verify(
        self,
        event: Event,
        *,
        where: str,
        earlier: tuple[Event, ...] = (),
        neighboring: str = "add-or-remove-one",
    ) -> None:
        """Refuse a release that is beyond the policy.

        Args:
            event: What would be released.
            where: The policy's file, for the error.
            earlier: What the same run released about the same data so far.
            neighboring: Relation under which they are priced.

        Raises:
            PolicyRefused: Naming the bound and what its owner would have to change.
            UnsupportedEvent: If epsilon is bounded and an event has no price.
        """
        if self.samplers is not None or self.min_noise_multiplier > 0:
            sampler, noise = _taken_apart(event)
            if self.samplers is not None and sampler not in self.samplers:
                allowed = ", ".join(map(repr, self.samplers)) or "none at all"
                raise _refused(f"a sampler of {allowed}, got {sampler!r} in {event}", "samplers", where)
            if not noise >= self.min_noise_multiplier:
                what = (
                    f"a noise multiplier of at least {self.min_noise_multiplier:g}, got {noise:g} in {event}"
                )
                raise _refused(what, "min_noise_multiplier", where)
        if self.max_epsilon < math.inf:
            self._verify_spent([*earlier, event], where, neighboring)

    def _verify_spent(self, events: list[Event], where: str, neighboring: str) -> None:
        # RDP's price is an upper bound too, and takes a hundredth of the time; only near the end PLD decides.
        if price(events, self.max_delta, by="RDP", neighboring=neighboring) <= self.max_epsilon:
            return
        after = price(events, self.max_delta, neighboring=neighboring)
        if not after <= self.max_epsilon:
            what = f"a run that spends at most ε = {self.max_epsilon:g} at δ = {self.max_delta:g}"
            raise _refused(f"{what}, got {after:.4g} with this release", "max_epsilon", where)


def policy_path(ledger: Path) -> Path:
    """Where the policy of a ledger lies: ``ledger.policy.toml`` beside ``ledger.sqlite``."""
    return ledger.with_suffix(".policy.toml")


def _taken_apart(event: Event) -> tuple[str, float]:
    """Sampler and noise multiplier of an event of any depth.

    Whatever stands around a mechanism is a sampler, but for repetition, and so is a mechanism of a kind that
    is not known to be about all rows: an event that is new here is refused until the policy names it.
    """
    sampler = "none"
    inner: Any = event
    while hasattr(inner, "event"):
        if inner.kind != "repeated":
            sampler = str(inner.kind)
        inner = inner.event
    if not isinstance(inner, Gaussian) and sampler == "none":
        sampler = str(inner.kind)
    noise = getattr(inner, "noise_multiplier", None)
    if noise is None:
        raise UnsupportedEvent(f"Expected an event whose noise a policy can compare, got {event}.")
    return sampler, float(noise)


def _refused(what: str, name: str, where: str) -> PolicyRefused:
    return PolicyRefused(
        f"Expected {what}. It is the data holder's own bound: change the run, or ask the owner of {where} to "
        f"change {name} there; no message can."
    )
