"""Does a learner keep the promises that exact recovery rests on (learner.py)? Found out by doing to it what a death does.

A *course* is two jobs in a row, so that what one job leaves to the next counts too. It is run undisturbed; then, from up to
POINTS_MAX moments of each job, a new learner is given the state of that moment, as a record brings it (sealed and opened), and must
end the course with equal bytes: contributions, losses, metrics and states. So must, from some of the moments, a learner that has worked at
another run. A job is begun again after its end, and anew after half of its steps. Another process, which hashes strings differently, runs
the course too.

`fmrec-agent check-learner my_module:MyLearner` prints the findings; a test of one's own may call `findings()`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fmrec_agent.learning.learner import Contribution, Job, JobKind, Learner, LearnerError, Role, Tensors
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.stranger import state_of, told
from protocol.identifiers import NodeId, TreeId
from protocol.knowledge import Knowledge, open_record, seal

ROUNDS = (1, 2)
SEED = 1
POINTS_MAX = 8
JOB_OF: dict[Role, JobKind] = {"source": "train", "target": "adapt"}
CHILD_TIMEOUT_S = 300.0

START = "theta_0 is the same in every agent"
FITS = "a contribution fits theta, and its loss is finite"
UNCHANGED = "finish() changes nothing that state() holds"
COPIES = "state() returns copies"
EXACT = "restored at any iteration, it ends with equal bytes"
AGAIN = "a round that is begun again is the same round"
REUSED = "restored after other work, it ends with equal bytes"
ELSEWHERE = "another process ends with equal bytes"
WORKS = "it can be taken through two jobs"

Make = Callable[[str], Learner]
"""A new learner for the agent of this name, as a new process would build it; each time of the same role."""


@dataclass(frozen=True, slots=True)
class Finding:
    """promise: what was looked at. fault: how it is broken, one sentence; None where it is kept."""

    promise: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A state in the course's `job`-th job, after `done` of its iterations."""

    job: int
    done: int
    total: int
    tensors: Tensors
    extra: bytes


@dataclass(slots=True)
class Course:
    """An undisturbed course: a digest of what each job ended with, moments to go on from, and the faults that were seen on the way."""

    outcomes: list[str] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)


def findings(make: Make, role: Role, seed: int = SEED) -> Iterator[Finding]:
    """One for each promise that one process can look at; where the learner raises, a last one that says so."""
    try:
        thetas = [digest(make(name).initial_parameters(seed)) for name in ("a", "a", "b")]
        fault = f"seed {seed} gave different bytes at different times: draw from a generator made of the seed alone"
        yield Finding(START, None if len(set(thetas)) == 1 else fault)
        course = undisturbed(make("a"), role, seed)
        for promise in (FITS, UNCHANGED, COPIES):
            yield Finding(promise, course.faults.get(promise))
        remedy = "state() must hold all that is read later, and restore() bring all of it back"
        faults = (_faulty_sequel(make("a"), role, seed, course, moment, "", remedy) for moment in course.moments)
        yield Finding(EXACT, next((fault for fault in faults if fault), None))
        yield Finding(AGAIN, course.faults.get(AGAIN) or _given_up(make("a"), role, seed, course))
        where, remedy = " into a learner that had worked", "restore() must put all that is read later in the place of what was there"
        used = ((_worked(make("a"), role, seed + 1), moment) for moment in course.moments[1::3])
        faults = (_faulty_sequel(learner, role, seed, course, moment, where, remedy) for learner, moment in used)
        yield Finding(REUSED, next((fault for fault in faults if fault), None))
    except Exception as error:  # it is a stranger's code, and whatever it raises is the finding
        yield Finding(WORKS, str(error) if isinstance(error, LearnerError) else told(error))


