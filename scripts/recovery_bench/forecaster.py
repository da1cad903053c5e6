"""A learner whose meta knowledge has a chosen size, for agents that load it as `scripts.recovery_bench.forecaster:mb_10_396`.

An LSTM over six steps of one feature with one output, as in the paper's task: batch (B, 6, 1) -> (B, 1). Its body belongs to the agent
and is lost for good without a record; its head is theta, which all share. Adam (beta 0.9 and 0.999) trains the body, the contribution
is the mean gradient of the head. With h hidden units the body has 4h^2 + 12h weights, and its state thrice as many float32, so

    state bytes = 48 h^2 + 144 h

What is learnt is an artificial occupancy, a daily sine seen at a moment that (seed, agent, iteration) draw: no data is read.
"""

from __future__ import annotations

from functools import partial
from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor

from fmrec_agent.learning.learner import Contribution, Job, Learner, LearnerError, Role, Tensors
from fmrec_agent.learning.options import LearningOptions
from protocol.wire.codec import pack, unpack

STEPS, AHEAD, STEPS_A_DAY = 6, 7, 288
RATE, DECAYS, EPSILON = 1e-3, (0.9, 0.999), 1e-8
EXTRA_BYTES_MAX = 1024


def hidden_of(state_bytes: float) -> int:
    """How many hidden units bring the state nearest to so many bytes."""
    return max(1, round((sqrt(144**2 + 4 * 48 * state_bytes) - 144) / 96))


class Forecaster(Learner):
    """One agent's forecaster with this many hidden units; `options.batch` windows an iteration."""

    def __init__(self, options: LearningOptions, *, name: str, role: Role, index: int, hidden: int) -> None:
        torch.set_num_threads(1)
        self.role = role
        self._options = options
        self._index = index
        self._shapes = {"w_in": (4 * hidden, 1), "w_hidden": (4 * hidden, hidden), "b_in": (4 * hidden,), "b_hidden": (4 * hidden,)}
        self._hidden = hidden
        self._body: dict[str, Tensor] = {}
        """Made when it is first needed: a restored life never needs it."""
        self._moments: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._head: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        """Of the head's gradients in this job."""
        self._seed = self._iteration = self._done = 0
        self._loss = 0.0

    def initial_parameters(self, seed: int) -> Tensors:
        draw = np.random.default_rng(seed)
        return {"weight": draw.normal(0, 1 / sqrt(self._hidden), (1, self._hidden)).astype("f4"), "bias": np.zeros(1, "f4")}

    def begin(self, job: Job, theta: Tensors) -> int:
        if not self._body:
            draw = np.random.default_rng((job.seed, self._index))
            scale = 1 / sqrt(self._hidden)
            self._body = {
                name: torch.from_numpy(draw.random(shape, np.float32)).sub_(0.5).mul_(2 * scale) for name, shape in self._shapes.items()
            }
            first, second = ({name: torch.zeros(shape) for name, shape in self._shapes.items()} for _ in range(2))
            self._moments = first, second
        self._head = _tensors(theta)
        self._sums = {name: torch.zeros_like(tensor) for name, tensor in self._head.items()}
        self._seed, self._done = job.seed, 0
        return self._options.iterations_per_round

    def step(self) -> float:
        learnt = {name: tensor.requires_grad_() for name, tensor in (*self._body.items(), *self._head.items())}
        loss = self._forecast_error(*self._windows())
        gradients = dict(zip(learnt, torch.autograd.grad(loss, list(learnt.values())), strict=True))
        self._iteration += 1
        self._done += 1
        with torch.no_grad():
            for name, total in self._sums.items():
                total += gradients[name]
            self._descend(gradients)
        for tensor in learnt.values():
            tensor.requires_grad_(False)
        self._loss = float(loss.detach())
        return self._loss

    def _windows(self) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng((self._seed, self._index, self._iteration))
        began = draw.integers(STEPS_A_DAY, size=(self._options.batch, 1))
        days = (began + np.array([*range(STEPS), STEPS - 1 + AHEAD])) / STEPS_A_DAY
        rates = torch.from_numpy((0.5 + 0.4 * np.sin(2 * pi * (days + self._index / 12))).astype("f4"))
        return rates[:, :STEPS, None], rates[:, STEPS:]

    def _forecast_error(self, windows: Tensor, truth: Tensor) -> Tensor:
        start = torch.zeros(1, len(windows), self._hidden)
        weights = [self._body[name] for name in self._shapes]
        out, _, _ = torch.lstm(windows, (start, start), weights, True, 1, 0.0, True, False, True)
        forecast = out[:, -1] @ self._head["weight"].T + self._head["bias"]
        return (forecast - truth).square().mean()

    def _descend(self, gradients: dict[str, Tensor]) -> None:
        """One step of Adam on the body."""
        (first_decay, second_decay), (first, second) = DECAYS, self._moments
        corrected = RATE * sqrt(1 - second_decay**self._iteration) / (1 - first_decay**self._iteration)
        for name, weight in self._body.items():
            first[name].lerp_(gradients[name], 1 - first_decay)
            second[name].mul_(second_decay).addcmul_(gradients[name], gradients[name], value=1 - second_decay)
            weight.addcdiv_(first[name], second[name].sqrt().add_(EPSILON), value=-corrected)

    def finish(self) -> Contribution:
        gradient = {name: (total / max(1, self._done)).numpy() for name, total in self._sums.items()}
        return Contribution(gradient, self._loss, self._options.batch * self._done)

    def state(self) -> tuple[Tensors, bytes]:
        groups = {"body": self._body, "first": self._moments[0], "second": self._moments[1], "head": self._head, "sums": self._sums}
        tensors = {f"{group}.{name}": tensor.numpy().copy() for group, parts in groups.items() for name, tensor in parts.items()}
        return tensors, pack({"seed": self._seed, "iteration": self._iteration, "done": self._done, "loss": self._loss})

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in ("body", "first", "second", "head", "sums")}
        for key, tensor in tensors.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = tensor
        if {name: tensor.shape for name, tensor in groups["body"].items()} != self._shapes:
            raise LearnerError(f"the record is of another size than this forecaster of {self._hidden} hidden units: start it as it was")
        self._body, first, second, self._head, self._sums = (_tensors(parts) for parts in groups.values())
        self._moments = first, second
        place = unpack(extra, EXTRA_BYTES_MAX)
        self._seed, self._iteration, self._done = (int(place[name]) for name in ("seed", "iteration", "done"))
        self._loss = float(place["loss"])


def _tensors(arrays: Tensors) -> dict[str, Tensor]:
    """Copies that may be written to."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


mb_0_1, mb_1, mb_10_396, mb_100 = (partial(Forecaster, hidden=hidden_of(1e6 * size)) for size in (0.1, 1, 10.396, 100))
