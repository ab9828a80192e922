"""Writes ledger_format_1.json: a ledger as the first format had it.

Run in a checkout of the last version that wrote format 1 (dp/records.py there says FORMAT = 1), with the file
to write: `python make_ledger_format_1.py ledger_format_1.json`.
"""

import json
import sqlite3
import sys
import tempfile
from pathlib import Path

from dp.events import Gaussian, Poisson, Repeated
from dp.ledger import Ledger, LedgerKey
from dp.records import FORMAT

SECRET = "5a" * 32


def main(target):
    if FORMAT != 1:
        sys.exit(f"Expected a checkout of format 1, got {FORMAT}.")
    event = Repeated(Poisson(0.2, Gaussian(1.5)), 5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.sqlite")
        with Ledger.open(path, LedgerKey(bytes.fromhex(SECRET))) as ledger:
            ledger.set_run_budget("icu", run="r1", epsilon=8.0, delta=1e-3)
            ledger.set_budget("icu", epsilon=20.0, delta=1e-3)
            ledger.commit(ledger.reserve("icu", event, run="r1", clip_norm=0.5))
            ledger.void(ledger.reserve("icu", event, run="r1"))
            ledger.reserve("icu", event, run="r2")
            spent = ledger.spent("icu", 1e-3).value
            ledger.export(Path(folder, "export.json"))
        connection = sqlite3.connect(path)
        rows = [
            [number, body.decode(), own_hash, signature.hex()]
            for number, body, own_hash, signature in connection.execute("SELECT * FROM records")
        ]
        schema = [line for (line,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")]
        connection.close()
        export = json.loads(Path(folder, "export.json").read_text())
    found = {
        "source": "privopt, the last version that wrote format 1",
        "generator": "make_ledger_format_1.py",
        "cases": [{"secret": SECRET, "schema": schema, "rows": rows, "export": export, "spent": spent}],
    }
    Path(target).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
