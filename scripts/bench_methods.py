"""What a draw costs by each gradient method: its tasks in one vmap, and one by one; beside the floor, one plain gradient of the same batch.

`ridge` is left out: its closed form is for linear models. The task is the sinusoid (an MLP of two hidden layers), `--tasks` of them in a
draw. The floor is the gradient over theta of the mean loss on the query batch, all tasks together and without adaptation: what FedAvg
cannot do without. Each figure is the least of `--repeats` timings of CPU time in this process, with one torch thread. `--json` prints one
object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmrec_agent.learning.learner import Job, Learner
from fmrec_agent.learning.loading import LEARNERS, load_learner, load_task
from fmrec_agent.learning.meta_gradient import gradients, leaves, spread
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import SourceTask
from scripts.demo_report import hardware

METHODS = [name for name in LEARNERS if name != "ridge"]
Figures = dict[str, Any]


def least_ms(work: Callable[[], object], repeats: int) -> float:
    """CPU time of one call, in milliseconds; after one that doesn't count."""
    work()
    taken_s = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken_s.append(time.process_time() - began)
    return 1000 * min(taken_s)


def options(method: str, tasks: int, repeats: int, tasks_at_once: int) -> LearningOptions:
    task = {"name": "sinusoid", "meta_batch": tasks}
    given = {"learner": method, "task": task, "iterations_per_round": repeats + 1, "tasks_at_once": tasks_at_once, "device": "cpu"}
    return LearningOptions.model_validate(given)


def step_ms(method: str, tasks: int, repeats: int, tasks_at_once: int) -> float:
    """One iteration of a train job, the draw included."""
    learner: Learner = load_learner(options(method, tasks, repeats, tasks_at_once), name="a", role="source", index=0)
    learner.begin(Job("train", 0, 0), learner.initial_parameters(0))
    return least_ms(learner.step, repeats)


def floor_ms(tasks: int, repeats: int) -> float:
    task = load_task(options("fedavg", tasks, repeats, tasks), role="source", index=0)
    assert isinstance(task, SourceTask)
    _, query = task.draw(stream("bench", 0))
    theta = leaves(spread(task, task.initial_parameters(0), query))
    return least_ms(lambda: gradients(task, theta, query), repeats)


def bench(tasks: int, repeats: int) -> Figures:
    """All that was asked for; the report."""
    floor = floor_ms(tasks, repeats)
    methods: Figures = {}
    for method in METHODS:
        together, one_by_one = (step_ms(method, tasks, repeats, at_once) for at_once in (tasks, 1))
        figures = {"together_ms": together, "one_by_one_ms": one_by_one, "speed_up": one_by_one / together, "of_floor": together / floor}
        methods[method] = {name: round(value, 3) for name, value in figures.items()}
    return {"hardware": hardware(), "tasks": tasks, "floor_ms": round(floor, 3), "methods": methods}


def show(report: Figures) -> None:
    title = f"a draw of {report['tasks']} sinusoids; the floor is {report['floor_ms']} ms"
    table = Table("method", "together, ms", "one by one, ms", "speed-up", "times the floor", title=title)
    for method, row in report["methods"].items():
        table.add_row(method, *(f"{row[name]:.1f}" for name in ("together_ms", "one_by_one_ms", "speed_up", "of_floor")))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=25, help="tasks of a draw, at least 2 (default 25)")
    parser.add_argument("--repeats", type=int, default=30, help="timings of which the least counts (default 30)")
    parser.add_argument("--json", action="store_true", help="one object instead of the table")
    given = parser.parse_args()
    if given.tasks < 2 or given.repeats < 1:
        parser.error("--tasks is at least 2 and --repeats at least 1")
    torch.set_num_threads(1)
    report = bench(given.tasks, given.repeats)
    if given.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
