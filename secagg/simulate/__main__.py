"""``python -m secagg.simulate``: simulate a round of secure aggregation on this machine, or draw its cost."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import CohortError, PolicyError, RoundAborted, SchemaError
from .machines import STAGES
from .outcome import COLLUDERS, PROTECTS_NOBODY

EXIT_CODES = {
    0: "the released sum is exactly the clear one, or the chart is drawn",
    1: "the released sum is wrong: a mistake in secagg; please report it",
    2: "the command: an argument out of its range",
    3: "the graph: no degree and threshold stand so many colluders and losses, or those given do not",
    4: "the round failed as a whole: too few clients were left",
    5: "the chart's file cannot be written",
    130: "interrupted",
}
_EPILOG = f"""\
what is computed
  Up to 150 clients, and with --full: real clients and a real server, every message signed and sealed.
  More: for every client fresh secrets, its place in the graph, one X25519 exchange and one AES-CTR mask a
  pair of neighbours (used at both ends), its self mask, Shamir shares of both its secrets; then losses at
  all stages, reconstruction from the shares that are left, unmasking, and the comparison with the clear sum.
  Signatures, sealed boxes and messages are then not made; what they would cost a client and the server is
  estimated from real ones of one neighbourhood (--no-estimate leaves that out).
  {PROTECTS_NOBODY}

examples
  python -m secagg.simulate                                    1,000 clients, some seconds
  python -m secagg.simulate --clients 100000 --entries 1000    ten minutes of processor time
  python -m secagg.simulate --clients 300 --full               real machines, half a minute
  python -m secagg.simulate --dropout 0.3 --lost-at vector     the costliest losses: masks must be recovered
  python -m secagg.simulate --clients 400 --degree 60 --threshold 45
  python -m secagg.simulate --plot cost.svg                    cost by clients and by entries, half a minute
  python -m secagg.simulate --format json | jq .client.seconds

exit codes
{chr(10).join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())}
"""


class _Parser(argparse.ArgumentParser):
    """Errors in one paragraph."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"secagg.simulate: {message[0].upper()}{message[1:]}. --help shows examples.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns one of `EXIT_CODES`."""
    parser = _options()
    options = parser.parse_args(arguments)
    if options.plot is not None:
        _verify_plot(parser, options)
    show = Progress()
    try:
        if options.plot is not None:
            return _plot(options, show)
        return _simulate(options, show)
    except (ValueError, SchemaError) as error:
        return _fail(str(error), 2)
    except MemoryError:
        return _fail("Expected vectors that fit in memory. Give fewer --entries or --processes.", 2)
    except PolicyError as error:
        return _fail(str(error), 3)
    except (CohortError, RoundAborted) as error:
        return _fail(str(error), 4)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if options.plot is None:
            raise
        return _fail(f"Expected to write {options.plot}, got: {error.strerror}.", 5)
    except KeyboardInterrupt:
        return _fail("Interrupted.", 130)
    finally:
        show.clear()


def _options() -> _Parser:
    parser = _Parser(
        prog="python -m secagg.simulate",
        description="Simulate a round of secure aggregation, and compare its result with the clear sum.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--clients", type=int, default=1000, metavar="N", help="clients, 5 to 131072 (default %(default)s)")
    add("--entries", type=int, default=1000, metavar="M", help="numbers in a vector (default %(default)s)")
    add("--dropout", type=float, default=0.1, metavar="P", help="fraction that is lost (default %(default)s)")
    add("--lost-at", choices=STAGES, help="stage at which clients are lost (default: all stages alike)")
    add(
        "--colluders",
        type=float,
        default=COLLUDERS,
        metavar="P",
        help="fraction that may work with a malicious server (default %(default)s, for speed; Policy and "
        "secagg.plan assume 0.2, which takes twice the neighbours)",
    )
    add(
        "--degree",
        type=int,
        metavar="K",
        help="neighbours, even; 0 for all (default: what --colluders needs)",
    )
    add("--threshold", type=int, metavar="T", help="shares that give a secret back; with --degree")
    add("--bits", type=int, default=16, metavar="B", help="bits of a number (default %(default)s)")
    add("--full", action="store_true", help="real clients and a real server, however many")
    add("--no-estimate", action="store_true", help="leave out what it would cost a real client and server")
    add("--processes", type=int, metavar="N", help="worker processes (default: one a core)")
    add(
        "--plot",
        type=Path,
        metavar="FILE.svg",
        help="measure and draw costs by size instead of one round; takes --dropout and --bits",
    )
    add("--format", choices=("text", "json"), default="text", help="what to print (default: text)")
    return parser


def _verify_plot(parser: _Parser, options: argparse.Namespace) -> None:
    """Refuse what the chart would not show, and what it cannot be written as."""
    if options.plot.suffix.lower() != ".svg":
        parser.error(f"expected --plot with a file that ends in .svg, got {options.plot.name}")
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if name not in ("plot", "dropout", "bits", "format") and value != parser.get_default(name)
    ]
    if given:
        parser.error(
            f"expected --plot with --dropout, --bits and --format alone, since it measures sizes of its own, "
            f"got also {', '.join(given)}"
        )


def _simulate(options: argparse.Namespace, show: Progress) -> int:
    from .simulation import simulate

    done = simulate(
        options.clients,
        options.entries,
        options.dropout,
        colluders=options.colluders,
        degree=options.degree,
        threshold=options.threshold,
        bits=options.bits,
        lost_at=options.lost_at,
        machines=True if options.full else None,
        processes=options.processes,
        estimate=not options.no_estimate,
        progress=show,
    )
    show.clear()
    print(json.dumps(done.to_dict()) if options.format == "json" else done, flush=True)
    return 0 if done.correct else 1


def _plot(options: argparse.Namespace, show: Progress) -> int:
    from .curves import draw, measure

    with options.plot.open("a"):
        pass  # Known now, not after half a minute: whether it can be written.
    curves = measure(options.dropout, options.bits, progress=show)
    options.plot.write_text(draw(curves), "utf-8")
    show.clear()
    print(json.dumps(curves.to_dict()) if options.format == "json" else curves, flush=True)
    return 0


class Progress:
    """One line that the next one overwrites, on a terminal; nothing in a file or a pipe."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._text = ""

    def __call__(self, what: str, done: float) -> None:
        """Show what is being done, a step a percent."""
        text = f"{what} {math.floor(100 * done)} %"
        if self._shown and text != self._text:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._text = text

    def clear(self) -> None:
        """Take the line away."""
        if self._text:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._text = ""


def _fail(text: str, code: int) -> int:
    print(f"secagg.simulate: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
