"""What moving records costs on this machine, beside the floor measured in the same run: a bare BufferedProtocol and the same bytes.

    transfers    0.1 to 100 MB from and to another process, with and without checking digests; the share of the floor's speed that each has.
                 raw: the floor, into the same memory each time, as ours; raw_new: into a new buffer each time
    rest         100 MB right after each other, and after a rest of a tenth of a second and of one: the floor, and ours with digests
    control      round trips of control messages, alone and while a gigabyte moves between the same two processes
    holders      100 MB from one holder, from three, and from three of which one hangs
    changed      a version of which a tenth is new, where the older one is held
    encodings    bytes, time and error of records that are compressed or rounded
    digests      the digests that were chosen among
    disk         how long a record takes to be safe from a power cut (--folder: on this disk)

Ends by itself, in about a minute on a quiet machine. With --json, one object on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol.aio.bulk import BulkError
from scripts.bulk_bench import measures
from scripts.demo_report import hardware

TRANSFER_AIMS = {"bulk_ratio": 0.70, "bulk_digest_ratio": 0.50}
AIMED_AT_MB = ("10.396", "100")

Figures = dict[str, Any]


def bench(only: list[str], trials: int, folder: Path | None) -> Figures:
    """All that was asked for; the report."""
    parts: dict[str, Callable[[], Figures]] = {
        "transfers": partial(measures.transfers, trials=trials),
        "rest": measures.after_rest,
        "control": measures.control_delay,
        "holders": measures.several_holders,
        "changed": partial(measures.changed_part, trials=trials),
        "encodings": measures.encodings,
        "digests": measures.digests,
        "disk": partial(measures.disk, folder),
    }
    report: Figures = {"hardware": hardware(), "load_before": round(os.getloadavg()[0], 2)}
    for name, measure in parts.items():
        if name in only:
            report[name] = measure()
    if "transfers" in report:
        report["aims"] = [
            {"what": f"{name} at {size} MB", "measured": report["transfers"][size][name], "at_least": aim,
             "met": report["transfers"][size][name] >= aim}
            for size in AIMED_AT_MB for name, aim in TRANSFER_AIMS.items()
        ]  # fmt: skip
    return report


def show(report: Figures) -> None:
    """A table a part."""
    console = Console(width=140, highlight=False)
    console.print(f"\n{report['hardware']}; load before {report['load_before']}\n")
    for name, part in report.items():
        if isinstance(part, list):
            part = {row["what"]: {key: value for key, value in row.items() if key != "what"} for row in part}
        if not isinstance(part, dict):
            continue
        rows = part if all(isinstance(row, dict) for row in part.values()) else {"": part}
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        table = Table(box=None, pad_edge=False, title=name, title_justify="left")
        for column in ("", *columns):
            table.add_column(column, justify="right" if column else "left")
        for label, row in rows.items():
            table.add_row(label, *(_shown(row.get(column)) for column in columns))
        console.print(table, "")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name.removesuffix('_ms')} {_shown(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def main() -> int:
    """The command line; 1 where a transfer is slower than it must be."""
    parts = ["transfers", "rest", "control", "holders", "changed", "encodings", "digests", "disk"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=parts, help="this part alone; may be given again")
    parser.add_argument("--trials", type=int, default=15, help="transfers of each kind and size (15)")
    parser.add_argument("--folder", type=Path, help="where `disk` writes (the system's temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    chosen = parser.parse_args()
    if chosen.trials < 1:
        parser.error("--trials must be at least 1")
    try:
        report = bench(chosen.only or parts, chosen.trials, chosen.folder)
    except BulkError as error:
        print(f"error: a transfer failed: {error}; run it again where less else runs", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0 if all(aim["met"] for aim in report.get("aims", [])) else 1


if __name__ == "__main__":
    sys.exit(main())
