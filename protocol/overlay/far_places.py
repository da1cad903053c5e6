"""Places in another zone: where copies go that must survive the death of a whole rack (DESIGN 8, placement).

With zones, the leading bits of an id are its zone's (identifiers.py): a zone is one stretch of the ring, a leaf set lies within it, and
so do all copies that stay on the leaf set. So `spread` and `mixed` need places elsewhere, which owner and seeker find each for itself,
without any list of zones:

1. Half way round the ring from the owner's id, the live node closest to that point names a zone: of those in its neighbourhood that are
   not the owner's, the one with most nodes there. One node is no zone: managers and standbys have none, and would be given the copies of
   all while the other zone is dead, where nobody looks for them once it is back.
2. The owner's id with that zone's bits in place of its own is a point in that zone. The live node closest to it, and its leaf set, are the
   far places; so records of one zone are spread evenly over the other.
3. The owner asks for them when it first has something to bring, and again each `upkeep_interval_s`: who is not named any more has died
   or moved, and does not count. A seeker's look-up goes the same way, beside the one to the owner's id.
4. Without another zone there are no far places, and what must leave the zone stays on the leaf set: better than nowhere.
5. What was brought before they were known, or while nobody there could take it, is brought there once it is durable and they are known:
   until then "durable" means a quorum, wherever it is (placement.py).

With more than two zones, the one that rule 1 names may be another after a zone has died, and again when it is back. An owner brings its
copies there when it asks again (rule 3). Who dies before that is looked for in the zone that is named now, and at home.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, zip_longest

from protocol.identifiers import BITS, ZONE_BITS, NodeId, Peer, zone_of
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Effect, RouteBody, Send
from protocol.overlay.leaf_set import LeafSet
from protocol.parameters import OverlayParameters, PlacementPolicy
from protocol.wire.keeping import FarQuery, FarReply
from protocol.wire.messages import LookUp

FAR = ("far", 0)
"""The deadline at which far places are asked for again."""
ZONE_NODES_MIN = 2
_LOW = (1 << (BITS - ZONE_BITS)) - 1


def opposite(owner: NodeId) -> NodeId:
    """Half way round the ring."""
    return NodeId(owner ^ (1 << (BITS - 1)))


def in_order(me: NodeId, near: list[Peer], far: Iterable[Peer], policy: PlacementPolicy) -> list[Peer]:
    """The places of a record of ours, by policy: at home, abroad, or in turn. Where no neighbour shares our zone there are no zones."""
    home = [peer for peer in near if zone_of(peer.id) == zone_of(me)]
    away = [peer for peer in near if zone_of(peer.id) != zone_of(me)]
    if not home:
        return away
    abroad = list({peer.id: peer for peer in (*far, *away)}.values())
    if policy == "local":
        return home + away
    if policy == "spread":
        return abroad + home
    return [peer for peer in chain.from_iterable(zip_longest(home, abroad)) if peer is not None]


def copies_abroad(policy: PlacementPolicy, copies: int) -> int:
    """How many of so many copies `in_order` puts abroad, where there are places enough."""
    return {"local": 0, "spread": copies, "mixed": copies // 2}[policy]


class FarPlaces:
    """One node's far places, and its answers to those who seek theirs."""

    def __init__(self, me: Peer, parameters: OverlayParameters, leaf_set: LeafSet, deadlines: Deadlines[tuple[str, int]]) -> None:
        self._me = me
        self._parameters = parameters
        self._leaf_set = leaf_set
        self._deadlines = deadlines
        self.known: tuple[Peer, ...] = ()
        """Nearest to the point first."""

    @property
    def are_wanted(self) -> bool:
        return self._parameters.placement != "local"

    def ask(self, now: float) -> list[Effect]:
        """Rule 3."""
        self._deadlines.set(FAR, now + self._parameters.upkeep_interval_s)
        return [RouteBody(opposite(self._me.id), FarQuery(self._me.id, self._me))]

    def replied(self, reply: FarReply) -> bool:
        """True where they are others than before."""
        found = tuple(peer for peer in reply.places if zone_of(peer.id) != zone_of(self._me.id))[: self._parameters.leaf_set_size + 1]
        changed = reply.owner == self._me.id and found != self.known
        if changed:
            self.known = found
        return changed

    # --- for those who seek theirs ------------------------------------------------------------------------------------

    def turned(self, owner: NodeId) -> NodeId | None:
        """Rule 2: the owner's point in the zone that rule 1 names, None where there is no other."""
        zones = Counter(zone_of(peer.id) for peer in (self._me, *self._leaf_set.alternating()))
        del zones[zone_of(owner)]
        [(zone, nodes)] = zones.most_common(1) or [(0, 0)]
        if nodes < ZONE_NODES_MIN:
            return None
        return NodeId(zone << (BITS - ZONE_BITS) | owner & _LOW)

    def query_delivered(self, query: FarQuery) -> list[Effect]:
        if query.turned:
            places = tuple(peer for peer in (self._me, *self._leaf_set.alternating()) if zone_of(peer.id) != zone_of(query.owner))
            return [Send(query.asker, FarReply(query.owner, places))]
        key = self.turned(query.owner)
        if key is None:
            return [Send(query.asker, FarReply(query.owner, ()))]
        return [RouteBody(key, replace(query, turned=True))]

    def forwarded(self, look_up: LookUp) -> list[Effect] | None:
        """The look-up, turned to the far places; None where it is to be answered here."""
        key = None if not look_up.far or look_up.turned else self.turned(look_up.owner)
        return [RouteBody(key, replace(look_up, turned=True))] if key is not None else None
