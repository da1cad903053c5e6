"""From contributions to the next theta.

1. The aggregate g of the contributions g_i, in the order of the agentIds, so that no order of arrival shows in the result (promise P5).
   Which one is the tree's choice (aggregation_rule.py). weighted_mean: omega_i = |D_i| f_i / sum_j |D_j| f_j, or f_i / sum_j f_j where
   each agent counts the same; f_i is a factor of the round (1, or less for a stale replica). The robust ones read neither: what an
   agent says of itself, |D_i| too, is what they do not trust.
2. The step of the server optimizer. sgd, momentum (no dampening, no Nesterov) and adam (beta 0.9 and 0.999, epsilon 1e-8, bias
   corrected) as torch.optim takes them; yogi as Reddi et al. ("Adaptive federated optimization", ICLR 2021, algorithm 2):
   m = 0.9 m + 0.1 g, v = v - 0.01 g^2 sign(v - g^2), theta = theta - rate m / (sqrt v + tau), with tau = 1e-3, v_0 = tau^2.

Sums and optimizer state are float64, theta keeps its own dtype. Each kernel of the step is one elementwise operation that IEEE 754
rounds correctly (multiply and add are never fused), so CPU and CUDA give the same bits, whatever the number of threads; aggregates.py
says why its own do.

All tensors are laid end to end by name into one vector. A round that fails leaves theta and the optimizer's state as they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn

import numpy as np
import torch

from fmrec_manager.aggregates import Stack, krum, median, trimmed_mean, weighted_mean
from fmrec_manager.aggregation_rule import WEIGHTED_MEAN, AggregationRule
from protocol.identifiers import NodeId

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]
Device = Literal["auto", "cpu", "cuda"]
Optimizer = Literal["sgd", "momentum", "adam", "yogi"]
Weighting = Literal["samples", "uniform"]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
YOGI_BETA_2, YOGI_TAU = 0.99, 1e-3
STATE_VECTORS: Mapping[Optimizer, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("velocity",),
    "adam": ("moment_1", "moment_2"),
    "yogi": ("moment_1", "moment_2"),
}
"""What each optimizer keeps between steps, each as long as theta; beside them `steps`, the number of steps so far."""


class AggregationError(Exception):
    """No theta came of this: one sentence that names the agent and the tensor. Nothing was changed.

    agents: whose contributions it was; empty where it was nobody's.
    """

    def __init__(self, reason: str, *agents: NodeId) -> None:
        super().__init__(reason)
        self.agents = agents


class Aggregator:
    """The aggregation of one tree: its weighting, and its server optimizer with the state between rounds."""

    def __init__(
        self,
        device: Device,
        optimizer: Optimizer,
        rate: float,
        momentum: float,
        weighting: Weighting,
        rule: AggregationRule = WEIGHTED_MEAN,
    ) -> None:
        """rate, momentum: of the server optimizer. AggregationError where cuda is asked for and there is none."""
        if device == "cuda" and not torch.cuda.is_available():
            raise AggregationError('device is "cuda", but torch finds no CUDA device here: set device to "auto" or "cpu"')
        self.device = torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
        """Where the sums are made."""
        self._optimizer: Optimizer = optimizer
        self._rate = rate
        self._momentum = momentum
        self._weighting: Weighting = weighting
        self._rule = rule
        self._steps = 0
        self._vectors: dict[str, torch.Tensor] = {}
        """STATE_VECTORS of this optimizer, float64 on the device; empty before the first step."""

    def aggregate(
        self, theta: Tensors, contributions: Mapping[NodeId, tuple[Tensors, int, float]]
    ) -> tuple[dict[str, Array], dict[NodeId, float]]:
        """The next theta, and omega by agentId in ascending order; of a robust rule, each agent's part: 1/n, or 1/m of those that Krum
        selects.

        theta: float32 or float64 arrays by name. contributions: by agentId (meta-gradient of theta's names, shapes and dtypes,
        samples |D_i|, factor f_i). AggregationError where a contribution does not fit or is not finite, where they are too few or no
        weight is above 0, or where theta or the optimizer's state overflows; the state is then unchanged.
        """
        layout = _Layout(theta)
        self._expect(layout.size)
        mean, weights = self._aggregate(layout, contributions)
        steps = self._steps + 1
        delta, vectors = self._delta(mean, steps)
        for name, vector in vectors.items():
            if not vector.isfinite().all():
                self._blame_greatest(contributions, layout.tensors, f"{name} of the optimizer's state", "")
        layout.check_finite(theta)
        stepped = layout.unflat((self._vector(layout.flat(theta)) - delta).cpu().numpy())
        for name, tensor in stepped.items():
            if not np.isfinite(tensor).all():
                self._blame_greatest(contributions, [name], "theta", ", or lower server_rate")
        self._steps, self._vectors = steps, vectors
        return stepped, weights

    def state(self) -> dict[str, Array]:
        """What the next step reads beside theta, and whose it is, as arrays by name: copies, on the CPU."""
        return {
            "optimizer": np.frombuffer(self._optimizer.encode(), dtype=np.uint8).copy(),
            "steps": np.array([self._steps], dtype=np.int64),
            **{name: vector.cpu().numpy().copy() for name, vector in self._vectors.items()},
        }

    def restore(self, state: Tensors) -> None:
        """Go on from what `state()` returned. AggregationError where that is of another optimizer; nothing is changed then."""
        steps = state.get("steps")
        if steps is None or steps.shape != (1,) or steps.dtype != np.int64 or steps[0] < 0:
            raise AggregationError("the optimizer's state has no count of its steps")
        another = f"the state is of another optimizer than {self._optimizer}"
        # Moments of one name are not one thing; before the first step there are none. An earlier FMRec kept no name.
        if steps[0] and "optimizer" in state and (name := state["optimizer"].tobytes().decode("ascii", "replace")) != self._optimizer:
            raise AggregationError(f"{another}: it is of {name}")
        vectors = {name: vector for name, vector in state.items() if name not in ("optimizer", "steps")}
        expected = STATE_VECTORS[self._optimizer] if steps[0] else ()
        if set(vectors) != set(expected):
            raise AggregationError(f"{another}: it holds {sorted(vectors)}, not {sorted(expected)}")
        for name, vector in vectors.items():
            if vector.dtype != np.float64 or vector.ndim != 1 or not np.isfinite(vector).all():
                raise AggregationError(f"{name} of the optimizer's state is not a finite vector of float64")
        self._steps = int(steps[0])
        self._vectors = {name: self._vector(vector.copy()) for name, vector in vectors.items()}

    def _expect(self, size: int) -> None:
        for name, vector in self._vectors.items():
            if vector.numel() != size:
                raise AggregationError(f"{name} of the optimizer's state has {vector.numel()} values, theta has {size}")

    def _aggregate(
        self, layout: _Layout, contributions: Mapping[NodeId, tuple[Tensors, int, float]]
    ) -> tuple[torch.Tensor, dict[NodeId, float]]:
        """The aggregate, and each agent's part in it."""
        shares = self._shares(contributions)
        agents, rule = list(shares), self._rule
        if len(agents) < rule.contributions_min:
            raise AggregationError(f"{rule} needs {rule.contributions_min} contributions, and there are {len(agents)}")
        for agent in agents:
            layout.check(contributions[agent][0], agent)
        stack = Stack([contributions[agent][0] for agent in agents], list(layout.tensors), self.device)
        if rule.name == "weighted_mean":
            mean = weighted_mean(stack, list(shares.values()))
            # A value that is not finite spoils the sum, so the contributions need not be gone through where it is.
            if not mean.isfinite().all():
                self._blame(layout, contributions)
            total = math.fsum(shares.values())
            return mean, {agent: share / total for agent, share in shares.items()}
        self._blame(layout, contributions)
        if rule.name == "median":
            return median(stack), dict.fromkeys(agents, 1 / len(agents))
        if rule.name == "trimmed_mean":
            return trimmed_mean(stack, rule.trim), dict.fromkeys(agents, 1 / len(agents))
        selected = krum(stack, rule.byzantine, rule.krum_selected)
        part = 1 / len(selected)
        mean = weighted_mean(stack.only(selected), [1.0] * len(selected))
        return mean, {agent: part if index in selected else 0.0 for index, agent in enumerate(agents)}

    def _blame(self, layout: _Layout, contributions: Mapping[NodeId, tuple[Tensors, int, float]]) -> None:
        """AggregationError for the first contribution that is not finite."""
        for agent in sorted(contributions):
            layout.check_finite(contributions[agent][0], agent)

    def _blame_greatest(
        self, contributions: Mapping[NodeId, tuple[Tensors, int, float]], names: Iterable[str], what: str, remedy: str
    ) -> NoReturn:
        """AggregationError for the contribution with the greatest value in these tensors: no aggregate has a greater one."""
        names = tuple(names)
        greatest = {
            (agent, name): float(np.abs(tensors[name]).max(initial=0.0))
            for agent, (tensors, _, _) in sorted(contributions.items())
            for name in names
        }
        agent, name = max(greatest, key=greatest.__getitem__)
        raise AggregationError(
            f"tensor {name} of agent {agent.short} makes {what} overflow: it has a value of {greatest[agent, name]:.3g}; "
            f"look at the data of this agent{remedy}",
            agent,
        )

    def _shares(self, contributions: Mapping[NodeId, tuple[Tensors, int, float]]) -> dict[NodeId, float]:
        """|D_i| f_i, or f_i, by agentId in ascending order."""
        shares: dict[NodeId, float] = {}
        for agent in sorted(contributions):
            _, samples, factor = contributions[agent]
            if samples < 0 or not (math.isfinite(factor) and factor >= 0):
                raise AggregationError(f"agent {agent.short} has {samples} samples and the factor {factor}: neither may be below 0", agent)
            shares[agent] = factor * (samples if self._weighting == "samples" else 1)
        if not shares or (self._rule.name == "weighted_mean" and not math.fsum(shares.values()) > 0):
            remedy = "give these agents data, or set weighting to uniform"
            raise AggregationError(f"none of {len(shares)} contributions has a weight above 0: {remedy}", *shares)
        return shares

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
        if self._optimizer == "yogi":
            squared = mean * mean
            past = before["moment_2"] if self._vectors else torch.full_like(mean, YOGI_TAU**2)
            moment_2 = past - squared * (1 - YOGI_BETA_2) * (past - squared).sign()
            return moment_1 / (moment_2.sqrt() + YOGI_TAU) * self._rate, {"moment_1": moment_1, "moment_2": moment_2}
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

    def check(self, tensors: Tensors, agent: NodeId) -> None:
        """AggregationError for the first tensor that does not fit theta."""
        whose = f"of agent {agent.short}"
        for name in sorted(self.tensors.keys() ^ tensors.keys()):
            fault = "is missing" if name in self.tensors else "is not in theta"
            raise AggregationError(f"tensor {name} {whose} {fault}", agent)
        for name, (shape, dtype) in self.tensors.items():
            tensor = tensors[name]
            if tensor.shape != shape or tensor.dtype != dtype:
                raise AggregationError(f"tensor {name} {whose} is {tensor.dtype}{tensor.shape}, not {dtype}{shape} as in theta", agent)

    def check_finite(self, tensors: Tensors, agent: NodeId | None = None) -> None:
        """AggregationError for the first tensor that holds a value that is not finite."""
        whose = f"of agent {agent.short}" if agent is not None else "of theta"
        at_fault = () if agent is None else (agent,)
        for name in self.tensors:
            if not np.isfinite(tensors[name]).all():
                raise AggregationError(f"tensor {name} {whose} holds a value that is not finite", *at_fault)

    def flat(self, theta: Tensors) -> Array:
        """theta end to end, in the order of its names."""
        return np.concatenate([theta[name].ravel() for name in self.tensors])

    def unflat(self, flat: Array) -> dict[str, Array]:
        """The vector as tensors with theta's order of names; a value that does not fit the tensor's dtype is infinite there."""
        cut: dict[str, Array] = {}
        start = 0
        for name, (shape, dtype) in self.tensors.items():
            end = start + math.prod(shape)
            with np.errstate(over="ignore"):
                cut[name] = flat[start:end].astype(dtype).reshape(shape)
            start = end
        return {name: cut[name] for name in self.order}
