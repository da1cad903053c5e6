"""MAML: find an initialisation from which one gradient step on a new task's few data goes far (Finn et al., ICML 2017).

Objective, with omega_i = |D_i| / sum |D| (DESIGN 10):

    min over theta of  sum_i omega_i L(phi_i, query_i),   phi_i = theta - alpha grad L(theta, support_i)

1. A `train` iteration draws a support and a query batch and takes the meta-gradient at theta, (I - alpha H(theta, support))
   grad L(phi, query), by differentiating through the inner step. With several inner steps the chain has one factor a step.
   First order (FOMAML, section 5.2 there) leaves the Hessians out: the inner gradient counts as a constant.
2. theta does not move in a train job: the contribution is the mean meta-gradient over the job's iterations, and the manager
   steps.
3. An `adapt` iteration is one step of Adam (Kingma & Ba, algorithm 1) or of gradient descent on the target's adaptation data.
4. One random stream, named (run's seed, agent's name), serves all jobs of a run. It starts with the run's first job and is
   state from then on.

State between two iterations: tensors `theta/*` and `sum/*` (train) or `theta/*`, `first/*` and `second/*` (adapt; theta is what
adapts, first and second are Adam's moments), and `Progress` as JSON. The bits repeat on one kind of processor with one number
of torch threads.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fmrec_agent.learning.learner import Contribution, Job, JobKind, Learner, LearnerError, Role, Tensors
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, Task

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
GROUPS: dict[JobKind, tuple[str, ...]] = {"train": ("theta", "sum"), "adapt": ("theta", "first", "second")}
JOB_OF_ROLE: dict[Role, JobKind] = {"source": "train", "target": "adapt"}


class MetaGradient(NamedTuple):
    """gradient: by theta's names and shapes. loss: the query loss at phi."""

    gradient: dict[str, Tensor]
    loss: float


class PCG64State(BaseModel):
    """numpy's PCG64 between two draws."""

    model_config = ConfigDict(extra="forbid", strict=True)
    state: int = Field(ge=0, lt=1 << 128)
    inc: int = Field(ge=0, lt=1 << 128)
    has_uint32: int = Field(ge=0, le=1)
    uinteger: int = Field(ge=0, lt=1 << 32)

    @classmethod
    def of(cls, generator: np.random.Generator) -> PCG64State:
        state = generator.bit_generator.state
        return cls(**state["state"], has_uint32=state["has_uint32"], uinteger=state["uinteger"])

    def generator(self) -> np.random.Generator:
        bits = np.random.PCG64()
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": self.state, "inc": self.inc},
            "has_uint32": self.has_uint32,
            "uinteger": self.uinteger,
        }
        return np.random.Generator(bits)


class Progress(BaseModel):
    """Where a learner stands, apart from its tensors. `kind` is None before the first job; `seed` names the run of the stream."""

    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")
    method: Literal["maml"] = "maml"
    kind: JobKind | None = None
    round: int = 0
    seed: int = 0
    iteration: int = Field(default=0, ge=0)
    loss_sum: float = 0.0
    milestones: dict[str, float] = {}
    random: PCG64State | None = None


