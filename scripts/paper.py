"""The figures and tables of the FMRec paper, run again on this machine: Fig. 1, Fig. 4, the parking table, and each method's recovery.

Each part writes its JSON into --out (docs/paper) and may be run alone; the page and the pictures are made anew of what is there. The
modules of scripts/paper_run say what each part runs, and which of it are real processes. Exits 1 where FMRec's theta is not the
undisturbed one's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmrec_agent.learning.learner import LearnerError
from fmrec_manager.aggregation import AggregationError
from scripts.demo_report import hardware
from scripts.local_cluster import ClusterError
from scripts.paper_run import fig1, fig4, page, parking, pictures, recovery
from scripts.paper_run.finished import Finished

PARTS = ("recovery", "fig4", "fig1", "parking")
DOCS = Path(__file__).resolve().parents[1] / "docs" / "paper"


async def measured(part: str, data: str, given: argparse.Namespace, finished: Finished) -> dict[str, Any]:
    """What the part's JSON holds."""
    runs = given.runs / part
    if part == "recovery":
        return await recovery.measure(data, given.seeds[0], runs, finished, given.quick)
    if part == "fig4":
        return await fig4.measure(data, given.seeds[0], runs, finished, given.quick, given.repeats)
    if part == "fig1":
        return await fig1.measure(data, given.seeds, runs, finished, given.quick)
    return await parking.measure(data, given.seeds, finished, given.quick)


def exact(part: str, report: dict[str, Any]) -> bool:
    """Has FMRec kept what the part says that it keeps?"""
    if part == "recovery":
        return all(row["theta_equal"] for row in report.values())
    if part == "fig4":
        return bool(report["result_equal"])
    if part == "fig1":
        points = all(point["theta_equal"] and point["rmse_equal"] for point in report["on_processes"])
        return bool(report["fmrec_equals_undisturbed"]) and points
    return True


def keep(part: str, report: dict[str, Any], about: dict[str, Any], out: Path) -> None:
    """The part's files; and what was run, in runs.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{part}.json").write_text(json.dumps(report, indent=1) + "\n")
    runs = out / "runs.json"
    known = json.loads(runs.read_text()) if runs.exists() else {}
    runs.write_text(json.dumps({**known, part: about}, indent=1) + "\n")
    if part == "fig1":
        pictures.draw_fig1(report, about["data"], out / "fig1.png")
    elif part == "fig4":
        pictures.draw_fig4(report, about["data"], out / "fig4.png")
    page.write(out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part alone; may be given again")
    parser.add_argument("--data", default="synthetic", help="'synthetic', or a folder with counts.csv, lots.csv, occupancy_exceptions.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the RMSE's; what times or compares takes the first")
    parser.add_argument("--repeats", type=int, default=3, help="of Fig. 4's runs")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the JSON, the pictures and the page go")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"), help="where the processes' logs go")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption: what has been run already is not run again")
    parser.add_argument("--quick", action="store_true", help="small: to see that it runs, not for figures")
    given = parser.parse_args()
    if given.data != "synthetic" and not Path(given.data).is_dir():
        parser.error(f"the data folder {given.data} does not exist: name one with counts.csv, lots.csv and occupancy_exceptions.csv")
    if given.repeats < 1:
        parser.error(f"--repeats is {given.repeats}: one at least is needed")
    if given.quick and given.out.resolve() == DOCS:
        parser.error(f"--quick makes no figures, and would write over those in {DOCS}: name another folder by --out")
    return given


def main() -> int:
    """Run the parts; 1 where one failed, or was not exact."""
    given = arguments()
    data = given.data if given.data == "synthetic" else str(Path(given.data).resolve())
    label = "synthetic parking (seeded generator)" if given.data == "synthetic" else "real parking, Guangzhou to Shenzhen"
    command = shlex.join(["scripts/paper.py", *sys.argv[1:]])
    logging.disable(logging.WARNING)  # a daemon that is not up yet is no news here
    failed = False
    for part in given.only or PARTS:
        print(f"{part}:", flush=True)
        began, finished = time.monotonic(), Finished(given.runs / part / "finished.json", resume=given.resume)
        try:
            report = asyncio.run(measured(part, data, given, finished))
        except (AggregationError, ClusterError, LearnerError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        seconds, load = round(time.monotonic() - began, 1), round(os.getloadavg()[1], 1)
        about = {"data": label, "command": command, "quick": given.quick, "seconds": seconds, "resumed": finished.resumed}
        about |= {"hardware": hardware(), "load": load}
        keep(part, report, about, given.out)
        if not exact(part, report):
            print(f"error: {part}: FMRec's result is not the undisturbed one's; see {given.out / part}.json", file=sys.stderr)
            failed = True
    print(f"page: {given.out / 'README.md'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
