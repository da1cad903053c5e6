"""The global view: what no node can know and every node should agree with.

Whose key it is: the living node closest to it. The ring is right when every living node has exactly its living neighbours; a tree, when
every living member reaches the root through parents who know their children, and the root lists the living members and nobody else.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from random import Random
from typing import TYPE_CHECKING

from protocol.identifiers import NodeId, TreeId, rank

if TYPE_CHECKING:
    from scripts.simulation.cluster import Process


class View:
    """All living processes by their ids. side: L/2."""

    def __init__(self, side: int) -> None:
        self.living: list[Process] = []
        """Paused ones among them; in no order that means anything, but the same for the same seed."""
        self._side = side
        self._ids: list[NodeId] = []
        self._by_id: dict[NodeId, Process] = {}
        self._position: dict[int, int] = {}
        self._wrong_before: Process | None = None

    def __len__(self) -> int:
        return len(self.living)

    def add(self, process: Process) -> None:
        self._position[process.index] = len(self.living)
        self.living.append(process)
        if process.peer.id not in self._by_id:
            insort(self._ids, process.peer.id)
        self._by_id[process.peer.id] = process

    def remove(self, process: Process) -> None:
        if process.index not in self._position:
            return  # it was leaving
        position, last = self._position.pop(process.index), self.living.pop()
        if last is not process:
            self.living[position] = last
            self._position[last.index] = position
        if self._by_id.get(process.peer.id) is process:
            del self._by_id[process.peer.id]
            del self._ids[bisect_left(self._ids, process.peer.id)]

    def get(self, identifier: NodeId) -> Process | None:
        """The latest living life of this id."""
        return self._by_id.get(identifier)

    def awake(self) -> list[Process]:
        return [process for process in self.living if not process.paused]

    def some(self, rng: Random, count: int) -> list[Process]:
        """So many living processes by chance, the same one perhaps more than once."""
        return [self.living[int(rng.random() * len(self.living))] for _ in range(count)]

    # --- keys ---------------------------------------------------------------------------------------------------------

    def closer(self, key: int, than: NodeId) -> Iterator[Process]:
        """The living nodes closer to the key than this id is, nearest first."""
        ids, count = self._ids, len(self._ids)
        right = bisect_left(ids, key)
        left, limit = right - 1, rank(key, than)
        for _ in range(count):
            below, above = rank(key, ids[left % count]), rank(key, ids[right % count])
            if below < above:
                nearest, left = below, left - 1
            else:
                nearest, right = above, right + 1
            if nearest >= limit:
                return
            yield self._by_id[NodeId(nearest[1])]

    def root_of(self, key: NodeId) -> Process | None:
        """Who should deliver a message for this key: the closest that is not paused."""
        furthest = NodeId((key + (1 << 127)) % (1 << 128))
        return next((process for process in self.closer(key, furthest) if not process.paused), self._by_id.get(furthest))

    # --- the ring -----------------------------------------------------------------------------------------------------

    def neighbours(self, process: Process) -> set[NodeId]:
        """Who belongs into its leaf set, by the living."""
        ids, count = self._ids, len(self._ids)
        index = bisect_left(ids, process.peer.id)
        steps = range(1, min(self._side, count - 1) + 1)
        return {ids[(index + step) % count] for step in steps} | {ids[(index - step) % count] for step in steps}

    def is_placed(self, process: Process) -> bool:
        """Is it settled, and its leaf set exactly its living neighbours, each in its present life?"""
        if not process.settled:
            return False
        leaf_set = process.node.pastry.leaf_set
        near, by_id = self.neighbours(process), self._by_id
        return len(leaf_set) == len(near) and all(peer.id in near and by_id[peer.id].peer == peer for peer in leaf_set)

    def ring_is_right(self) -> bool:
        """Every living node is placed; the one that was not when last asked is looked at first."""
        before = self._wrong_before
        if before is not None and before.alive and not self.is_placed(before):
            return False
        self._wrong_before = next((process for process in self.living if not self.is_placed(process)), None)
        return self._wrong_before is None

    # --- trees --------------------------------------------------------------------------------------------------------

    def tree_is_right(self, tree: TreeId, members: Iterable[Process] | None = None) -> bool:
        """Are these (everyone but the root, where not said) the members of the tree, for every node of it?"""
        root = self._by_id.get(tree)
        found = root.node.scribe.trees.get(tree) if root is not None else None
        if root is None or found is None or not found.is_root:
            return False
        wanted = [process for process in self.living if process is not root] if members is None else list(members)
        if len(found.members) != len(wanted):
            return False
        listed = {member.peer for member in found.members.values()}
        if any(process.peer not in listed for process in wanted):
            return False
        reached = {root.peer.id}
        return all(self._reaches(process, tree, reached) for process in wanted)

    def _reaches(self, process: Process, tree: TreeId, reached: set[NodeId]) -> bool:
        """Up the parents to one that is known to reach the root; a cycle ends at a node seen on this way."""
        way: list[NodeId] = []
        at: Process | None = process
        while at is not None and at.peer.id not in reached:
            found = at.node.scribe.trees.get(tree)
            if found is None or found.parent is None or at.peer.id in way:
                return False
            way.append(at.peer.id)
            above = self._by_id.get(found.parent.id)
            over = above.node.scribe.trees.get(tree) if above is not None and above.peer == found.parent else None
            if over is None or at.peer.id not in over.children:
                return False
            at = above
        reached.update(way)
        return at is not None

    # --- words --------------------------------------------------------------------------------------------------------

    def what_is_wrong(self, tree: TreeId | None = None, lines_max: int = 40) -> list[str]:
        """Where nodes, and the tree, differ from what they should be."""
        wrong: list[str] = []
        for process in self.living:
            if len(wrong) >= lines_max:
                break
            if not self.is_placed(process):
                wrong += self._misplaced(process)
        root = self._by_id.get(tree) if tree is not None else None
        if tree is None or root is None:
            return wrong[:lines_max]
        found = root.node.scribe.trees.get(tree)
        listed = {member.peer: member.name for member in found.members.values()} if found is not None else {}
        living = {process.peer: process.name for process in self.living if process is not root}
        wrong += [f"the root lists {listed[peer]} {peer}, which does not live" for peer in listed if peer not in living]
        wrong += [f"the root does not list {living[peer]} {peer}" for peer in living if peer not in listed]
        reached = {root.peer.id}
        for process in self.living:
            if process is not root and not self._reaches(process, tree, reached):
                state = process.node.scribe.trees.get(tree)
                has = f"parent {state.parent}, joining {state.joining}" if state is not None else "no such tree"
                wrong.append(f"{process} does not reach the root: {has}")
        return wrong[:lines_max]

    def _misplaced(self, process: Process) -> list[str]:
        if not process.settled:
            return [f"{process} is not settled"]
        leaf_set, near = process.node.pastry.leaf_set, self.neighbours(process)
        wrong = [f"{process} lacks {self._by_id[identifier]}" for identifier in sorted(near) if identifier not in leaf_set]
        for peer in leaf_set:
            living = self._by_id.get(peer.id)
            if living is None or living.peer != peer:
                wrong.append(f"{process} still has {peer}, incarnation {peer.incarnation}, in its leaf set")
            elif peer.id not in near:
                wrong.append(f"{process} has {peer}, which is too far, in its leaf set")
        return wrong

    def suspects(self, tree: TreeId | None) -> list[str]:
        """The names of processes that are part of what is wrong, for their stories."""
        wrong = [process.name for process in self.living if not self.is_placed(process)]
        root = self._by_id.get(tree) if tree is not None else None
        if tree is not None and root is not None:
            reached = {root.peer.id}
            wrong += [process.name for process in self.living if process is not root and not self._reaches(process, tree, reached)]
            wrong.append(root.name)
        return list(dict.fromkeys(wrong))