class MAML(Learner):
    """One agent's MAML on `task`. A source task trains, a target task adapts."""

    def __init__(self, options: LearningOptions, task: Task, *, name: str) -> None:
        self.role: Role = "source" if isinstance(task, SourceTask) else "target"
        self._options = options
        self._task = task
        self._name = name
        self._layout = {key: (tuple(value.shape), value.dtype) for key, value in task.initial_parameters(0).items()}
        self._progress = Progress()
        self._generator: np.random.Generator | None = None
        self._groups: dict[str, dict[str, Tensor]] = {}

    def initial_parameters(self, seed: int) -> Tensors:
        return as_numpy(self._task.initial_parameters(seed))

    def begin(self, job: Job, theta: Tensors) -> int:
        """LearnerError, with nothing changed, where the job is not this role's or `theta` has another layout."""
        if job.kind != JOB_OF_ROLE[self.role]:
            raise LearnerError(
                f"{self._name} is a {self.role} and cannot {job.kind}: "
                "give this job to an agent of the other role"
            )
        parameters = self._take("theta", theta)
        # A stream a job: a life that lost its record still draws what the lost one would have drawn.
        self._generator = stream(job.seed, self._name, job.kind, job.round)
        self._progress = Progress(kind=job.kind, round=job.round, seed=job.seed)
        zeros = {group: {key: torch.zeros_like(value) for key, value in parameters.items()} for group in GROUPS[job.kind][1:]}
        self._groups = {"theta": parameters, **zeros}
        return self._iterations(job.kind)

    def step(self) -> float:
        kind, generator = self._running()
        progress = self._progress
        if progress.iteration >= self._iterations(kind):
            raise LearnerError(f"{self._name} has done all iterations of its {kind} job of round {progress.round}: call finish()")
        loss = self._train(generator) if kind == "train" else self._adapt(generator)
        progress.iteration += 1
        progress.loss_sum += loss
        if isinstance(self._task, TargetTask) and progress.iteration in self._task.milestones:
            _, metrics = self._task.evaluate(self._groups["theta"])
            progress.milestones |= {f"{metric}_after_{progress.iteration}": value for metric, value in metrics.items()}
        return loss

    def finish(self) -> Contribution:
        kind, _ = self._running()
        progress, total = self._progress, self._iterations(kind)
        if progress.iteration < total:
            raise LearnerError(
                f"{self._name} has done {progress.iteration} of {total} iterations of its {kind} job: "
                "step() until done"
            )
        if isinstance(self._task, TargetTask):
            loss, metrics = self._task.evaluate(self._groups["theta"])
            return Contribution(as_numpy(self._groups["theta"]), loss, self._task.samples, {**metrics, **progress.milestones})
        mean = {key: value / total for key, value in self._groups["sum"].items()}
        return Contribution(as_numpy(mean), progress.loss_sum / total, self._task.samples)

    def state(self) -> tuple[Tensors, bytes]:
        random = None if self._generator is None else PCG64State.of(self._generator)
        tensors = {f"{group}/{key}": value for group, named in self._groups.items() for key, value in named.items()}
        return as_numpy(tensors), self._progress.model_copy(update={"random": random}).model_dump_json().encode()

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        """LearnerError, with nothing changed, where the state is of another method, role, task or size."""
        try:
            progress = Progress.model_validate_json(extra)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
            raise LearnerError(
                f"{self._name} cannot restore a state whose {where} is unreadable: "
                "it is not a state of MAML"
            ) from error
        if progress.kind not in (None, JOB_OF_ROLE[self.role]) or (progress.kind is None) != (progress.random is None):
            raise LearnerError(
                f"{self._name} is a {self.role} and cannot restore a {progress.kind} state: "
                "the roles were exchanged"
            )
        names = () if progress.kind is None else GROUPS[progress.kind]
        unknown = sorted(key for key in tensors if key.partition("/")[0] not in names)
        if unknown:
            raise LearnerError(f"{self._name} cannot restore a state with tensor {unknown[0]!r}: it is of another learner")
        self._groups = {group: self._take(group, strip(group, tensors)) for group in names}
        self._progress = progress
        self._generator = None if progress.random is None else progress.random.generator()

    def _running(self) -> tuple[JobKind, np.random.Generator]:
        if self._progress.kind is None or self._generator is None:
            raise LearnerError(f"{self._name} has no job: call begin() or restore() first")
        return self._progress.kind, self._generator

    def _iterations(self, kind: JobKind) -> int:
        return self._options.iterations_per_round if kind == "train" else self._options.adapt_iterations

    def _take(self, group: str, given: Tensors) -> dict[str, Tensor]:
        """Copies of the given tensors in the layout's order; LearnerError where a name, shape or dtype differs."""
        found = {key: (tuple(value.shape), value.dtype.name) for key, value in given.items()}
        wanted = {key: (shape, str(dtype).removeprefix("torch.")) for key, (shape, dtype) in self._layout.items()}
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                raise LearnerError(
                    f"{self._name}: tensor {group}/{key} is {described(found.get(key))}, "
                    f"and this task's model wants {described(wanted.get(key))}: give every agent of a tree the same task options"
                )
        # torch aligns its memory alike in every process; over numpy's memory a matrix product may round differently.
        return {key: torch.tensor(given[key]) for key in self._layout}

    def _train(self, generator: np.random.Generator) -> float:
        assert isinstance(self._task, SourceTask)
        support, query = self._task.draw(generator)
        gradient, loss = meta_gradient(self._task, self._groups["theta"], support, query, self._options)
        for key, value in gradient.items():
            self._groups["sum"][key] += value
        return loss

    def _adapt(self, generator: np.random.Generator) -> float:
        assert isinstance(self._task, TargetTask)
        theta = leaves(self._groups["theta"])
        loss = self._task.loss(theta, self._task.draw_adaptation(generator))
        gradient = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
        if self._options.adapt_optimizer == "adam":
            adam(self._groups, gradient, self._progress.iteration + 1, self._options.adapt_rate)
        else:
            for key, value in gradient.items():
                self._groups["theta"][key] -= self._options.adapt_rate * value
        return float(loss.detach())


