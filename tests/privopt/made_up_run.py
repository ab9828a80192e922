"""A run folder of the right format with made-up numbers, for the report, the audit and the command line."""

import json
import math

from privopt.setup.config import Config, to_json

KEY = "0b" * 32


def write(folder, *, rounds=20, clients=8, private=True, masks=True, aborted=(7,), stopped=None):
    """Write the folder; returns it."""
    (folder / "ledgers").mkdir(parents=True)
    ids = [f"clinic-{i}" for i in range(clients)]
    (folder / "config.json").write_text(to_json(Config(rounds=rounds)))
    event = {"kind": "poisson", "sample_rate": 0.2, "event": {"kind": "gaussian", "noise_multiplier": 1.18}}
    explain = [
        ("update", "averaged", "the average of the clients' updates", 3.1e-5, 16),
        ("scaffold.delta", "summed", "the sum of the clients' changes of their control variates", 6.2e-5, 16),
        ("clients", "counted", "how many clients took part", 1.0, 4),
    ]
    run = {
        "format": 1,
        "id": "2026-11-21-digits-1",
        "created": "2026-11-21 09:30:12 UTC",
        "privopt_version": "0.1.0",
        "data": "digits (1,437 rows, Dirichlet α=1)",
        "clients": [
            {"id": i, "public_key": KEY, "rows": None, "ledger_key": KEY, "dataset": f"digits/{i}"}
            for i in ids
        ],
        "server": {"public_key": "c0" * 32},
        "model": {
            "parameters": 650,
            "layout": [["1.weight", [10, 64], "float32"], ["1.bias", [10], "float32"]],
        },
        "dp": {
            "unit": "sample",
            "neighboring": "add-or-remove-one",
            "epsilon": 8.0,
            "delta": 1e-3,
            "noise_multiplier": 1.18,
            "clip_norm": 0.5,
            "sample_rate": 0.2,
            "steps": 5,
            "rounds": rounds,
            "planned_steps": 5 * rounds,
        }
        if private
        else None,
        "masks": {
            "bits": 16,
            "words": 463,
            "bytes_per_value": 2.67,
            "explain": [
                dict(zip(("field", "reduction", "learned", "quantum", "bits"), entry, strict=True))
                for entry in explain
            ],
        }
        if masks
        else None,
        "disclosed": ["expected batch size (public)", "which clients took part in a round"],
        "twin": {"accuracy": 0.950},
    }
    (folder / "run.json").write_text(json.dumps(run))
    with (folder / "metrics.jsonl").open("w") as file:
        for number in range(1, rounds + 1):
            ok = number not in aborted
            spent = 7.94 * math.sqrt(number / rounds)
            line = {
                "round": number,
                "status": "ok" if ok else "aborted",
                "reason": None if ok else "clinic-3 did not answer <in time>",
                "accuracy": 0.889 - 0.6 * math.exp(-number / 4) + 0.006 * math.sin(3 * number)
                if ok
                else None,
                "loss": 0.45 + 1.7 * math.exp(-number / 4) if ok else None,
                "clients": {
                    i: {
                        "status": "stopped" if i == stopped and number > rounds // 2 else "ok",
                        "epsilon": (spent if i != stopped else min(spent, 5.0)) if private else None,
                        "steps": 5 * number,
                    }
                    for i in ids
                },
                "releases": {
                    i: [
                        {
                            "event": event,
                            "steps": 5,
                            "sampler": "poisson",
                            "sample_rate": 0.2,
                            "clip_norm": 0.5,
                            "noise_multiplier": 1.18,
                            "ledger_sequence": 2 * number,
                        }
                    ]
                    for i in ids
                },
                "clipped": {"update": 4 if number in (1, 5) else 0, "scaffold.delta": 0},
                "bounds": {"update": 1.0 / (1 + number % 5), "scaffold.delta": 2.0},
                "bytes_up": 31_000,
                "bytes_down": 96_000,
                "seconds": 0.41,
            }
            file.write(json.dumps(line) + "\n")
    for i in ids if private else ():
        (folder / "ledgers" / f"{i}.json").write_text("{}")
    return folder
