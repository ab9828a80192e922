"""``python -m benchmarks NAME [--json]``: one line a case, or one JSON object a line."""

from __future__ import annotations

import argparse
import importlib
import json

# Subject -> what it measures; each is a file of this folder with a generator `cases()`.
SUBJECTS = {
    "masking": "pairwise masks and whole-client encoding against the raw keystream of the same bytes",
    "rounds": "a round of a federation with privacy and masks against the plain local steps alone",
}


def main() -> None:
    """Run the named subjects."""
    lines = "\n".join(f"  {name:<10} {what}" for name, what in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure ours and a baseline, interleaved in one process: medians, smallest, ratio.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"subjects:\n{lines}\n\nexample:\n  python -m benchmarks masking --json",
    )
    parser.add_argument("subjects", nargs="+", choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    options = parser.parse_args()
    for name in options.subjects:
        for case in importlib.import_module(f"benchmarks.{name}").cases():
            print(json.dumps(case.to_dict()) if options.json else case, flush=True)


if __name__ == "__main__":
    main()
