"""The multicasts of one tree at one node: what was passed on, what is kept for children that missed some, and what may be passed on next.

Each multicast has an order, (incarnation of the root, sequence), and names the one before it at the root. So a node knows when it has
missed one, and passes nothing on before it has what lies between.

1. Next is what follows the last that was passed on: the one before it is no newer than that, or it is the first of a root's life.
2. What `resumes` is next too: the parent says that nobody above has what lies between. That is a gap, but not for a newcomer.
3. Anything older is passed on only to children that lack it; anything else newer is early: dropped, and the parent told where we are.
4. The last `kept_max` are kept. A child that is behind is sent all of them that it lacks; where they do not reach back to where it is,
   our parent is asked for more. Only the root, which has nobody to ask, lets the child resume.
5. A newcomer begins with the last one: orders are the state of the round, and old rounds are of no use to it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Literal

from protocol.identifiers import Peer, TreeId
from protocol.wire.messages import Multicast, RoundOpen

Order = tuple[int, int]
NOTHING: Order = (0, 0)


def follows(message: Multicast, order: Order) -> bool:
    """Is there nothing between `order` and the message? A root's life begins anew: what its former life sent last is void with it."""
    return message.previous <= order or message.order[1] == 1


class Multicasts:
    """What one node has passed on, newest last."""

    def __init__(self, kept_max: int) -> None:
        self._kept: deque[Multicast] = deque(maxlen=kept_max)
        self._claimed = NOTHING

    @property
    def order(self) -> Order:
        """Of the last one passed on."""
        return self._kept[-1].order if self._kept else NOTHING

    @property
    def last(self) -> Multicast | None:
        return self._kept[-1] if self._kept else None

    def root_after(self, root: Peer) -> Peer | None:
        """Who gave the last order, where that is a later life of this root; who forged one may have named another as its giver."""
        last = self.last
        if last is None or last.order[0] <= root.incarnation:
            return None
        giver = last.body.holder
        return giver if (giver.id, giver.incarnation) == (root.id, last.order[0]) else None

    def make(self, tree: TreeId, incarnation: int, body: RoundOpen) -> Multicast:
        """The root's next one."""
        life, sequence = before = self.order
        made = Multicast(tree, (incarnation, sequence + 1 if life == incarnation else 1), body, before)
        self._kept.append(made)
        return made

    def take(self, message: Multicast) -> Literal["next", "gap", "old", "early"]:
        """What this message is to us; the next one is kept."""
        mine = self.order
        if message.order <= mine:
            return "old"
        # A newcomer has no place of its own: what follows the place that it named to its parent, a child's, is next.
        follow = follows(message, mine if mine != NOTHING else self._claimed)
        if not follow and not message.resumes:
            return "early"
        self._kept.append(message)
        return "next" if follow or mine == NOTHING else "gap"

    def reach(self, order: Order) -> bool:
        """Is everything after `order` kept?"""
        return bool(self._kept) and follows(self._kept[0], order)

    def after(self, order: Order, floor: Order) -> list[Multicast]:
        """What is kept after `order`, oldest first, but nothing up to `floor`; marked as resuming where something between is left out."""
        since = max(order, floor)
        lacking = [message for message in self._kept if message.order > since]
        if lacking and not follows(lacking[0], order):
            lacking[0] = replace(lacking[0], resumes=True)
        return lacking

    def begin(self) -> Order:
        """Where a newcomer stands: just before the last one."""
        return min(self._kept[-1].previous, self._kept[-1].order) if self._kept else NOTHING

    def seen(self, children: list[Order]) -> Order:
        """What the parent is told: where we stand, or the place of the child furthest behind whom we cannot serve."""
        mine = self.order
        lacking = [order for order in children if order != NOTHING and (mine == NOTHING or (order < mine and not self.reach(order)))]
        found = min(lacking, default=mine)
        if mine == NOTHING:
            self._claimed = max(self._claimed, found)
        return found