def meta_gradient(task: SourceTask, theta: Parameters, support: Batch, query: Batch, options: LearningOptions) -> MetaGradient:
    """grad over theta of L(phi(theta), query), the mean over the draw's tasks; exact, or first order if the options say so.

    The model is a plain function, so ordinary autograd differentiates through the inner step; `torch.func.grad` gives the same
    numbers in twice the time for a model this small. With a meta-batch each task has its own copy of theta (a view) and `vmap`
    runs them together; as no task reads another's copy, the gradient of the summed losses is every task's own.
    """

    def losses(parameters: Parameters, batch: Batch) -> Tensor:
        return torch.func.vmap(task.loss)(parameters, batch) if task.meta_batch > 1 else task.loss(parameters, batch)

    origin = leaves(theta)
    phi = dict(origin)
    if task.meta_batch > 1:
        phi = {key: value.expand(task.meta_batch, *value.shape) for key, value in origin.items()}
    for _ in range(options.inner_steps):
        inner = losses(phi, support).sum()
        steps = torch.autograd.grad(inner, list(phi.values()), create_graph=not options.first_order)
        phi = {key: value - options.inner_rate * step for (key, value), step in zip(phi.items(), steps, strict=True)}
    loss = losses(phi, query).mean()
    gradient = torch.autograd.grad(loss, list(origin.values()))
    return MetaGradient(dict(zip(origin, gradient, strict=True)), float(loss.detach()))


def adam(groups: dict[str, dict[str, Tensor]], gradient: Parameters, time: int, rate: float) -> None:
    """One step, the `time`-th from 1, in place on the groups theta, first and second."""
    beta1, beta2 = ADAM_BETAS
    for key, value in gradient.items():
        first = groups["first"][key].lerp_(value, 1 - beta1)
        second = groups["second"][key].mul_(beta2).addcmul_(value, value, value=1 - beta2)
        scale = (second / (1 - beta2**time)).sqrt_().add_(ADAM_EPSILON)
        groups["theta"][key].addcdiv_(first, scale, value=-rate / (1 - beta1**time))


def leaves(parameters: Parameters) -> dict[str, Tensor]:
    return {key: value.detach().requires_grad_() for key, value in parameters.items()}


def as_numpy(tensors: Parameters) -> dict[str, np.ndarray[Any, Any]]:
    """Copies, which later steps leave alone."""
    return {key: value.detach().numpy().copy() for key, value in tensors.items()}


def strip(group: str, tensors: Tensors) -> Tensors:
    return {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == group}


def described(layout: tuple[tuple[int, ...], str] | None) -> str:
    return "missing" if layout is None else f"{layout[1]}{list(layout[0])}"
