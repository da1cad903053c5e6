"""What every method of gradient descent shares: jobs, draws, adaptation, and a state that another process goes on from.

A method (methods/) says one thing: the vector that a draw yields at given parameters, `gradient()`. What becomes of it is one of two:

1. `MeanLearner`: theta does not move in a train job. The vectors are taken at theta and averaged over the job's iterations, and the
   mean is sent.
2. `LocalLearner`: the agent moves for itself, local <- local - beta g(local), one step an iteration, from local = theta; theta - local
   is sent. With server_optimizer sgd and server_rate 1 the next theta is then exactly the weighted mean of the local parameters; any
   other server optimizer takes theta - local as a pseudo-gradient (Reddi et al., ICLR 2021, algorithm 1).
3. A draw of several tasks is computed by one vmap, or in parts of `tasks_at_once` tasks, which bounds memory; the parts' means are
   weighted by their tasks, so that the split shows in rounding alone. With gradient_norm_max the draw's vector is then shortened to that
   norm where it is longer (Pascanu et al., ICML 2013, algorithm 1): through several inner steps, one in thousands is very long.
4. An `adapt` iteration is one step of Adam (Kingma & Ba, algorithm 1) or of gradient descent on the target's adaptation data.
5. A job has a random stream of its own, named (run's seed, agent's name, kind, round): a life that lost its record still draws what
   the lost one would have drawn.
6. Each train contribution has the metric `nufm_gradient_norm`, the norm of the meta-gradient at theta, by which NUFM (Yue et al.,
   JSAC 2022) estimates what an agent's part in a round is worth. A method that moves has its mean over the way: (theta - local)
   / (beta n) after n steps.

State between two iterations: tensors `theta/*` and the method's `train_groups` (train) or `theta/*`, `first/*` and `second/*` (adapt;
theta is what adapts, first and second are Adam's moments), and `Progress` as JSON. The bits repeat on one kind of device (device.py).
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from fmrec_agent.learning.device import prepared_device
from fmrec_agent.learning.learner import Contribution, Job, JobKind, Learner, LearnerError, Role, Tensors
from fmrec_agent.learning.meta_gradient import MetaGradient, leaves
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.progress import PCG64State, Progress
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, Task

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
MOMENTS = ("first", "second")
NO_PART_OF_A_STATE: Any = {"device": True, "task": {"data"}}
"""Options that may be others when a state is restored: where one computes, and where the data lies."""
JOB_OF_ROLE: dict[Role, JobKind] = {"source": "train", "target": "adapt"}


class GradientLearner(Learner):
    """One agent's learning on `task`, a source's or a target's. What is abstract here, a method or one of the two kinds below says."""

    method: ClassVar[str]
    """Its name among the learners; a state of another method is refused."""
    train_groups: ClassVar[tuple[str, ...]]
    """The groups of tensors, laid out like theta, that a train job keeps beside theta."""
    adapt_optimizers: ClassVar[tuple[str, ...]] = ("adam", "sgd")
    sends_difference: ClassVar[bool] = False
    """Is what it sends the way from where it would have theta to where theta is, and not a gradient? The server's step is then to be sgd's:
    contributions say so by the metric `difference`, and a manager that takes other steps warns."""

    def __init__(self, options: LearningOptions, task: Task, *, name: str) -> None:
        self.role: Role = "source" if isinstance(task, SourceTask) else "target"
        if options.adapt_optimizer not in self.adapt_optimizers:
            known = " or ".join(self.adapt_optimizers)
            raise LearnerError(f"{self.method} cannot adapt by adapt_optimizer {options.adapt_optimizer!r}: set it to {known}")
        self._device = prepared_device(options.device)
        self._options = options
        self._task = task
        self._name = name
        self._layout = {key: (tuple(value.shape), value.dtype) for key, value in self._made(0).items()}
        for key, (_, dtype) in self._layout.items():
            if options.dtype == "float64" and dtype != torch.float64:
                raise LearnerError(f"learning.dtype is float64, but {key} of {task.label} is {dtype}: make the model and its data float64")
        self._model_keys = tuple(task.initial_parameters(0))
        said = options.model_dump_json(exclude=NO_PART_OF_A_STATE).encode()
        self._options_digest = hashlib.sha256(said).hexdigest()[:16]
        self._progress = Progress(method=self.method, options=self._options_digest)
        self._generator: np.random.Generator | None = None
        self._groups: dict[str, dict[str, Tensor]] = {}

    # --- what a method says -------------------------------------------------------------------------------------------

    @abstractmethod
    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        """The vector that these batches yield at `parameters` (theta's names), the mean over their tasks; and the loss there."""

    @abstractmethod
    def _begun(self, job: Job, theta: Parameters) -> dict[str, dict[str, Tensor]]:
        """The train groups at the start of `job`; what earlier jobs left is still in `_groups` and `_progress`."""

    @abstractmethod
    def _at(self) -> dict[str, Tensor]:
        """Where the next vector is taken."""

    @abstractmethod
    def _use(self, gradient: Parameters) -> None:
        """What an iteration does with its vector: a change to the train groups, in place."""

    @abstractmethod
    def _meta_gradient(self, iterations: int) -> dict[str, Tensor]:
        """The meta-gradient at theta, or what stands for it, after all `iterations` of a job."""

    @abstractmethod
    def _sent(self, iterations: int) -> dict[str, Tensor]:
        """What the contribution holds, after all `iterations` of a job."""

    def _made(self, seed: int) -> dict[str, Tensor]:
        """theta_0: the model's own, unless the method learns more than the model."""
        return self._task.initial_parameters(seed)

    # --- the contract -------------------------------------------------------------------------------------------------

    def initial_parameters(self, seed: int) -> Tensors:
        return as_numpy(self._made(seed))

    def begin(self, job: Job, theta: Tensors) -> int:
        """LearnerError, with nothing changed, where the job is not this role's or `theta` has another layout."""
        if job.kind != JOB_OF_ROLE[self.role]:
            raise LearnerError(
                f"{self._name} is a {self.role} and cannot {job.kind}: "
                "give this job to an agent of the other role"
            )
        parameters = self._take("theta", theta)
        beside = self._begun(job, parameters) if job.kind == "train" else {name: zeros(parameters) for name in MOMENTS}
        self._groups = {"theta": parameters, **beside}
        self._generator = stream(job.seed, self._name, job.kind, job.round)
        self._progress = Progress(method=self.method, options=self._options_digest, kind=job.kind, round=job.round, seed=job.seed)
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
            _, metrics = self._evaluate(self._task)
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
            loss, metrics = self._evaluate(self._task)
            return Contribution(as_numpy(self._groups["theta"]), loss, self._task.samples, {**metrics, **progress.milestones})
        metrics = {"nufm_gradient_norm": norm(self._meta_gradient(total)), **({"difference": 1.0} if self.sends_difference else {})}
        return Contribution(as_numpy(self._sent(total)), progress.loss_sum / total, self._task.samples, metrics)

    def state(self) -> tuple[Tensors, bytes]:
        random = None if self._generator is None else PCG64State.of(self._generator)
        tensors = {f"{group}/{key}": value for group, named in self._groups.items() for key, value in named.items()}
        return as_numpy(tensors), self._progress.model_copy(update={"random": random}).model_dump_json().encode()

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        """LearnerError, with nothing changed, where the state is of another method, role, task or size, or of other options."""
        try:
            progress = Progress.model_validate_json(extra)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
            raise LearnerError(
                f"{self._name} cannot restore a state whose {where} is unreadable: "
                f"it is not a state of {self.method}"
            ) from error
        if progress.method != self.method:
            raise LearnerError(f"{self._name} runs {self.method} and cannot restore a state of {progress.method}: set learner to that")
        if progress.kind not in (None, JOB_OF_ROLE[self.role]) or (progress.kind is None) != (progress.random is None):
            raise LearnerError(
                f"{self._name} is a {self.role} and cannot restore a {progress.kind} state: "
                "the roles were exchanged"
            )
        names = () if progress.kind is None else self._names(progress.kind)
        unknown = sorted(key for key in tensors if key.partition("/")[0] not in names)
        if unknown:
            raise LearnerError(f"{self._name} cannot restore a state with tensor {unknown[0]!r}: it is of another learner")
        groups = {group: self._take(group, strip(group, tensors)) for group in names}
        if progress.options != self._options_digest:
            raise LearnerError(
                f"{self._name} cannot restore a state that was made under other options of {self.method} or of its task: "
                "set them as they were, or give the new run another name (task, and task in the manager's tree)"
            )
        if progress.kind is not None and progress.iteration > self._iterations(progress.kind):
            raise LearnerError(
                f"{self._name} cannot restore a state after {progress.iteration} iterations of a job of {self._iterations(progress.kind)}: "
                "it is not a state of this learner"
            )
        self._groups, self._progress = groups, progress
        self._generator = None if progress.random is None else progress.random.generator()

    def _running(self) -> tuple[JobKind, np.random.Generator]:
        if self._progress.kind is None or self._generator is None:
            raise LearnerError(f"{self._name} has no job: call begin() or restore() first")
        return self._progress.kind, self._generator

    def _names(self, kind: JobKind) -> tuple[str, ...]:
        return ("theta", *self.train_groups) if kind == "train" else ("theta", *MOMENTS)

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
        return {key: torch.tensor(given[key], device=self._device) for key in self._layout}

    def _moved(self, batch: Batch) -> Batch:
        return batch[0].to(self._device), batch[1].to(self._device)

    def _model(self) -> dict[str, Tensor]:
        """Of theta, what the model knows."""
        return {key: self._groups["theta"][key] for key in self._model_keys}

    def _evaluate(self, task: TargetTask) -> tuple[float, dict[str, float]]:
        """On the CPU, where the task's test data are."""
        return task.evaluate({key: value.cpu() for key, value in self._model().items()})

    def _train(self, generator: np.random.Generator) -> float:
        assert isinstance(self._task, SourceTask)
        support, query = map(self._moved, self._task.draw(generator))
        gradient, loss = self._of_all_tasks(self._task, support, query)
        self._use(shortened(gradient, self._options.gradient_norm_max))
        return loss

    def _of_all_tasks(self, task: SourceTask, support: Batch, query: Batch) -> MetaGradient:
        """The mean of `gradient()` over the draw's tasks, so many at once as the options say (rule 3)."""
        if task.meta_batch <= self._options.tasks_at_once:
            return self.gradient(task, self._at(), support, query)
        parts = zip(*(torch.split(value, self._options.tasks_at_once) for value in (*support, *query)), strict=True)
        mean, mean_loss = zeros(self._at()), 0.0
        for support_x, support_y, query_x, query_y in parts:
            gradient, loss = self.gradient(task, self._at(), (support_x, support_y), (query_x, query_y))
            share = len(support_x) / task.meta_batch
            mean_loss += share * loss
            for key, value in gradient.items():
                mean[key].add_(value, alpha=share)
        return MetaGradient(mean, mean_loss)

    def _adapt(self, generator: np.random.Generator) -> float:
        assert isinstance(self._task, TargetTask)
        model = leaves(self._model())
        loss = self._task.loss(model, self._moved(self._task.draw_adaptation(generator)))
        self._descend(dict(zip(model, torch.autograd.grad(loss, list(model.values())), strict=True)))
        return float(loss.detach())

    def _descend(self, gradient: Parameters) -> None:
        """One step of adaptation, in place."""
        if self._options.adapt_optimizer == "adam":
            adam(self._groups, gradient, self._progress.iteration + 1, self._options.adapt_rate)
            return
        for key, value in gradient.items():
            self._groups["theta"][key] -= self._options.adapt_rate * value


