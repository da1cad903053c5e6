"""Judges of what is folded into theta, with the global view.

P1  A contribution enters the chain of thetas once: what is folded into a theta are finished contributions to the very round that this theta
    is for, one for each agent; in mode substitute also an older one, where it stands in for its own agent, no staler than allowed and at
    its discount.
P2  What is durable is used: in mode exact nobody's contribution is left out; in mode substitute nobody is given up as dead whose newest
    copies all hold what may stand in, where a quorum of their holders could be reached since the round began, or since it died.
P5  Each contribution is what an undisturbed agent would have made from the theta of its round; and in mode exact theta at the end is
    that of the undisturbed run.
P6  What is committed is one chain, whichever managers commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fmrec_manager.orders import Aggregate
from fmrec_manager.plan import Plan
from fmrec_manager.round import Round, Slot, why_unfit
from protocol.identifiers import NodeId
from scripts.simulation.checkers import Mistakes
from scripts.simulation.cluster import Cluster, Process
from scripts.simulation.durability import Durability
from scripts.simulation.learning import Content, Contents, contribution, first_theta, undisturbed


class Contributions:
    """Watches one run. seed, iterations: of the work."""

    def __init__(self, cluster: Cluster, durability: Durability, contents: Contents, plan: Plan, seed: int, iterations: int) -> None:
        self.mistakes = {promise: Mistakes() for promise in ("P1", "P2", "P5", "P6")}
        self.ways: Counter[str] = Counter()
        """How the slots of all rounds were filled; `none`: given up."""
        self._cluster = cluster
        self._durability = durability
        self._contents = contents
        self._plan = plan
        self._seed = seed
        self._iterations = iterations
        self._rounds = {first_theta(seed): 0}
        """Which round each theta is for."""
        self._made_from: dict[bytes, bytes] = {}
        """The theta before each."""
        self._committed = {0: first_theta(seed)}
        """The theta of each round that was committed."""

    # --- a round ------------------------------------------------------------------------------------------------------

    def aggregated(self, process: Process, order: Aggregate, theta: bytes, found: bytes) -> None:
        """The root has folded these slots into theta; found: the next one."""
        number = order.round
        if self._rounds.get(theta) != number:
            self._wrong("P1", f"round {number} is folded into the theta of round {self._rounds.get(theta)}", process)
        for agent, slot in order.slots.items():
            self.ways[slot.way] += 1
            self._slot(process, number, agent, slot, theta)
        self._rounds[found] = number + 1
        self._made_from[found] = theta

    def committed(self, process: Process, number: int, theta: bytes) -> None:
        """The electors have agreed to this theta, for this round: of all managers together, one chain."""
        before = self._committed.get(number - 1)
        if self._committed.setdefault(number, theta) != theta:
            self._wrong("P6", f"round {number} was committed with another theta before", process)
        elif number and self._made_from.get(theta) != before:
            self._wrong("P6", f"round {number} is committed with a theta that was not made from the one before it", process)

    def _slot(self, process: Process, number: int, agent: NodeId, slot: Slot, theta: bytes) -> None:
        content, terms = self._contents.open(slot.record), self._plan.terms
        behind = number - content.round
        if slot.record.owner != agent:
            self._wrong("P1", f"round {number} has a slot of {agent} with another agent's contribution", process)
        if not content.complete or behind < 0 or (behind and (terms.mode != "substitute" or slot.way != "substitute")):
            self._wrong("P1", f"round {number} has a contribution of {agent} to round {content.round}", process)
        elif behind > terms.staleness_max or slot.factor != terms.staleness_discount**behind:
            self._wrong("P1", f"round {number} has a contribution of {agent} {behind} rounds behind at {slot.factor:g}", process)
        elif not self._is_right(agent, content, theta if not behind else None):
            self._wrong("P5", f"what {agent} adds to round {number} is not what it would have undisturbed", process)

    def _is_right(self, agent: NodeId, content: Content, theta: bytes | None) -> bool:
        """From this theta; None: from any that its round may have had."""
        thetas = [theta] if theta is not None else [each for each, number in self._rounds.items() if number == content.round]
        return any(content.value == contribution(self._seed, agent, content.round, each, self._iterations) for each in thetas)

    def closed(self, process: Process, work: Round, dead: Mapping[NodeId, float]) -> None:
        """The root closes this round. dead: whom it takes for dead, and since when."""
        without = [agent for agent in work.expected if agent not in work.slots]
        self.ways["none"] += len(without)
        mode = self._plan.terms.mode
        for agent in without:
            if mode == "exact":
                self._wrong("P2", f"round {work.number} is closed without {agent}", process)
            elif mode == "substitute" and agent in dead and self._may_stand_in(process, agent, work, dead[agent]):
                reason = work.missing.get(agent, "no reason")
                self._wrong("P2", f"{agent} is given up in round {work.number} ({reason}), and its record may stand in", process)

    def _may_stand_in(self, process: Process, agent: NodeId, work: Round, dead_since: float) -> bool:
        """Would whoever looked for it have found a record that is fit, in all the time that there was to look?"""
        since = min(work.opened, dead_since)
        found = self._durability.within_reach(process, agent, since)
        return bool(found) and all(why_unfit(record, work.number, "train", self._plan.terms) is None for record in found)

    def _wrong(self, promise: str, words: str, process: Process) -> None:
        self.mistakes[promise].add(f"{self._cluster.clock.now:.4f}: {words}", process)

    # --- the end ------------------------------------------------------------------------------------------------------

    def finished(self, theta: bytes, agents: list[NodeId]) -> None:
        """All rounds are done, with this theta."""
        rounds, selection = self._plan.rounds, self._plan.selection
        right = undisturbed(self._seed, agents, rounds, self._iterations, selection) if self._plan.terms.mode == "exact" else theta
        if theta != right:
            self.mistakes["P5"].add(f"theta after {rounds} rounds is not that of the undisturbed run")
        elif self._rounds.get(theta) != rounds:
            self.mistakes["P1"].add(f"theta after {rounds} rounds is one of round {self._rounds.get(theta)}")
