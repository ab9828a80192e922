"""``python -m benchmarks NAME [--only TEXT] [--json]``: one line a case, or one JSON object a line."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Sequence

from . import harness
from .harness import Disagreement, Unavailable

# Subject -> what it measures; each is a file of this folder with a generator `cases()`.
SUBJECTS = {
    "accounting": "one more event on a long ledger and calibration, against limits, scratch and Opacus PRV",
    "clipping": "a clipped sum against the plain gradient of the same batch, and against Opacus",
    "curves": "learning curves of every family of optimizers, drawn into docs/assets/curves",
    "masking": "pairwise masks and whole-client encoding against the raw keystream of the same bytes",
    "noise": "secure lattice and discrete Gaussian draws against torch.normal_",
    "optimizer": "one optimizer step against torch, optax, torchzero and declearn; memory, growth with size",
    "rounds": "a round of a federation with privacy and masks against the plain local steps alone",
    "secagg": "a client and the server at the scale of Bonawitz et al. (2017); how costs grow",
    "shamir": "sharing of a client's secrets and of many, against its limit and Flower's",
    "train": "the default run as a user starts it, against its limit of a minute",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named subjects; the exit status is 1 if two sides disagreed, or no case was measured."""
    lines = "\n".join(f"  {name:<10} {what}" for name, what in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure ours and a baseline, interleaved in one process: medians, smallest, ratio.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"subjects:\n{lines}\n\nexample:\n  python -m benchmarks optimizer --only flat --json",
    )
    parser.add_argument("subjects", nargs="+", choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument(
        "--seconds",
        type=float,
        default=harness.SECONDS,
        help="how long to measure a case (default %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="only name the cases")
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.seconds) and options.seconds > 0):
        parser.error(f"Expected --seconds > 0 and finite, got {options.seconds:g}.")
    harness.SECONDS = options.seconds
    measured = disagreed = 0
    for name in options.subjects:
        for benchmark in importlib.import_module(f"benchmarks.{name}").cases():
            if options.only.lower() not in benchmark.case.lower():
                continue
            if options.list:
                print(benchmark.case)
                measured += 1
                continue
            _progress(f"{benchmark.case} ...")
            try:
                case = benchmark.measure()
            except Unavailable as reason:
                _progress("")
                print(f"{benchmark.case}: not measured: {reason}", file=sys.stderr, flush=True)
                continue
            except Disagreement as found:
                _progress("")
                print(f"{benchmark.case}: the two sides disagree: {found}", file=sys.stderr, flush=True)
                disagreed += 1
                continue
            _progress("")
            measured += 1
            print(json.dumps(case.to_dict()) if options.json else case, flush=True)
    if not measured and not disagreed:
        print(
            f"Expected at least one case that can be measured, got none for --only {options.only!r}. "
            "`--list` names them.",
            file=sys.stderr,
        )
    return 0 if measured and not disagreed else 1


def _progress(text: str) -> None:
    """What is being measured, on one line that the next one overwrites; nothing in a file or a pipe."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