class MeanLearner(GradientLearner):
    """The first kind: theta stays, and the mean of the vectors is sent, which is the meta-gradient."""

    train_groups: ClassVar[tuple[str, ...]] = ("sum",)

    def _begun(self, job: Job, theta: Parameters) -> dict[str, dict[str, Tensor]]:
        return {"sum": zeros(theta)}

    def _at(self) -> dict[str, Tensor]:
        return self._groups["theta"]

    def _use(self, gradient: Parameters) -> None:
        for key, value in gradient.items():
            self._groups["sum"][key] += value

    def _meta_gradient(self, iterations: int) -> dict[str, Tensor]:
        return {key: value / iterations for key, value in self._groups["sum"].items()}

    def _sent(self, iterations: int) -> dict[str, Tensor]:
        return self._meta_gradient(iterations)


class LocalLearner(GradientLearner):
    """The second kind: `local` steps at the rate beta (option local_rate), and theta - local is sent."""

    train_groups = ("local",)
    sends_difference = True

    def _begun(self, job: Job, theta: Parameters) -> dict[str, dict[str, Tensor]]:
        return {"local": {key: value.clone() for key, value in theta.items()}}

    def _at(self) -> dict[str, Tensor]:
        return self._groups["local"]

    def _use(self, gradient: Parameters) -> None:
        for key, value in gradient.items():
            self._groups["local"][key] -= self._options.local_rate * value

    def _meta_gradient(self, iterations: int) -> dict[str, Tensor]:
        return {key: value / (self._options.local_rate * iterations) for key, value in self._sent(iterations).items()}

    def _sent(self, iterations: int) -> dict[str, Tensor]:
        theta, local = self._groups["theta"], self._groups["local"]
        return {key: theta[key] - local[key] for key in theta}


