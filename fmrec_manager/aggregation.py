"""From contributions to the next theta: the one file that knows a GPU.

1. The mean. omega_i = |D_i| f_i / sum_j |D_j| f_j, or f_i / sum_j f_j where each agent counts the same; f_i is a factor of the
   round (1, or less for a stale replica). g = sum_i omega_i g_i, added in the order of the agentIds, so that no order of
   arrival shows in the result (promise P5).
2. The step of the server optimizer, as torch.optim takes it: sgd, momentum (no dampening, no Nesterov), adam (beta 0.9 and
   0.999, epsilon 1e-8, bias corrected).

Sums and optimizer state are float64, theta keeps its own dtype. Every kernel is one elementwise operation that IEEE 754 rounds
correctly (multiply and add are never fused), so CPU and CUDA give the same bits, whatever the number of threads.

All tensors are laid end to end by name into one vector. A round that fails leaves theta and the optimizer's state as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from protocol.identifiers import NodeId

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]
Device = Literal["auto", "cpu", "cuda"]
Optimizer = Literal["sgd", "momentum", "adam"]
Weighting = Literal["samples", "uniform"]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
STATE_VECTORS: Mapping[Optimizer, tuple[str, ...]] = {"sgd": (), "momentum": ("velocity",), "adam": ("moment_1", "moment_2")}
"""What each optimizer keeps between steps, each as long as theta; beside them `steps`, the number of steps so far."""


class AggregationError(Exception):
    """No theta came of this: one sentence that names the agent and the tensor. Nothing was changed.

    agent: whose contribution it was, None where it was nobody's.
    """

    def __init__(self, reason: str, agent: NodeId | None = None) -> None:
        super().__init__(reason)
        self.agent = agent


class Aggregator:
    """The aggregation of one tree: its weighting, and its server optimizer with the state between rounds."""

    def __init__(self, device: Device, optimizer: Optimizer, rate: float, momentum: float, weighting: Weighting) -> None:
        """rate, momentum: of the server optimizer. AggregationError where cuda is asked for and there is none."""
        if device == "cuda" and not torch.cuda.is_available():
            raise AggregationError('device is "cuda", but torch finds no CUDA device here: set device to "auto" or "cpu"')
        self.device = torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
        """Where the sums are made."""
        self._optimizer: Optimizer = optimizer
        self._rate = rate
        self._momentum = momentum
        self._weighting: Weighting = weighting
        self._steps = 0
        self._vectors: dict[str, torch.Tensor] = {}
        """STATE_VECTORS of this optimizer, float64 on the device; empty before the first step."""

    def aggregate(
        self, theta: Tensors, contributions: Mapping[NodeId, tuple[Tensors, int, float]]
    ) -> tuple[dict[str, Array], dict[NodeId, float]]:
        """The next theta, and omega by agentId in ascending order.

        theta: float32 or float64 arrays by name. contributions: by agentId (meta-gradient of theta's names, shapes and dtypes,
        samples |D_i|, factor f_i). AggregationError where a contribution does not fit or is not finite, where no weight is
        above 0, or where the step overflows; the state is then unchanged.
        """
        layout = _Layout(theta)
        self._expect(layout.size)
        weights = self._weights(contributions)
        mean = torch.zeros(layout.size, dtype=torch.float64, device=self.device)
        for agent, weight in weights.items():
            mean += self._vector(layout.flat(contributions[agent][0], agent)) * weight
        steps = self._steps + 1
        delta, vectors = self._delta(mean, steps)
        stepped = layout.unflat((self._vector(layout.flat(theta)) - delta).cpu().numpy())
        self._steps, self._vectors = steps, vectors
        return stepped, weights

    def state(self) -> dict[str, Array]:
        """What the next step reads beside theta, as arrays by name: copies, on the CPU."""
        return {
            "steps": np.array([self._steps], dtype=np.int64),
            **{name: vector.cpu().numpy().copy() for name, vector in self._vectors.items()},
        }

    def restore(self, state: Tensors) -> None:
        """Go on from what `state()` returned. AggregationError where that is of another optimizer; nothing is changed then."""
        steps = state.get("steps")
        if steps is None or steps.shape != (1,) or steps.dtype != np.int64 or steps[0] < 0:
            raise AggregationError("the optimizer's state has no count of its steps")
        vectors = {name: vector for name, vector in state.items() if name != "steps"}
        expected = STATE_VECTORS[self._optimizer] if steps[0] else ()
        if set(vectors) != set(expected):
            raise AggregationError(
                f"the state is of another optimizer than {self._optimizer}: it holds {sorted(vectors)}, not {sorted(expected)}"
            )
        for name, vector in vectors.items():
            if vector.dtype != np.float64 or vector.ndim != 1 or not np.isfinite(vector).all():
                raise AggregationError(f"{name} of the optimizer's state is not a finite vector of float64")
        self._steps = int(steps[0])
        self._vectors = {name: self._vector(vector.copy()) for name, vector in vectors.items()}

    def _expect(self, size: int) -> None:
        for name, vector in self._vectors.items():
            if vector.numel() != size:
                raise AggregationError(f"{name} of the optimizer's state has {vector.numel()} values, theta has {size}")

    def _weights(self, contributions: Mapping[NodeId, tuple[Tensors, int, float]]) -> dict[NodeId, float]:
        shares: dict[NodeId, float] = {}
        for agent in sorted(contributions):
            _, samples, factor = contributions[agent]
            if samples < 0 or not (math.isfinite(factor) and factor >= 0):
                raise AggregationError(f"agent {agent.short} has {samples} samples and the factor {factor}: neither may be below 0", agent)
            shares[agent] = factor * (samples if self._weighting == "samples" else 1)
        total = math.fsum(shares.values())
        if not total > 0:
            raise AggregationError(f"none of {len(shares)} contributions has a weight above 0")
        return {agent: share / total for agent, share in shares.items()}

    def _vector(self, flat: Array) -> torch.Tensor:
        return torch.from_numpy(flat).to(self.device).to(torch.float64)

    def _delta(self, mean: torch.Tensor, steps: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the step takes off theta, and the optimizer's vectors after it; the ones before are left alone."""
        before = self._vectors or {name: torch.zeros_like(mean) for name in STATE_VECTORS[self._optimizer]}
        if self._optimizer == "sgd":
            return mean * self._rate, {}
        if self._optimizer == "momentum":
            velocity = before["velocity"] * self._momentum + mean
            return velocity * self._rate, {"velocity": velocity}
        moment_1 = before["moment_1"] * BETA_1 + mean * (1 - BETA_1)
        moment_2 = before["moment_2"] * BETA_2 + mean * mean * (1 - BETA_2)
        # torch divides by a plain number exactly on the CPU but by its reciprocal on CUDA: multiplying is the same on both.
        root = (moment_2 * (1 / (1 - BETA_2**steps))).sqrt() + EPSILON
        return moment_1 * (1 / (1 - BETA_1**steps)) / root * self._rate, {"moment_1": moment_1, "moment_2": moment_2}


