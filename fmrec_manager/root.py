"""One tree's root: drives its rounds, from the first member to the last result.

    waiting --enough members--> locating --no record--> init --theta_0--> committing
    (start) --> locating --record found: resume--> electing --> committing --> electing --> train or adapt
    train --round closed--> aggregating --theta--> committing --durable--> electing --carried--> train (next round) | adapt | done
    electing --lost--> superseded         electing --a newer version was committed--> locating
    adapt --every target--> done          any --judged so--> halted --the missed one is heard, or its record found--> where it was

1. Nothing is announced that is not committed: theta and the round state are on the leaf set first, and then more than half of the
   electors have agreed (promise P6; candidacy.py), to its term before anything else. The version that it goes on from is written anew in
   this term: it may be on one disk alone, and never have been agreed to.
2. A round's order goes out once; who joins later is given it by its parent in the tree.
3. A life that ends is recovered, whatever the round still needs of it, except in mode drop.
4. theta_0 comes from one agent, asked by name; where it does not answer, the next one is asked: all would give the same.
5. A round that nobody can contribute to any more (all have left, or have contributed and are fewer than the aggregation needs) is opened
   anew for whoever comes: who has contributed brings it once more.
6. What a dead member has left is looked for once, not once a round: it makes nothing new. Where nothing was found that may stand in, it is
   looked for again when anybody comes back, who may hold it: the dead may have lived on, and worked, on the other side of a cut. Whom
   the round under way has given up it goes on without, or one return after the other would hold it up; the next one asks.
7. A straggler is not dead: at the deadline its replica is looked for, and may serve; its own late contribution is dropped.
8. Which sources train is a function of the run's seed, the round, the members and what their contributions said so far, all of which
   the record keeps: so a later life of the root chooses the same (selection.py). In mode substitute the dead of whom nothing was found
   that may stand in are passed over; where those who were chosen cannot fill a round any more, others are.
9. Where the tree's record is on our disk and cannot be read, nothing is begun: the root waits for one who has a copy, or for people.
10. A source that is dead for more rounds than `staleness_max` has left nothing that may stand in, and its name may never be used again. In
   the modes that go on without it, it is retired: not awaited, looked for, counted for the quorum or asked for its vote, until it is back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf
from types import MappingProxyType
from typing import Literal

from fmrec_manager.arrivals import Arrivals
from fmrec_manager.ballot import Groups
from fmrec_manager.candidacy import AGAIN_S, Candidacy
from fmrec_manager.liveness import Liveness, Loss
from fmrec_manager.orders import Aggregate, Announce, Commit, LocateOwn, Order, Recover, Say, StepDown
from fmrec_manager.plan import Plan, Resumed
from fmrec_manager.retrieval import Recoveries, Recovery
from fmrec_manager.round import Round, Slot, judge, next_deadline, why_unfit
from fmrec_manager.selection import Seen, choose, select
from protocol.identifiers import NodeId, TreeId
from protocol.overlay.effects import ElectorAnswered, RetrievalEnded
from protocol.wire.messages import Phase
from protocol.wire.values import Departed, MemberInfo, RecordSummary

Stage = Literal["locating", "waiting", "init", "train", "aggregating", "committing", "electing", "adapt", "done", "halted", "superseded"]
Role = Literal["source", "target"]
LOOK_AGAIN_S = 0.25


class Root:
    """The decisions of one tree's root. Every method takes the time and returns orders; see the module's rules."""

    def __init__(self, tree: TreeId, plan: Plan) -> None:
        self.tree = tree
        self.plan = plan
        self.liveness = Liveness(plan.orphan_max_s)
        self.stage: Stage = "locating"
        self.reason = "looking for an earlier run of this tree"
        self.next_round = 0
        """The round that the committed theta is for."""
        self.version = 0
        """Of the committed record."""
        self.losses: list[float] = []
        self.results: dict[str, dict[str, float]] = {}
        self.seen: dict[NodeId, Seen] = {}
        """What each agent's last contribution said, of those that were folded into theta."""
        self.work: Round | None = None
        self.recoveries = Recoveries()
        self.first_round_at: float | None = None
        self.first_round = 0
        """The one that this manager opened first: where it resumed, a later one than 0."""
        self.on_record: tuple[MemberInfo, ...] = ()
        """The members as the newest version, committed or about to be, names them."""
        self.candidacy = Candidacy(tree, plan.electors_max)
        self.left_behind: dict[NodeId, Recovery] = {}
        """How the look for a dead member's record has ended (rule 6)."""
        self._arrivals = {"train": Arrivals(), "adapt": Arrivals()}
        self._asked: NodeId | None = None
        self._deadline: float | None = None

    # --- what the overlay tells ---------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Order]:
        """The node is in the ring; again, where it was cut off for a while."""
        return [LocateOwn()] if self.stage == "locating" else []

    def members_changed(self, joined: Iterable[MemberInfo], departed: Iterable[Departed], now: float) -> list[Order]:
        joined, departed = tuple(joined), tuple(departed)
        orders: list[Order] = []
        back = {info.peer.id for info in joined}
        self._forget(back, {info.peer.id for info in joined if self.liveness.is_anew(info)})
        for loss in self.liveness.changed(joined, departed, now):
            orders += self._lost(loss, now)
        orders += self.candidacy.members_changed(joined, departed)
        if self.stage == "halted" and self.work is not None:
            orders += self._go_on(self.work, back, {gone.id for gone in departed if gone.cause == "left"}, now)
        return orders + self._step(now)

    def _forget(self, back: set[NodeId], anew: set[NodeId]) -> None:
        """Rule 6: who is back makes new records, and may hold those of others; but not where it has only another parent in the tree."""
        left = {agent: recovery for agent, recovery in self.left_behind.items() if agent not in back}
        known = {agent: r for agent, r in left.items() if not anew or (r.has_the_newest and self._fits(r.record))}
        if self.work is not None:
            self.work.tried -= self.left_behind.keys() - known.keys()
        self.left_behind = known

    def _fits(self, record: RecordSummary | None) -> bool:
        """May it stand in, in the round that is open or comes next?"""
        phase: Phase = self.work.phase if self.work is not None else "train"
        return record is not None and why_unfit(record, self.next_round, phase, self.plan.terms) is None

    def _go_on(self, work: Round, joined: set[NodeId], left: set[NodeId], now: float) -> list[Order]:
        """The tree is halted, and somebody who is waited for was heard or has left; or one who may hold the record of one who is waited
        for; or, where nobody can be waited for, anyone."""
        waiting = work.open_slots()
        if (joined | left) & set(waiting):
            self.stage, self.reason, work.opened = work.phase, "somebody who was waited for is back, or has left", now
            return []
        role: Role = "source" if work.phase == "train" else "target"
        gone = ("left", "dead") if self.plan.terms.mode == "drop" else ("left",)
        standing = {agent: self.liveness.members[agent] for agent in waiting}
        if any(member.state not in gone for member in standing.values()):
            dead = [member for agent, member in standing.items() if member.state == "dead" and agent not in work.tried | work.recovering]
            return [order for member in dead for order in self._recover(member.loss(), now)]
        return self._open(work.phase, role, now) if joined & self.liveness.of_role(role).keys() else []

    def tick(self, now: float) -> list[Order]:
        """`next_deadline()` has come."""
        orders: list[Order] = []
        for loss in self.liveness.late(now):
            orders += self._lost(loss, now)
        orders += [Recover(recovery.number, recovery.agent) for recovery in self.recoveries.due(now)]
        if self._deadline is not None and now >= self._deadline:
            orders += self._deadline_passed(now)
        return orders + self._step(now)

    def next_deadline(self, now: float) -> float | None:
        """When `tick` is wanted."""
        due = [self._deadline, self.liveness.next_deadline(), self.recoveries.next_deadline()]
        if self.work is not None and self.stage in ("train", "adapt"):
            due.append(next_deadline(self.work, now, self.plan.terms))
        return min((when for when in due if when is not None), default=None)

    # --- stages -------------------------------------------------------------------------------------------------------

    def _step(self, now: float) -> list[Order]:
        """Go on where nothing is awaited."""
        if self.stage == "waiting":
            return self._waiting(now)
        if self.stage in ("train", "adapt"):
            return self._judge(now)
        return []

    def _waiting(self, now: float) -> list[Order]:
        here = {role: sum(m.state == "alive" for m in self.liveness.of_role(role).values()) for role in ("source", "target")}
        if here["source"] < self.plan.sources_min or here["target"] < self.plan.targets_min:
            self.reason = (
                f"{here['source']} of {self.plan.sources_min} sources and {here['target']} of {self.plan.targets_min} targets have joined"
            )
            return []
        self.stage, self.reason = "locating", "enough members: looking for an earlier run on them"
        return [LocateOwn()]

    def located(self, found: Resumed | None, certain: bool, now: float, unread: str = "") -> list[Order]:
        """The tree's own record: resume, or begin. certain: where none was found, everyone who might hold one was heard. unread: where one
        is on our disk that cannot be read (rule 9), else empty."""
        if self.stage != "locating":
            return []
        if found is None and unread:
            reason = f"{unread}, and start again"
            orders: list[Order] = [Say("not_begun", {"reason": reason})] if reason != self.reason else []
            self.reason, self._deadline = reason, now + LOOK_AGAIN_S
            return orders
        if found is None and not certain:
            self.reason = "looking for an earlier run: a neighbour has not answered, or could not deliver it"
            self._deadline = now + LOOK_AGAIN_S
            return []
        self.candidacy.base = (found.term, found.version) if found is not None else (0, 0)
        if self.candidacy.behind:
            what = f"only version {found.version} is found" if found is not None else "none is found"
            wanted = self.candidacy.floor[1]
            self.reason = f"version {wanted} was committed, and {what}: start the agents that hold it, or name another tree"
            self._deadline = now + LOOK_AGAIN_S
            return []
        if found is not None:
            self.version, self.next_round = found.version, found.round
            self.losses, self.results = list(found.losses), {name: dict(result) for name, result in found.results.items()}
            self.seen = dict(found.seen)
            self.liveness.expect(found.members, now)
            self.candidacy.resumes(found.put_to, found.members)
            return [Say("resumed", {"round": found.round, "version": found.version}), *self._commit(now)]
        self.stage, self.reason, self._deadline = "waiting", "no earlier run was found", None
        here = self.liveness.of_role("source")
        enough = sum(m.state == "alive" for m in here.values()) >= self.plan.sources_min
        targets = sum(m.state == "alive" for m in self.liveness.of_role("target").values())
        return self._ask(now) if enough and targets >= self.plan.targets_min else []

    def _ask(self, now: float) -> list[Order]:
        """theta_0 from the next source by id."""
        alive = [i for i, member in self.liveness.of_role("source").items() if member.state == "alive"]
        if not alive:
            self.stage, self._deadline = "waiting", None
            return []
        later = [i for i in alive if self._asked is not None and i > self._asked]
        self._asked = (later or alive)[0]
        self.stage, self.reason = "init", f"asked {self._asked.short} for theta_0"
        self._deadline = now + self.plan.ask_timeout_s
        return [Announce("init", 0, self._asked)]

    def _open_next(self, now: float) -> list[Order]:
        """The committed theta is durable: open what comes next."""
        self._deadline = None
        if self.next_round < self.plan.rounds:
            return self._open("train", "source", now)
        if self.plan.adapt and self.liveness.of_role("target"):
            return self._open("adapt", "target", now)
        return self._finish()

    def _open(self, phase: Literal["train", "adapt"], role: Role, now: float) -> list[Order]:
        terms = self.plan.terms
        retired = self._retire(now) if phase == "train" else []
        expected = select(self.liveness.of_role(role), terms.mode)
        chosen: tuple[NodeId, ...] = ()
        if phase == "train" and self.plan.selection.policy != "all":
            expected = chosen = self._chosen()
        learnt = terms.learn_factor > 0
        allowed_s = self._arrivals[phase].allowed_s(terms.learn_quantile, terms.learn_factor, terms.deadline_min_s) if learnt else inf
        self.work = Round(self.next_round, phase, now, expected, allowed_s=allowed_s)
        self.stage, self.reason = phase, f"{len(expected)} are awaited"
        if self.first_round_at is None:
            self.first_round_at, self.first_round = now, self.next_round
        done = {m.info.peer.id for m in self.liveness.of_role(role).values() if m.info.name in self.results}
        if phase == "adapt" and done:
            self.work.expected = tuple(i for i in expected if i not in done)
            if not self.work.expected:
                return self._finish()
        served = [order for agent, recovery in self.left_behind.items() for order in self._serve(self.work, recovery, agent)]
        return [*retired, Announce(phase, self.next_round, chosen=chosen), *served, *self._judge(now)]

    def _retire(self, now: float) -> list[Order]:
        """Rule 10."""
        most = self.plan.terms.staleness_max
        orders: list[Order] = []
        for agent, member in self.liveness.of_role("source").items() if self.plan.terms.mode != "exact" else ():
            if member.state == "dead" and self.next_round - member.died_in > most:
                self.liveness.retire(agent, f"{member.reason}; dead for more than {most} rounds, which go on without it", now)
                self.left_behind.pop(agent, None)
                orders.append(Say("retired", {"agent": agent, "reason": member.reason}))
        self.liveness.forget_gone(self.recoveries.running)
        return orders

    def _chosen(self) -> tuple[NodeId, ...]:
        """Rule 8."""
        mode = self.plan.terms.mode
        sources = select(self.liveness.of_role("source"), mode)
        if mode == "substitute":
            useless = {agent for agent, recovery in self.left_behind.items() if not self._fits(recovery.record)}
            sources = tuple(source for source in sources if source not in useless)
        return choose(sources, self.plan.selection, self.next_round, self.seen)

    def _finish(self) -> list[Order]:
        self.stage, self.reason, self.work, self._deadline = "done", "all rounds are done", None, None
        return [Announce("done", self.next_round)]

    def _deadline_passed(self, now: float) -> list[Order]:
        self._deadline = None
        if self.stage == "init":
            return self._ask(now)
        if self.stage == "locating":
            return [LocateOwn()]
        if self.stage == "electing":
            self._deadline = now + self.plan.answer_max_s
            return [*self.candidacy.ask_again(self.reason, now), *self._count(now)]
        if self.stage == "committing":
            # The overlay goes on trying. Nothing is announced before it is durable, however long that takes.
            self.reason = f"version {self.version} is not durable: too few neighbours hold it"
            self._deadline = now + AGAIN_S
            return [Say("not_durable", {"version": self.version, "reason": "too few neighbours hold it; trying on"})]
        return []

    # --- contributions ------------------------------------------------------------------------------------------------

    def uploaded(self, record: RecordSummary, phase: Phase, metrics: Mapping[str, float], now: float) -> tuple[str | None, list[Order]]:
        """An agent has brought a record: why it is refused, or None; and what follows. metrics: the figures that it carries."""
        if phase == "init":
            return (None, self._commit(now)) if self.stage == "init" else ("theta_0 is there already", [])
        if self.work is None or not self._is_open(phase, record.round):
            return f"{phase} of round {record.round} is not open", []
        if not record.complete:
            return "the record holds no finished contribution", []
        if record.owner in self.work.expected:
            self._arrivals[self.work.phase].came(now - self.work.opened)
        refused = self.work.offer(record.owner, Slot(record, 1.0, "upload"))
        if refused is not None:
            return refused, []
        self._filled(self.work, record.owner, metrics)
        return None, self._judge(now)

    def _is_open(self, phase: Phase, number: int) -> bool:
        """Are contributions to this taken now?"""
        work = self.work
        return work is not None and self.stage in ("train", "adapt", "halted") and (phase, number) == (work.phase, work.number)

    def _filled(self, work: Round, agent: NodeId, metrics: Mapping[str, float]) -> None:
        if work.phase == "adapt":
            self.results[self.liveness.members[agent].info.name] = dict(metrics)
        if self.stage == "halted":
            self.stage = work.phase

    def _judge(self, now: float) -> list[Order]:
        work = self.work
        if work is None:
            return []
        standing = {identifier: member.state for identifier, member in self.liveness.members.items()}
        verdict, self.reason, whom = judge(now, work, standing, self.plan.terms)
        if verdict == "recover":
            orders: list[Order] = []
            for agent in whom:
                orders += self._recover(replace(self.liveness.members[agent].loss("deadline"), reason=self.reason), now)
            return orders
        if verdict == "halt" and self._others_may(work):
            return self._open("train", "source", now)
        if verdict == "halt":
            self.stage = "halted"
            return [Say("halted", {"round": work.number, "reason": self.reason})]
        if verdict == "wait":
            return []
        if work.phase == "adapt":
            return self._finish()
        self.stage = "aggregating"
        return [Aggregate(work.number, dict(sorted(work.slots.items())))]

    def _others_may(self, work: Round) -> bool:
        """All is in or given up, which is not enough: would others be chosen by now?"""
        if work.phase != "train" or self.plan.selection.policy == "all":
            return False
        awaited = any(self.liveness.members[agent].state != "left" for agent in work.open_slots())
        return not awaited and len(chosen := self._chosen()) >= self.plan.terms.contributions_min and chosen != work.expected

    def aggregated(self, loss: float, now: float, seen: Mapping[NodeId, Seen] = MappingProxyType({})) -> list[Order]:
        """The new theta is there, not yet committed. seen: what the contributions said that are in it."""
        if self.stage != "aggregating":
            return []
        self.losses.append(loss)
        self.seen.update(seen)
        self.next_round += 1
        self.work = None
        return self._commit(now)

    def unfit(self, record: RecordSummary, phase: Phase, reason: str, now: float) -> list[Order]:
        """An agent has brought figures that cannot be used (a loss that is not finite, say): where they were its contribution to
        the round that is open, it is given up for this round."""
        work = self.work
        if work is None or not self._is_open(phase, record.round) or record.owner in work.slots or record.owner not in work.expected:
            return []
        return self._give_up(work, (record.owner,), reason, now)

    def unusable(self, agents: Iterable[NodeId], reason: str, now: float) -> list[Order]:
        """Aggregating has failed on the contributions of these agents: they are given up for this round."""
        if self.work is None or self.stage != "aggregating":
            return []
        return self._give_up(self.work, tuple(agents), reason, now)

    def _give_up(self, work: Round, agents: tuple[NodeId, ...], reason: str, now: float) -> list[Order]:
        for agent in agents:
            work.slots.pop(agent, None)
            work.missing[agent] = reason
        self.stage = work.phase
        return [*(Say("contribution_refused", {"agent": agent, "reason": reason}) for agent in agents), *self._judge(now)]

    def _commit(self, now: float) -> list[Order]:
        if not self.candidacy.promised:
            return self._put(0, f"going on from version {self.version}: asking the electors", now)
        self.version += 1
        self.on_record = self.liveness.staying()
        named = {info.peer.id for info in self.on_record}
        self.seen = {agent: said for agent, said in self.seen.items() if agent in named}  # as a later life will have it
        self.stage, self.reason, self._deadline = "committing", f"sealing version {self.version}", None
        return [Commit(self.version, self.next_round)]

    def sealed(self, version: int, transfer_s: float, now: float) -> list[Order]:
        """The record of this version is on its way to the leaf set, each transfer for at most `transfer_s` seconds."""
        if self.stage != "committing" or version != self.version:
            return []
        self.reason = f"bringing version {version} to the leaf set"
        # Two transfers one after the other: a holder that refuses or dies is passed over for the next.
        self._deadline = now + 2 * transfer_s + self.plan.silence_max_s
        return []

    def durable(self, version: int, now: float) -> list[Order]:
        """The record of this version is held by its quorum."""
        if self.stage != "committing" or version != self.version:
            return []
        return self._put(version, f"version {version} is durable: asking the electors", now)

    # --- the electors -------------------------------------------------------------------------------------------------

    def _put(self, version: int, reason: str, now: float) -> list[Order]:
        """This version to the electors; version 0: our term alone."""
        self.stage, self.reason, self._deadline = "electing", reason, now + self.plan.answer_max_s
        return [*self.candidacy.put(version, self.liveness.staying(), now), *self._count(now)]

    def elector_answered(self, answer: ElectorAnswered, version: int, now: float) -> list[Order]:
        """One elector's word on our term and this version."""
        return self._count(now) if self.stage == "electing" and self.candidacy.heard(answer, version) else []

    def _count(self, now: float) -> list[Order]:
        candidacy = self.candidacy
        verdict, self.reason = candidacy.judge()
        if verdict == "wait":
            return []
        if verdict == "lost":
            return self.superseded(f"has another root by now: {self.reason}", candidacy.latest)
        was_promised, self._deadline = candidacy.promised, None
        if not candidacy.carried(self.on_record):
            self.stage, self._deadline = "locating", now
            return [Say("not_the_newest", {"version": self.version, "committed": candidacy.floor[1]})]
        if not was_promised:
            return self._commit(now)
        fact = "goes_on" if 0 < candidacy.base[1] == self.version - 1 else "committed"
        return [Say(fact, {"round": self.next_round, "version": self.version, "by": self.reason}), *self._open_next(now)]

    def superseded(self, reason: str, term: int) -> list[Order]:
        """Another manager roots this tree now, or did last, with this term: nothing more is decided here."""
        if self.stage == "superseded":
            return []
        self.stage, self.reason, self.work, self.candidacy.ballot, self._deadline = "superseded", reason, None, None, None
        return [StepDown(reason, term)]

    @property
    def put_to(self) -> Groups:
        """Whose agreement the next version needs; kept in the record."""
        return self.candidacy.put_to

    # --- recoveries ---------------------------------------------------------------------------------------------------

    def _lost(self, loss: Loss, now: float) -> list[Order]:
        """A life is over. Where an earlier look for its agent still runs, that one asks for what an earlier life has left."""
        orders: list[Order] = [Say("agent_lost", {"agent": loss.agent, "cause": loss.cause, "reason": loss.reason})]
        self.liveness.members[loss.agent].died_in = self.next_round
        if self.work is not None:
            self.work.tried.discard(loss.agent)
        if self.plan.terms.mode == "drop" or self.stage in ("locating", "waiting", "init", "done", "superseded"):
            return orders
        return [*orders, *self._recover(loss, now, anew=True)]

    def _recover(self, loss: Loss, now: float, *, anew: bool = False) -> list[Order]:
        if self.work is not None:
            self.work.recovering.add(loss.agent)
        if not anew and self.recoveries.running(loss.agent):
            return []
        return [Recover(self.recoveries.begin(loss, now).number, loss.agent)]

    def retrieved(self, result: RetrievalEnded, metrics: Mapping[str, float], now: float) -> list[Order]:
        """A look for a lost record has ended. metrics: the figures that the record carries, where there is one."""
        recovery = self.recoveries.of_number(result.request)
        if recovery is None or recovery.ended(result, now) == "running":
            return []
        orders: list[Order] = [Say("recovered" if recovery.record else "record_lost", {"agent": recovery.agent, "reason": recovery.reason})]
        recovery.metrics = metrics
        if self.recoveries.running(recovery.agent):
            return orders  # it has died again, and what its later life has left is being looked for
        lost = self.liveness.members[recovery.agent]
        if lost.state == "dead" and not lost.retired:
            self.left_behind[recovery.agent] = recovery
        work = self.work
        if work is None or recovery.agent not in work.recovering:
            return orders
        work.recovering.discard(recovery.agent)
        return orders + self._serve(work, recovery, recovery.agent) + self._step(now)

    def _serve(self, work: Round, recovery: Recovery, agent: NodeId) -> list[Order]:
        """What was found of this agent stands in for it where it may, or is known not to."""
        work.tried.add(agent)
        if agent not in work.expected or agent in work.slots:
            return []
        unfit = work.substitute(recovery.record, self.plan.terms) if recovery.record is not None else recovery.reason
        if unfit is None:
            self._filled(work, agent, recovery.metrics)
            slot = work.slots[agent]
            return [Say("stood_in", {"agent": agent, "round": work.number, "version": slot.record.version, "factor": slot.factor})]
        if self.plan.terms.mode == "substitute" and work.phase == "train" and self.liveness.members[agent].state == "dead":
            work.missing[agent] = unfit
        return []