def adam(groups: dict[str, dict[str, Tensor]], gradient: Parameters, time: int, rate: float) -> None:
    """One step, the `time`-th from 1, in place on the groups theta, first and second."""
    beta1, beta2 = ADAM_BETAS
    for key, value in gradient.items():
        first = groups["first"][key].lerp_(value, 1 - beta1)
        second = groups["second"][key].mul_(beta2).addcmul_(value, value, value=1 - beta2)
        scale = (second / (1 - beta2**time)).sqrt_().add_(ADAM_EPSILON)
        groups["theta"][key].addcdiv_(first, scale, value=-rate / (1 - beta1**time))


def zeros(parameters: Parameters) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in parameters.items()}


def norm(vector: Parameters) -> float:
    """Euclidean, over all tensors together."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in vector.values()))


def shortened(vector: Parameters, norm_max: float) -> Parameters:
    """The vector, at that norm where it is longer; as it is where norm_max is 0."""
    length = norm(vector) if norm_max else 0.0
    return {key: value * (norm_max / length) for key, value in vector.items()} if length > norm_max else vector


def as_numpy(tensors: Parameters) -> dict[str, np.ndarray[Any, Any]]:
    """Copies, which later steps leave alone."""
    return {key: value.detach().cpu().numpy().copy() for key, value in tensors.items()}


def strip(group: str, tensors: Tensors) -> Tensors:
    return {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == group}


def described(layout: tuple[tuple[int, ...], str] | None) -> str:
    return "missing" if layout is None else f"{layout[1]}{list(layout[0])}"