class _Layout:
    """theta's names, shapes and dtypes, and the way between tensors by name and one vector."""

    def __init__(self, theta: Tensors) -> None:
        self.order = tuple(theta)
        self.tensors = {name: (theta[name].shape, theta[name].dtype) for name in sorted(theta)}
        self.size = sum(math.prod(shape) for shape, _ in self.tensors.values())
        for name, (_, dtype) in self.tensors.items():
            if dtype not in (np.float32, np.float64):
                raise AggregationError(f"tensor {name} of theta is {dtype}: only float32 and float64 are aggregated")
        if not self.size:
            raise AggregationError("theta holds no values")

    def flat(self, tensors: Tensors, agent: NodeId | None = None) -> Array:
        """The tensors end to end, in the order of their names; AggregationError for the first that does not fit or is not finite."""
        whose = f"of agent {agent.short}" if agent is not None else "of theta"
        for name in sorted(self.tensors.keys() ^ tensors.keys()):
            fault = "is missing" if name in self.tensors else "is not in theta"
            raise AggregationError(f"tensor {name} {whose} {fault}", agent)
        for name, (shape, dtype) in self.tensors.items():
            tensor = tensors[name]
            if tensor.shape != shape or tensor.dtype != dtype:
                raise AggregationError(f"tensor {name} {whose} is {tensor.dtype}{tensor.shape}, not {dtype}{shape} as in theta", agent)
            if not np.isfinite(tensor).all():
                raise AggregationError(f"tensor {name} {whose} holds a value that is not finite", agent)
        return np.concatenate([tensors[name].ravel() for name in self.tensors])

    def unflat(self, flat: Array) -> dict[str, Array]:
        """The vector as tensors with theta's order of names; AggregationError where a value does not fit the tensor's dtype."""
        cut: dict[str, Array] = {}
        start = 0
        for name, (shape, dtype) in self.tensors.items():
            end = start + math.prod(shape)
            with np.errstate(over="ignore"):
                cut[name] = flat[start:end].astype(dtype).reshape(shape)
            if not np.isfinite(cut[name]).all():
                raise AggregationError(f"the step makes tensor {name} of theta overflow: lower server_rate")
            start = end
        return {name: cut[name] for name in self.order}
