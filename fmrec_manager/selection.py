"""Who takes part in a round: who may, and which of them a policy chooses. Both are pure functions, so that equal facts give equal choices.

Who may. In the modes that recover, every member that has not left, dead or alive: what it has learnt is not given up because its
process died. Without recovery (`drop`) only who is alive when the round opens.

Who is chosen, k = max(contributions_min, ceil(fraction n)) of n:

    all        everyone
    fraction   k at random, each as likely
    samples    k at random, one after the other, each with a probability proportional to |D_i| among those that are left
    nufm       the k largest u_i = |g_i|^2 - 2 (lambda_1 + lambda_2 / sqrt |D_i|) |g_i|

1. Chance: agent i draws x_i from a stream that run seed, round and agentId name, and the k largest log(x_i) / w_i are chosen
   (Efraimidis & Spirakis, "Weighted random sampling with a reservoir", 2006; w_i is 1 or |D_i|). So a manager that starts again, or
   a standby, chooses the same, and who comes or goes changes nobody else's draw.
2. NUFM (Yue et al., "Efficient federated meta-learning over multi-access wireless networks", JSAC 2022): u_i bounds what i adds to one
   round's reduction of the loss; g_i is its meta-gradient at theta, lambda_1 and lambda_2 bound how far its data is from everybody's.
   There all agents compute g_i in each round and the best bring it; here who is not chosen does not compute, and g_i is the one that it
   brought last. Where |g_i| < lambda_1 + lambda_2 / sqrt |D_i|, u_i falls with |g_i|: the lambdas must be on the scale of the
   gradients, or 0.
3. Who has brought no figure yet goes before everyone who has, by rule 1 with w_i = 1 among themselves. What was brought (`Seen`) is
   round state, and survives the manager like theta (ledger.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from fmrec_manager.liveness import Member
from protocol.identifiers import NodeId
from protocol.wire.messages import RecoveryMode

Policy = Literal["all", "fraction", "samples", "nufm"]
GRADIENT_NORM = "nufm_gradient_norm"
"""The metric by which an agent reports |g_i|, the Euclidean norm of its meta-gradient at theta."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an agent's last contribution said: |D_i|, and |g_i| where its method reports one that is finite."""

    samples: int
    gradient_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """A tree's policy. seed: the run's. contributions_min: what its aggregation needs, whatever the fraction says."""

    policy: Policy = "all"
    fraction: float = 1.0
    seed: int = 0
    contributions_min: int = 1
    lambda_1: float = 0.0
    lambda_2: float = 0.0


def select(members: Mapping[NodeId, Member], mode: RecoveryMode) -> tuple[NodeId, ...]:
    """Who may contribute, in the order of their ids. `members`: those of the round's role that have not left."""
    return tuple(sorted(i for i, member in members.items() if mode != "drop" or member.state in ("alive", "suspect")))


def choose(candidates: tuple[NodeId, ...], selection: Selection, number: int, seen: Mapping[NodeId, Seen]) -> tuple[NodeId, ...]:
    """Those of the candidates who train in round `number`, in the order of their ids."""
    if selection.policy == "all":
        return candidates
    k = max(selection.contributions_min, math.ceil(selection.fraction * len(candidates)))
    ranked = sorted(candidates, key=lambda agent: (_rank(agent, selection, number, seen.get(agent)), agent), reverse=True)
    return tuple(sorted(ranked[:k]))


def contribution(seen: Seen, lambda_1: float, lambda_2: float) -> float | None:
    """u_i of rule 2; None where the agent has reported no norm."""
    norm = seen.gradient_norm
    if norm is None:
        return None
    return norm * norm - 2 * (lambda_1 + lambda_2 / math.sqrt(max(seen.samples, 1))) * norm


def _rank(agent: NodeId, selection: Selection, number: int, seen: Seen | None) -> tuple[bool, float]:
    """The greatest are chosen: first whether nothing is known of the agent, then the policy's figure."""
    if selection.policy == "nufm":
        reduction = contribution(seen, selection.lambda_1, selection.lambda_2) if seen is not None else None
        if reduction is not None:
            return False, reduction
    unknown = seen is None or selection.policy == "nufm"
    weight = seen.samples if seen is not None and selection.policy == "samples" else 1
    # 1 - random() is in (0, 1]: its logarithm is finite.
    drawn = math.log(1.0 - Random(f"selection/{selection.seed}/{number}/{agent}").random())
    return unknown and selection.policy != "fraction", drawn / weight if weight > 0 else -math.inf
