"""The manager's side of a simulated run: the root's own decisions (fmrec_manager/root.py), carried out as tree_host.py does; theta is a
hash.

A life of the manager starts with nothing but its name and where others lived: what it knows of the run is on the leaf set of its tree.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from fmrec_manager.orders import Aggregate, Announce, Ask, Commit, LocateOwn, Order, Recover, Say, StepDown
from fmrec_manager.plan import Plan, Resumed
from fmrec_manager.root import Root
from fmrec_manager.round import Terms
from fmrec_manager.selection import Selection
from fmrec_manager.settings import noticed_s
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import OverlayParameters
from protocol.wire.messages import RecoveryMode, RoundOpen
from protocol.wire.values import RecordSummary
from scripts.simulation.agents import Agents
from scripts.simulation.application import Application
from scripts.simulation.cluster import Process
from scripts.simulation.contributions import Contributions
from scripts.simulation.learning import EVERYONE, Content, first_theta

OWN_RECORD = 0
AGGREGATION_S = 0.01
EXACT_WAIT_S = 600.0
QUORUM = 0.5
STALENESS_MAX = 5
DISCOUNT = 0.5


def plan_for(
    rounds: int, sources: int, parameters: OverlayParameters, work_s: float, mode: RecoveryMode = "exact", selection: Selection = EVERYONE
) -> Plan:
    """So many rounds of so many agents. work_s: what an agent needs for one; the deadline leaves as much again for noticing who is dead.
    Whoever begins waits for all of them in mode exact, which promises theta of all, and for a few in the others."""
    return Plan(
        rounds=rounds,
        sources_min=sources if mode == "exact" else max(1, sources // 4),
        targets_min=0,
        adapt=False,
        terms=Terms(mode, 2 * (work_s + noticed_s(parameters)), EXACT_WAIT_S, QUORUM, STALENESS_MAX, DISCOUNT),
        orphan_max_s=parameters.orphan_max_s,
        ask_timeout_s=parameters.silence_max_s + parameters.look_up_timeout_s + parameters.join_timeout_s,
        silence_max_s=parameters.silence_max_s,
        electors_max=parameters.leaf_set_size,
        answer_max_s=parameters.probe_timeout_s,
        selection=selection,
    )


class Manager(Application):
    """One life of the manager."""

    def __init__(self, agents: Agents, contributions: Contributions, process: Process, plan: Plan, *, rivals: bool = False) -> None:
        """rivals: may another root the tree as well?"""
        super().__init__(agents.cluster, process)
        self.theta = first_theta(agents.work.seed)
        self.root = Root(agents.tree, plan)
        self._agents = agents
        self._contributions = contributions
        self._plan = plan
        self._rivals = rivals
        self._theta_record: RecordSummary | None = None
        self.superseded_by = 0
        """The term of a later root, once it has heard of one: it is over then."""

    def told(self, effect: fx.Effect) -> None:
        root, now, durability = self.root, self._now, self._agents.durability
        match effect:
            case fx.Activated():
                self._obey(root.start(now))
            case fx.MembersChanged():
                self._obey(root.members_changed(effect.joined, effect.departed, now))
            case fx.Durable():
                durability.durable(self.process, effect.record)
                self._obey(root.durable(effect.record.version, now))
            case fx.RetrievalEnded() if effect.request == OWN_RECORD:
                if root.stage != "locating":
                    return
                found = self._resume(effect.record)
                self._obey(root.located(found, effect.none_left, now))
            case fx.RetrievalEnded():
                recovery = root.recoveries.of_number(effect.request)
                orders = root.retrieved(effect, {"loss": 0.0}, now)
                if recovery is not None and recovery.outcome != "running":
                    durability.retrieved_for_another(self.process, recovery.agent, effect)
                self._obey(orders)
            case fx.Quit(_, by):
                self.superseded_by = by.incarnation
            case fx.ElectorAnswered():
                self._obey(root.elector_answered(effect, effect.request, now))

    def _resume(self, record: RecordSummary | None) -> Resumed | None:
        if record is None:
            return None
        content = self._agents.contents.open(record)
        self.theta, self._theta_record = content.value, record
        self._tell(ev.Replicate(record))
        assert content.round_state is not None, "a tree's own record has a round state"
        members, put_to = content.round_state
        return Resumed(record.version, record.incarnation, record.round, (0.0,) * record.round, members, put_to=put_to)

    def uploaded(self, record: RecordSummary) -> str | None:
        content = self._agents.contents.open(record)
        refused, orders = self.root.uploaded(record, content.phase, {"loss": 0.0}, self._now)
        self._obey(orders)
        return refused

    # --- orders -------------------------------------------------------------------------------------------------------

    def _obey(self, orders: Iterable[Order]) -> None:
        for order in orders:
            match order:
                case Announce(phase, number, asked, chosen):
                    seed, mode = self._agents.work.seed, self._plan.terms.mode
                    body = RoundOpen(phase, number, seed, mode, self.process.peer, self._theta_record, asked, chosen=chosen)
                    self._agents.durability.announced(self.process, body)
                    self._tell(ev.SendMulticast(self._agents.tree, body))
                case Say("committed" | "goes_on", {"version": int(version), "round": int(number)}):
                    self._agents.durability.committed(self.process, version, number)
                    self._contributions.committed(self.process, number, self.theta)
                case LocateOwn():
                    self._tell(ev.Retrieve(OWN_RECORD, self._agents.tree, self._agents.tree))
                case Ask(version, electors):
                    self._tell(ev.AskElectors(version, self._agents.tree, self.process.peer.incarnation, version, electors))
                case StepDown(_, term):
                    assert self._rivals, f"{self.process} steps down, and there is no other manager"
                    self.superseded_by = term
                    self._later(0.0, partial(self._cluster.kill, self.process))
                case Recover(number, agent):
                    self._tell(ev.Retrieve(number, agent, self._agents.tree))
                case Aggregate():
                    dead = {agent: member.since for agent, member in self.root.liveness.members.items() if member.state == "dead"}
                    assert self.root.work is not None, "a round is folded in that is not open"
                    self._contributions.closed(self.process, self.root.work, dead)
                    self._later(AGGREGATION_S, partial(self._aggregate, order))
                case Commit():
                    self._later(AGGREGATION_S, partial(self._commit, order))
        self._arm(self.root.next_deadline(self._now), self._tick)

    def _tick(self) -> None:
        self._obey(self.root.tick(self._now))

    def _aggregate(self, order: Aggregate) -> None:
        found = self._agents.contents.folded(self.theta, order.slots)
        self._contributions.aggregated(self.process, order, self.theta, found)
        self.theta = found
        self._obey(self.root.aggregated(0.0, self._now))

    def _commit(self, order: Commit) -> None:
        agents, root = self._agents, self.root
        content = Content("train", order.round, 0, False, self.theta, (root.on_record, root.put_to))
        record = agents.contents.seal(self.process.peer, agents.tree, order.version, content, agents.work.record_bytes)
        self._theta_record = record
        agents.cluster.transfers.put(self.process, record)
        self._obey(root.sealed(order.version, agents.cluster.parameters.transfer_timeout_s(record.record_bytes), self._now))
        self._tell(ev.Replicate(record))
