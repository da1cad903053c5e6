"""What aggregating a round costs: weighted mean, median, trimmed mean and Krum of n contributions of P float32 values, on the CPU and on
CUDA where there is one, beside the bandwidth with which the same device copies.

    read GB/s    4 n P bytes, each contribution counted once, by the time from contributions to aggregate. What is written, and what
                 a rule reads again out of its own pieces, is not counted: it is the rule's own affair to keep that in caches
    copy GB/s    the floor: bytes read and bytes written, by the time of copying 256 MiB to other 256 MiB (torch, with all its threads),
                 measured before and after each size
    share        the one by the other. The mean must read everything once and do next to nothing with it: its aim is 0.8, of 1 GiB or
                 more. Of less, caches hold a part, and what a call costs by itself shows: on a GPU, 0.2 ms are half a gigabyte

Each time is the best of --trials (Krum: of one), for what else runs on the machine only ever adds. On CUDA the contributions lie in
its memory. The mean is one compiled pass (fmrec_manager/weighted_sum.py); where that is not to be had, it says so. With --json, one
object on standard output. The default takes 3 GiB of memory; --quick is for seeing that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmrec_manager.aggregates import Stack, krum, median, trimmed_mean, weighted_mean
from fmrec_manager.weighted_sum import compiled, cuda_kernel
from scripts.demo_report import hardware

AIM = 0.80
AIM_BYTES = 1 << 30
"""What the contributions must be for the aim to be judged."""
COPIED_BYTES = 256 << 20
TRIM = 0.1
MEBI = 1 << 20

Figures = dict[str, Any]


def rules(agents: int) -> dict[str, Callable[[Stack], object]]:
    """Each rule on a stack; Krum for as many Byzantine agents as so many allow, up to a fifth."""
    shares = [float(100 + index) for index in range(agents)]
    byzantine = min(agents // 5, (agents - 3) // 2)
    return {
        "weighted_mean": lambda stack: weighted_mean(stack, shares),
        "median": median,
        "trimmed_mean": lambda stack: trimmed_mean(stack, TRIM),
        "krum": lambda stack: krum(stack, byzantine, 1),
    }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long it takes; on CUDA, until it has been done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - began


class Copy:
    """The floor of one device: the best bandwidth of a copy that was seen, GB/s read and written."""

    def __init__(self, device: torch.device, copied_bytes: int) -> None:
        self._device = device
        self._source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
        self._target = torch.zeros_like(self._source)
        self.best = 0.0

    def measure(self, trials: int) -> None:
        for _ in range(trials):
            took = seconds(lambda: self._target.copy_(self._source), self._device)
            self.best = max(self.best, 2 * self._source.numel() / took / 1e9)


def bench_device(device: torch.device, sizes: list[tuple[int, int]], only: list[str], trials: int, copied_bytes: int) -> Figures:
    """Every size and rule on one device; the contributions are made once and cut to each size."""
    generator = torch.Generator(device).manual_seed(1)
    most = max(parameters for _, parameters in sizes)
    made = [torch.randn(most, device=device, generator=generator) for _ in range(max(agents for agents, _ in sizes))]
    copy, rows = Copy(device, copied_bytes), []
    for agents, parameters in sizes:
        stack = Stack([{"w": row[:parameters]} for row in made[:agents]], ["w"], device)
        for name, rule in rules(agents).items():
            if name not in only:
                continue
            copy.measure(trials)
            took = min(seconds(partial(rule, stack), device) for _ in range(1 if name == "krum" else trials))
            copy.measure(trials)
            read = 4 * agents * parameters / took / 1e9
            rows.append({"agents": agents, "parameters": parameters, "rule": name, "seconds": took, "read_gb_per_s": read})
    for row in rows:
        row["share_of_copy"] = round(row["read_gb_per_s"] / copy.best, 3)
        row["seconds"], row["read_gb_per_s"] = round(row["seconds"], 5), round(row["read_gb_per_s"], 3)
    threads = torch.get_num_threads() if device.type == "cpu" else None
    kernel = (compiled if device.type == "cpu" else cuda_kernel(torch.float32, device)) is not None
    return {"copy_gb_per_s": round(copy.best, 4), "threads": threads, "compiled_mean": kernel, "rows": rows}


def bench(chosen: argparse.Namespace) -> Figures:
    """The report."""
    report: Figures = {"hardware": hardware(), "load_before": round(os.getloadavg()[0], 2), "torch": torch.__version__, "devices": {}}
    names = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    sizes = list(product(chosen.agents, chosen.parameters))
    copied = 8 * MEBI if chosen.quick else COPIED_BYTES
    for name in names:
        report["devices"][name] = bench_device(torch.device(name), sizes, chosen.only, chosen.trials, copied)
    report["aims"] = aims(report["devices"])
    return report


def aims(devices: Figures) -> list[Figures]:
    """What is asked of the mean, and whether it is met."""
    return [
        {"what": f"weighted_mean of {row['agents']} x {row['parameters']:,} on {name}", "measured": row["share_of_copy"], "at_least": AIM,
         "met": row["share_of_copy"] >= AIM}
        for name, part in devices.items() for row in part["rows"]
        if row["rule"] == "weighted_mean" and 4 * row["agents"] * row["parameters"] >= AIM_BYTES
    ]  # fmt: skip


def show(report: Figures) -> None:
    """A table a device, and the aims."""
    console = Console(width=140, highlight=False)
    console.print(f"\n{report['hardware']}; load before {report['load_before']}; torch {report['torch']}\n")
    for name, part in report["devices"].items():
        threads = f", {part['threads']} threads" if part["threads"] else ""
        slow = "" if part["compiled_mean"] else "; the mean by torch's operations, for its compiled kernel is not there"
        title = f"{name}{threads}: copies at {part['copy_gb_per_s']:.2f} GB/s{slow}"
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for column in ("agents", "parameters", "rule", "seconds", "read GB/s", "share"):
            table.add_column(column, justify="left" if column == "rule" else "right")
        for row in part["rows"]:
            figures = (f"{row['seconds']:.4f}", f"{row['read_gb_per_s']:.2f}", f"{row['share_of_copy']:.2f}")
            table.add_row(str(row["agents"]), f"{row['parameters']:,}", row["rule"], *figures)
        console.print(table, "")
    if "cuda" not in report["devices"]:
        console.print("cuda: there is none here\n")
    for aim in report["aims"]:
        console.print(f"{aim['what']}: {aim['measured']:.2f} of a copy's bandwidth, aim {aim['at_least']}: {'yes' if aim['met'] else 'NO'}")


def main() -> int:
    """The command line; 1 where a mean is slower than it must be. --quick judges nothing."""
    names = list(rules(5))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[20, 100, 500], help="n (20 100 500); at least 3")
    parser.add_argument("--parameters", type=int, nargs="+", default=[10_000, 1_000_000], help="P (10000 1000000)")
    parser.add_argument("--only", action="append", choices=names, help="this rule alone; may be given again")
    parser.add_argument("--trials", type=int, default=5, help="of each measurement (5)")
    parser.add_argument("--quick", action="store_true", help="5 agents, 1000 parameters, one trial")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.agents, chosen.parameters, chosen.trials = [5], [1000], 1
    if min(chosen.agents) < 3 or min(chosen.parameters) < 1 or chosen.trials < 1:
        parser.error("--agents must be at least 3 each, --parameters and --trials at least 1")
    chosen.only = chosen.only or names
    report = bench(chosen)
    if chosen.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0 if chosen.quick or all(aim["met"] for aim in report["aims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
