"""One ring of real nodes under test: brought up one after another, looked up in, multicast to, and then struck.

The nodes that are to be killed, the root of the tree among them, live in a process of their own: a signal to it is exactly their death.
The root is then started again in a process that was warm but empty, under the same id, at another address and with a later incarnation, as
a manager that is restarted elsewhere.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

from protocol.identifiers import BITS, NodeId, agent_id, tree_id
from protocol.parameters import PRESETS
from scripts.local_cluster import free_ports
from scripts.overlay_bench.fleet import BenchError, Fleet, NotInTime, Process
from scripts.overlay_bench.ledger import LOST_AFTER_S, Ledger, LookUp, percentile, spread
from scripts.overlay_bench.node_process import CLUSTER

JOINERS = 10
"""Nodes that join right after the kill."""
SPARE_PORTS = 16
SEEDS_MAX = 3
WARM_PASSES = 2
MULTICASTS = 20
MULTICAST_EVERY_S = 0.05
MULTICAST_MESSAGES_PER_S = 1000.0
"""What the question whether the tree is complete may add to the load of a ring that repairs itself: so it is asked of many members less
often."""
MULTICAST_WITHIN_S = 5.0
TREE_WITHIN_S = 60.0
FLOW_PER_S = 200.0
BEFORE_THE_BLOW_S = 1.0
CALM_S = 2.0
"""Look-ups asked for so long without a fault, and the ring counts as right again."""
LOOK_EVERY_S = 0.5
BLOW_WITHIN_S = 60.0
BACK_WITHIN_S = 60.0
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How large a trial is, and with which parameters."""

    nodes: int
    processes: int
    preset: str
    look_ups: int
    idle_s: float
    seed: int

    @property
    def victims(self) -> int:
        """Ten percent, and at least the root."""
        return max(1, self.nodes // 10)


@dataclass(slots=True)
class Placed:
    """One node: where it lives."""

    id: NodeId
    process: Process
    port: int


class Ring:
    """Made empty; up() brings all nodes in."""

    def __init__(self, fleet: Fleet, size: Size) -> None:
        self.fleet = fleet
        self.size = size
        self.ledger = Ledger()
        self.facts: list[tuple[float, str, str, str]] = []
        """What the nodes have said of themselves and of others: when, who, what, and its details."""
        self.receipts: list[tuple[int, str, str, float]] = []
        self.quits = 0
        self.join_ms: list[float] = []
        self.nodes: list[Placed] = []
        self.blow_s = 0.0
        """When the victims were struck."""
        self.baseline_mb = 0.0
        """All processes with one node each."""
        self._tree = tree_id("main", CLUSTER)
        self._rng = Random(size.seed)
        self._parameters = PRESETS[size.preset]()
        self._processes: list[Process] = []
        self._spare: Process | None = None
        self._multicasts = 0
        self._ports: Iterator[int] = iter(())

    # --- who is where -------------------------------------------------------------------------------------------------

    @property
    def _root(self) -> Placed:
        return next(node for node in reversed(self.nodes) if node.id == self._tree)

    def _of(self, processes: Iterable[Process]) -> list[Placed]:
        chosen = list(processes)
        return [node for node in self.nodes if node.process in chosen]

    @property
    def victims(self) -> list[Placed]:
        return self._of(self._processes[:1])

    @property
    def survivors(self) -> list[Placed]:
        return self._of(self._processes[1:])

    # --- coming up ----------------------------------------------------------------------------------------------------

    async def up(self) -> None:
        """Every process, then every node: one in each process first, to warm them up, the others in a random order."""
        size, victims = self.size, self.size.victims
        elsewhere = size.processes - 1
        share = -(-(size.nodes + JOINERS - victims) // elsewhere)
        first = free_ports(size.nodes + JOINERS + SPARE_PORTS)
        self._ports = iter(range(first, first + size.nodes + JOINERS + SPARE_PORTS))
        rooms = [("victims", victims), *((f"survivors-{index}", share) for index in range(1, elsewhere + 1))]
        self._processes = list(await asyncio.gather(*(self.fleet.spawn(name, nodes_max) for name, nodes_max in rooms)))
        names = [self._tree, *(agent_id(CLUSTER, f"node-{index}") for index in range(1, size.nodes))]
        placed = list(zip(names, [0] * victims + [1 + index % elsewhere for index in range(size.nodes - victims)], strict=True))
        early = [placed[0], *placed[victims : victims + elsewhere]]
        late = [one for one in placed if one not in early]
        self._rng.shuffle(late)
        for identifier, process in early:
            await self._start(identifier, self._processes[process], self.nodes)
        await self._look_ups(self._pairs(4 * len(early)))
        self.baseline_mb = self._pss_mb()
        for identifier, process in late:
            self.join_ms.append(await self._start(identifier, self._processes[process], self.nodes))

    async def _start(self, identifier: NodeId, process: Process, through: list[Placed], incarnation: int = 1) -> float:
        """One node, and how many milliseconds it took to be in the ring."""
        seeds = [node.port for node in self._rng.sample(through, min(SEEDS_MAX, len(through)))]
        while True:
            port = next(self._ports)
            try:
                told = await process.ask(
                    "start", node=str(identifier), port=port, incarnation=incarnation, seeds=seeds, root=identifier == self._tree
                )
                break
            except BenchError as error:
                if "in use" not in str(error):
                    raise
        self.nodes.append(Placed(identifier, process, port))
        self.ledger.born(identifier, incarnation, told["active_s"])
        return 1000 * (told["active_s"] - told["began_s"])

    def _pss_mb(self) -> float:
        return sum(process.pss_mb() for process in self._processes)

    # --- in peace -----------------------------------------------------------------------------------------------------

    async def steady(self) -> Figures:
        """Look-ups, first and again; the tree and its multicasts; then nothing at all for a while; and what it all weighs."""
        pairs = self._pairs(self.size.look_ups)
        cold = await self._look_ups(pairs)
        warm = [look_up for _ in range(WARM_PASSES) for look_up in await self._look_ups(pairs)]
        dialled = [look_up for look_up in cold if look_up.dialled]
        hops = [delivery.hops for look_up in cold for delivery in look_up.deliveries[:1] if delivery.hops >= 0]
        tree = await self.plant()
        multicasts = await self._multicasts_ms()
        children = Counter(parent for number, _, parent, _ in self.receipts if number == self._multicasts)
        idle = await self._idle()
        beyond = self.size.nodes - self.size.processes
        return {
            "join_ms_mean": round(fmean(self.join_ms), 3),
            "join_ms_p99": round(percentile(self.join_ms, 0.99), 3),
            "hops_mean": round(fmean(hops), 3),
            "hops_p99": percentile(hops, 0.99),
            "rtt_warm_ms": spread([look_up.rtt_ms for look_up in warm if look_up.rtt_ms is not None]),
            "rtt_cold_ms": spread([look_up.rtt_ms for look_up in dialled or cold if look_up.rtt_ms is not None]),
            "rtt_first_ms": spread([look_up.rtt_ms for look_up in cold if look_up.rtt_ms is not None]),
            "first_dialled": len(dialled),
            "warm_dialled": sum(look_up.dialled for look_up in warm),
            "multicast_ms": spread(multicasts),
            "fan_out_max": max(children.values()),
            **tree,
            **idle,
            "memory_mb_per_node": round((self._pss_mb() - self.baseline_mb) / beyond, 3),
            "memory_mb_first": round(self.baseline_mb / self.size.processes, 3),
        }

    def _pairs(self, number: int) -> list[tuple[Placed, NodeId]]:
        return [(self._rng.choice(self.nodes), NodeId(self._rng.getrandbits(BITS))) for _ in range(number)]

    async def _look_ups(self, pairs: list[tuple[Placed, NodeId]]) -> list[LookUp]:
        """One after another in the whole ring, process by process."""
        requests: list[int] = []
        for process in dict.fromkeys(node.process for node, _ in pairs):
            mine = [(str(node.id), str(key)) for node, key in pairs if node.process is process]
            within_s = 60 + LOST_AFTER_S * len(mine)
            requests += (await process.ask("look_ups", within_s, pairs=mine))["requests"]
        await self._drain(self._processes)
        return [self.ledger.look_ups[request] for request in requests]

    async def plant(self) -> Figures:
        """Every node but the root becomes a member; until a multicast reaches them all."""
        began_s = time.monotonic()
        for process in self._processes:
            names = [str(node.id) for node in self._of([process]) if node.id != self._tree]
            if names:
                await process.ask("join_tree", tree=str(self._tree), nodes=names)
        done_s = await self._multicast_until_complete(self._members(self._processes), TREE_WITHIN_S)
        if done_s is None:
            raise BenchError(f"no multicast reached all {self.size.nodes - 1} members within {TREE_WITHIN_S:g} s")
        return {"tree_s": round(done_s - began_s, 3)}

    def _members(self, processes: Iterable[Process]) -> set[str]:
        """The names of the processes that hold members."""
        return {process.name for process in processes if any(node.id != self._tree for node in self._of([process]))}

    async def _multicast(self) -> tuple[int, float]:
        """One multicast from the root: its number, and when it was sent."""
        self._multicasts += 1
        number = self._multicasts
        return number, (await self._root.process.ask("multicast", tree=str(self._tree), number=number))["sent_s"]

    async def _multicast_until_complete(self, processes: set[str], within_s: float) -> float | None:
        """One after another, until one of them has reached every member there; when it had. None where none does in time."""
        first, deadline_s = self._multicasts + 1, time.monotonic() + within_s
        every_s = max(MULTICAST_EVERY_S, len(self.nodes) / MULTICAST_MESSAGES_PER_S)
        while time.monotonic() < deadline_s:
            number, _ = await self._multicast()
            await self.fleet.completions.until(number, processes, every_s)
            complete = [at for one, at in self.fleet.completions.completed(processes).items() if one >= first]
            if complete:
                return min(complete)
        return None

    async def _multicasts_ms(self) -> list[float]:
        """From the root's order until each member had it, of multicasts sent one at a time."""
        sent: dict[int, float] = {}
        for _ in range(MULTICASTS):
            number, sent[number] = await self._multicast()
            if await self.fleet.completions.until(number, self._members(self._processes), MULTICAST_WITHIN_S) is None:
                raise BenchError(f"multicast {number} did not reach every member within {MULTICAST_WITHIN_S:g} s")
        await self._drain(self._processes)
        return [1000 * (at_s - sent[number]) for number, _, _, at_s in self.receipts if number in sent]

    async def _idle(self) -> Figures:
        await asyncio.sleep(min(2.0, self.size.idle_s))
        began_s, before = time.monotonic(), [process.cpu_s() for process in self._processes]
        await asyncio.sleep(self.size.idle_s)
        used = sum(process.cpu_s() for process in self._processes) - sum(before)
        return {"idle_cpu_pct_per_node": round(100 * used / (time.monotonic() - began_s) / self.size.nodes, 4)}

    async def _drain(self, processes: Iterable[Process]) -> None:
        """Takes over what the processes have noted."""
        for process in processes:
            drained = await process.ask("drain")
            self.ledger.take(drained)
            self.facts += drained["facts"]
            self.receipts += drained["receipts"]
            self.quits += drained["quits"]

    # --- the blow -----------------------------------------------------------------------------------------------------

    async def struck(self, number: signal.Signals, joiners: int) -> Figures:
        """The victims get the signal; the figures of what follows, until the ring is right again and for a while after."""
        victims, alive = self.victims, self._processes[1:]
        self._spare = await self.fleet.spawn("restarted-root", 1)
        noted = set(self.ledger.look_ups)
        for process in alive:
            await process.ask("flow", per_s=FLOW_PER_S / len(alive), keys=[str(node.id) for node in victims])
        await asyncio.sleep(BEFORE_THE_BLOW_S)
        blow_s = self.blow_s = self._processes[0].signal(number)
        self.ledger.ended((node.id for node in victims), blow_s)
        repairs = asyncio.gather(self._restart_root(blow_s), self._joins(joiners))
        try:
            settled_s = await self._until_calm(noted, blow_s, repairs)
        finally:
            repaired = repairs.done()
            repairs.cancel()
            await asyncio.wait({repairs})
            root, joined_s = repairs.result() if repaired else ({}, None)
            if not repaired and not repairs.cancelled():
                repairs.exception()  # of what was broken off nothing more is wanted
        look_ups = await self._end_of_flow(noted, blow_s)
        right_s = self.ledger.right_again(look_ups, blow_s, self._parameters.delay_max_s) if settled_s is not None else None
        multicast_s = root.get("multicast_s")
        after_s = max(right_s, multicast_s) if right_s is not None and multicast_s is not None else None
        answered = [one.rtt_ms for one in look_ups if one.rtt_ms is not None and one.asked_s >= blow_s]
        return {
            "signal": number.name,
            "after_s": round(after_s, 3) if after_s is not None else None,
            "look_ups_right_s": round(right_s, 3) if right_s is not None else None,
            "detected_s": self.ledger.detected_s((node.id for node in victims), blow_s),
            **root,
            "joins": joiners,
            "joins_s": joined_s,
            "rtt_after_ms": spread(answered),
            "look_ups": len(look_ups),
            "wrong_roots": sum(self.ledger.wrong(one) for one in look_ups),
            "lost": sum(one.lost for one in look_ups),
            "unanswered": sum(one.answered_s is None and not one.lost for one in look_ups),
        }

    async def _restart_root(self, blow_s: float) -> Figures:
        """The tree's root again, elsewhere; and multicasts from it until one has reached every living member."""
        assert self._spare is not None
        members = self._members(self._processes[1:])
        try:
            joined_ms = await self._start(self._tree, self._spare, self.survivors, incarnation=2)
        except NotInTime:
            return {"root_active_s": None, "multicast_s": None}
        active_s = time.monotonic() - blow_s
        done_s = await self._multicast_until_complete(members, BLOW_WITHIN_S)
        told = {"root_active_s": round(active_s, 3), "root_join_ms": round(joined_ms, 3)}
        return told | {"multicast_s": round(done_s - blow_s, 3) if done_s is not None else None}

    async def _joins(self, number: int) -> float | None:
        """So many nodes join, one after another; how long all of them took together, None where not in time."""
        began_s, alive, through = time.monotonic(), self._processes[1:], self.survivors
        try:
            for index in range(number):
                await self._start(agent_id(CLUSTER, f"late-{index}"), alive[index % len(alive)], through)
        except NotInTime:
            return None
        return round(time.monotonic() - began_s, 3) if number else None

    async def _until_calm(self, noted: set[int], blow_s: float, repairs: asyncio.Future[Any]) -> float | None:
        """Until the repairs are done and the look-ups have been right for a while; None where that does not come."""
        prompt_s = self._parameters.delay_max_s
        while (now_s := time.monotonic()) < blow_s + BLOW_WITHIN_S:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._drain([*self._processes[1:], *([self._spare] if self._spare else [])])
            until_s = now_s - prompt_s
            look_ups = [one for request, one in self.ledger.look_ups.items() if request not in noted]
            since_s = until_s - CALM_S
            if repairs.done() and since_s > blow_s and self.ledger.calm(look_ups, since_s, until_s, prompt_s):
                repairs.result()
                return since_s
        return None

    async def _end_of_flow(self, noted: set[int], blow_s: float) -> list[LookUp]:
        """Stops asking, and waits for what is still on its way."""
        alive = self._processes[1:]
        for process in alive:
            await process.ask("flow", per_s=0, keys=[])
        deadline_s = time.monotonic() + LOST_AFTER_S
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._drain([*alive, *([self._spare] if self._spare else [])])
            look_ups = [one for request, one in self.ledger.look_ups.items() if request not in noted]
            oldest_s = time.monotonic() - LOST_AFTER_S
            if time.monotonic() > deadline_s or all(one.answered_s is not None or one.asked_s < oldest_s for one in look_ups):
                return look_ups

    # --- and after it -------------------------------------------------------------------------------------------------

    async def woken(self) -> Figures:
        """SIGCONT: the victims come back, but for the old root, which finds that a later life of it lives and stops."""
        back = [node for node in self.victims if node.id != self._tree]
        woken_s = self._processes[0].signal(signal.SIGCONT)
        found_s: float | None = None
        missing = list(back)
        while time.monotonic() < woken_s + BACK_WITHIN_S and (missing or not self.quits):
            if missing:
                [look_up] = await self._look_ups([(self._rng.choice(self.survivors), missing[0].id)])
                if look_up.deliveries and look_up.deliveries[0].by == missing[0].id:
                    missing.pop(0)
                    found_s = time.monotonic() - woken_s
                    continue
            await asyncio.sleep(LOOK_EVERY_S)
            await self._drain(self._processes)
        found_s = None if missing else found_s or 0.0
        return {"back_s": round(found_s, 3) if found_s is not None else None, "old_root_quit": bool(self.quits)}
