"""``privopt plan``: what a private training would cost before it runs: floor 7.

Contents: the command's arguments, the plan as figures, as text and as a drawing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp.events import Event

__all__ = ["EXAMPLES", "SHORT", "Plan", "add_arguments", "draw", "make_plan", "run"]

SHORT = "say which noise keeps a training within a budget, and what other samplers would cost"
EXAMPLES = """
privopt plan --samples 60000 --epsilon 3 --batch 4096 --epochs 30
privopt plan --samples 60000 --epsilon 3 --batch 4096 --epochs 30 --delta 1e-5 --plot plan.svg
privopt plan --samples 800 --epsilon 8 --batch 64 --epochs 10 --format json | jq .noise_multiplier

What helps, most first: more samples, larger batches (the noise is divided by the batch), fewer epochs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--samples", type=int, required=True, metavar="N", help="samples of the data holder")
    parser.add_argument("--epsilon", type=float, required=True, metavar="E", help="budget of the whole run")
    parser.add_argument("--batch", type=int, required=True, metavar="B", help="expected size of a batch")
    parser.add_argument("--epochs", type=float, required=True, metavar="K", help="times through the data")
    parser.add_argument(
        "--delta", type=float, help="default: the power of ten at or below a tenth of 1 over N"
    )
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw epsilon against noise and epochs")


@dataclass(frozen=True)
class Other:
    """What another sampler costs with the plan's noise; nothing where no accountant has a price."""

    sampler: str
    epsilon: float | None
    noise_multiplier: float | None
    note: str


@dataclass(frozen=True)
class Plan:
    """A training that keeps to a budget.

    Attributes:
        num_samples: Samples of the data holder.
        batch_size: Expected batch size.
        epochs: Times through the data.
        target: Epsilon asked for.
        delta: Delta of all figures.
        num_steps: Releases.
        sample_rate: Probability that a sample enters a batch.
        noise_multiplier: Noise std over the clip norm.
        epsilon: What the plan costs, by accountant.
        others: What other samplers would cost.
    """

    num_samples: int
    batch_size: int
    epochs: float
    target: float
    delta: float
    num_steps: int
    sample_rate: float
    noise_multiplier: float
    epsilon: dict[str, float]
    others: list[Other]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        said = {"PLD": "what a budget is spent by", "RDP": "an upper bound", "PRV": "a second opinion on PLD"}
        lines = [
            f"{self.num_samples:,} samples, Poisson batches of {self.batch_size:,} on average, "
            f"{self.epochs:g} epochs",
            "",
            f"  noise multiplier  {self.noise_multiplier:.3f}      std over the clip norm C, on the sum",
            f"  noise on a mean   {self.noise_multiplier / self.batch_size:.2e}   times C, a coordinate",
            f"  steps             {self.num_steps:,}",
            f"  sample rate       {self.sample_rate:.4g}",
            "",
            f"  epsilon at delta={self.delta:g}, add or remove one sample",
            *(f"    {by:<6} {eps:8.4f}   {said[by]}" for by, eps in self.epsilon.items()),
            "",
            f"  with other samplers{'epsilon':>14}{'noise for ' + format(self.target, 'g'):>16}",
        ]
        for other in self.others:
            eps = "none" if other.epsilon is None else f"{other.epsilon:.3f}"
            noise = "" if other.noise_multiplier is None else f"{other.noise_multiplier:.3f}"
            lines.append(f"    {other.sampler:<20}{eps:>9}{noise:>16}   {other.note}")
        return "\n".join(lines)


def make_plan(*, samples: int, epsilon: float, batch: int, epochs: float, delta: float | None = None) -> Plan:
    """The plan with the least noise that keeps to (epsilon, delta).

    Raises:
        ConfigError: If there are no samples, or more in a batch, or no epochs.
        PrivacyParameterError: If epsilon or delta promises nothing, or no noise reaches them.
    """
    import dp
    from dp.events import Gaussian, Poisson, Repeated

    from ..setup.config import ConfigError

    if samples < 1 or not 1 <= batch <= samples:
        raise ConfigError(
            f"Expected --samples >= 1 and --batch from 1 to it, got --samples {samples} --batch {batch}."
        )
    if not (epochs > 0 and math.isfinite(epochs)):
        raise ConfigError(f"Expected --epochs > 0 and finite, got --epochs {epochs:g}.")
    delta = 10.0 ** math.floor(math.log10(0.1 / samples) + 1e-9) if delta is None else delta
    dp.check_delta(delta, samples)
    rate, steps = batch / samples, math.ceil(round(epochs * samples / batch, 9))
    noise = dp.noise_multiplier_for(epsilon=epsilon, delta=delta, sample_rate=rate, num_steps=steps)
    event = Repeated(Poisson(rate, Gaussian(noise)), steps)
    by = {name: dp.epsilon(event, delta, by=name) for name in ("PLD", "RDP", "PRV")}
    others = _others(samples, batch, math.ceil(epochs), steps, noise, (epsilon, delta))
    return Plan(samples, batch, epochs, epsilon, delta, steps, rate, noise, by, others)