def elsewhere(options: LearningOptions, role: Role, seed: int = SEED) -> Finding:
    """Does a process of its own, with another hash seed, end the course of the options' learner as this one does?"""
    make = maker(options, role)
    asked = json.dumps({"options": options.model_dump(mode="json"), "role": role, "seed": seed})
    command, environment = [sys.executable, "-m", "fmrec_agent.learning.conformance"], {**os.environ, "PYTHONHASHSEED": "4242"}
    try:
        child = subprocess.run(
            command, input=asked, env=environment, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(ELSEWHERE, f"two jobs took longer than {CHILD_TIMEOUT_S:.0f} s there: check with fewer iterations")
    if child.returncode:
        return Finding(ELSEWHERE, f"it failed there: {(child.stderr.strip().splitlines() or ['without a word'])[-1]}")
    same = json.loads(child.stdout) == undisturbed(make("a"), role, seed).outcomes
    return Finding(ELSEWHERE, None if same else "no clock, no hash(), no order of a set and no global random source may show")


def maker(options: LearningOptions, role: Role) -> Make:
    """What builds the options' learner, the first of its role."""
    return lambda name: load_learner(options, name=name, role=role, index=0)


def undisturbed(learner: Learner, role: Role, seed: int) -> Course:
    """The course from its beginning to its end."""
    course = Course()
    for index in range(len(ROUNDS)):
        theta = _theta(learner, seed, index)
        total = learner.begin(_job(role, seed, index), theta)
        if total < 1:
            raise ValueError(f"begin() returned {total}: a job has at least one iteration")
        points = {round(point) for point in np.linspace(0, total, POINTS_MAX)}
        for done in range(total + 1):
            if done in points:
                course.moments.append(Moment(index, done, total, *state_of(learner)))
                kept = _state_of(course.moments[-1])
            if done < total:
                learner.step()
            if _state_of(course.moments[-1]) != kept:
                course.faults[COPIES] = f"step {done + 1} changed arrays that state() had returned: copy them there"
        contribution = learner.finish()
        if digest(*state_of(learner)) != kept:
            course.faults[UNCHANGED] = "state() differs before and after finish(): leave what the next job begins from to begin()"
        if fault := _misfit(contribution, theta, role):
            course.faults[FITS] = fault
        course.outcomes.append(_outcome(contribution, learner))
    if _ended(learner, role, seed, index) != course.outcomes[-1]:
        course.faults[AGAIN] = f"job {index + 1}, begun twice, ended with other bytes: what it leaves counts from the next round on"
    return course


def _ended(learner: Learner, role: Role, seed: int, index: int) -> str:
    """The job's outcome, from its beginning."""
    for _ in range(learner.begin(_job(role, seed, index), _theta(learner, seed, index))):
        learner.step()
    return _outcome(learner.finish(), learner)


def _worked(learner: Learner, role: Role, seed: int) -> Learner:
    """It, after a job of that seed's run."""
    _ended(learner, role, seed, 0)
    return learner


def _given_up(learner: Learner, role: Role, seed: int, course: Course) -> str | None:
    """What is wrong with jobs that are begun anew after half of their steps, if anything is."""
    for index, expected in enumerate(course.outcomes):
        total = learner.begin(_job(role, seed, index), _theta(learner, seed, index))
        half = (total + 1) // 2
        for _ in range(half):
            learner.step()
        if _ended(learner, role, seed, index) != expected:
            begun = f"job {index + 1}, begun anew after {half} of {total} steps"
            return f"{begun}, ended with other bytes: begin() must make anew whatever belongs to one job"
    return None


def _faulty_sequel(learner: Learner, role: Role, seed: int, course: Course, moment: Moment, where: str, remedy: str) -> str | None:
    """What is wrong with how the learner goes on from the moment, if anything is: `where` (into what) and the remedy are words for it."""
    learner.restore(*_through_a_record(moment))
    for index in range(moment.job, len(ROUNDS)):
        done, total = moment.done, moment.total
        if index > moment.job:
            done, total = 0, learner.begin(_job(role, seed, index), _theta(learner, seed, index))
        for _ in range(done, total):
            learner.step()
        if _outcome(learner.finish(), learner) != course.outcomes[index]:
            return (
                f"restored after {moment.done} of {moment.total} steps of job {moment.job + 1}{where}, "
                f"it ended job {index + 1} with other bytes: {remedy}"
            )
    return None


def _job(role: Role, seed: int, index: int) -> Job:
    return Job(JOB_OF[role], ROUNDS[index], seed)


def _theta(learner: Learner, seed: int, index: int) -> Tensors:
    """What the job starts from: theta_0, and for the second job another."""
    return {key: value * value.dtype.type(1 - index / 8) for key, value in learner.initial_parameters(seed).items()}


def _through_a_record(moment: Moment) -> tuple[Tensors, bytes]:
    """The state as it comes out of a replica."""
    tensors = {"state": dict(moment.tensors)}
    sealed = seal(Knowledge(NodeId(0), TreeId(0), 0, 0, "train", 0, 0, False, state=moment.extra, tensors=tensors))
    opened = open_record(*sealed)
    return opened.tensors.get("state", {}), bytes(opened.state)


def _misfit(contribution: Contribution, theta: Tensors, role: Role) -> str | None:
    if not math.isfinite(contribution.loss):
        return f"the loss is {contribution.loss}: the manager refuses such a contribution"
    if contribution.samples < 1:
        return f"samples is {contribution.samples}: it is the number of local samples"
    for key in sorted(contribution.tensors.keys() | theta.keys()) if role == "source" else ():
        sent, wanted = (None if (array := of.get(key)) is None else (array.dtype, array.shape) for of in (contribution.tensors, theta))
        if sent != wanted:
            return f"tensor {key} of the contribution is {sent}, of theta {wanted}: a train job yields theta's names, dtypes and shapes"
    return None


def digest(tensors: Tensors, extra: bytes = b"") -> str:
    """SHA-256 over names, dtypes, shapes and bytes in the order of names, and the extra bytes: equal only for equal bits."""
    total = hashlib.sha256(extra)
    for key in sorted(tensors):
        total.update(f"{key} {tensors[key].dtype} {tensors[key].shape}".encode() + tensors[key].tobytes())
    return total.hexdigest()


def _state_of(moment: Moment) -> str:
    return digest(moment.tensors, moment.extra)


def _outcome(contribution: Contribution, learner: Learner) -> str:
    figures = repr((contribution.loss, contribution.samples, sorted(contribution.metrics.items())))
    return digest(contribution.tensors, f"{figures}{digest(*state_of(learner))}".encode())


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    chosen = LearningOptions.model_validate(asked["options"])
    print(json.dumps(undisturbed(maker(chosen, asked["role"])("a"), asked["role"], asked["seed"]).outcomes))