def _others(
    samples: int, batch: int, epochs: int, steps: int, noise: float, target: tuple[float, float]
) -> list[Other]:
    import dp
    from dp.events import Epoch, Gaussian, Repeated, TruncatedPoisson, WithoutReplacement

    epsilon, delta = target
    inner = Gaussian(noise)
    most = min(samples, math.ceil(batch + 4 * math.sqrt(batch)))
    truncated: Event = Repeated(TruncatedPoisson(samples, batch / samples, most, inner), steps)
    fixed: Event = Repeated(WithoutReplacement(samples, batch, inner), steps)
    shuffled: Event = Repeated(Epoch(math.ceil(samples / batch), inner), epochs)
    return [
        Other(
            "shuffled",
            dp.epsilon(shuffled, delta),
            dp.noise_multiplier_for(epsilon=epsilon, delta=delta, sample_rate=1.0, num_steps=epochs),
            "no amplification: an epoch is one release",
        ),
        Other("truncated Poisson", dp.epsilon(truncated, delta), None, f"at most {most:,} in a batch"),
        Other(
            "fixed size",
            dp.epsilon(fixed, delta, by="RDP", neighboring="replace-one"),
            None,
            "by RDP, and for replacing one sample: another guarantee, a stronger one",
        ),
    ]


def run(options: argparse.Namespace) -> int:
    """Print the plan, and draw it where asked."""
    from ..checkpoint import write_atomic
    from .console import Console
    from .failures import OK

    plan = make_plan(
        samples=options.samples,
        epsilon=options.epsilon,
        batch=options.batch,
        epochs=options.epochs,
        delta=options.delta,
    )
    console = Console(as_json=options.format == "json")
    console.say(str(plan))
    if options.plot is not None:
        write_atomic(options.plot, draw(plan).encode())
        console.say(f"\nWrote {options.plot}")
    console.give(plan.to_dict())
    return OK


# --- the drawing ------------------------------------------------------------------------------------------


def draw(plan: Plan) -> str:
    """Epsilon against noise and against epochs, as a file of its own."""
    import dp
    from dp.events import Gaussian, Poisson, Repeated

    from ..report.charts import Line, Reference, line_chart
    from ..report.style import PAGE

    def points(xs: list[float], event: Callable[[float], Event]) -> Line:
        priced = [(x, dp.epsilon(event(x), plan.delta, precise=False)) for x in xs]
        return Line("Poisson", priced)

    def noisier(percent: float) -> Event:
        noise = Gaussian(plan.noise_multiplier * percent / 100)
        return Repeated(Poisson(plan.sample_rate, noise), plan.num_steps)

    def longer(percent: float) -> Event:
        step = Poisson(plan.sample_rate, Gaussian(plan.noise_multiplier))
        return Repeated(step, max(1, round(plan.num_steps * percent / 100)))

    budget = [Reference(f"budget {plan.target:g}", plan.target)]
    charts = [
        line_chart(title, [line], x_label=label, y_label="ε", references=budget, from_zero=True)
        for title, line, label in (
            (
                "ε against noise",
                points([60, 70, 80, 90, 100, 120, 140, 170, 200], noisier),
                f"noise, % of {plan.noise_multiplier:.3f}",
            ),
            (
                "ε against steps",
                points([10, 25, 50, 75, 100, 125, 150, 175, 200], longer),
                f"steps, % of {plan.num_steps:,}",
            ),
        )
    ]
    # The charts are made for a page: the page's style comes along, and each gets its place.
    style = PAGE.split("<style>")[1].split("</style>")[0]
    placed = [
        chart.replace("<svg ", f'<svg x="20" y="{20 + 320 * i}" width="560" height="300" ', 1).replace(
            ", round ", ", % "
        )
        for i, chart in enumerate(charts)
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 660" width="600" height="660">',
            f"<style>{style} svg {{ font-family: sans-serif; }}</style>",
            '<rect width="600" height="660" fill="var(--card)"/>',
            *placed,
            "</svg>\n",
        ]
    )
