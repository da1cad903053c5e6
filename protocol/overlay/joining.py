"""Joining: whom a node asks for its place in the ring, and when it is to make a ring of its own. A part of the machine Pastry.

1. The seeds that the user named are tried in turn, then the peers remembered from an earlier life or from the ring just lost; after each
   round a wait that doubles, with jitter. Without seeds, and when nobody remembered answers, a node is a ring of one. Who is in a ring and
   probes us can route our JOIN as well: all seeds may be gone for good, and those who lost us in a cut have found us again.
2. A cluster may start with nobody in a ring: every seed waits for the others. Who has tried all of them FOUNDING_ROUNDS times, has heard
   inactive nodes and no active one, and has the smallest id of all that it has heard, founds the ring. Should two do so (they could not
   hear each other), rule 8 of Pastry makes the two rings one.
3. A node in a ring asks a seed for its place now and then: there may be another ring around it. Seldom, and the more so the larger the
   ring: a seed hears as much from a ring of thousands as from one of a hundred. A node alone asks more often.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from random import Random

from protocol.identifiers import Address, Peer
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import DialSeed, Effect, Notify, Send
from protocol.parameters import OverlayParameters
from protocol.wire.messages import JoinRequest, Route

FOUNDING_ROUNDS = 2
HINTS_MAX = 12
"""Peers remembered, and asked where no seed answers."""


class Joining:
    """The way into the ring. `found` makes a ring of one of this node; `may_found`: has it the smallest id of all that it has heard?"""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        rng: Random,
        found: Callable[[float], list[Effect]],
        may_found: Callable[[], bool],
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._rng = rng
        self._found = found
        self._may_found = may_found
        self.placed = False
        """Has an active node told us our place, since we began to join?"""
        self._seeds: tuple[Address, ...] = ()
        self._hints: tuple[Address, ...] = ()
        self._untried: deque[Address] = deque()
        self._wait_s = parameters.retry_min_s
        self._rounds = 0
        self._asked_at = -inf
        """When we last asked for a place."""
        self.deadlines: Deadlines[str] = Deadlines()

    def next_deadline(self) -> float | None:
        return self.deadlines.next()

    @property
    def has_seeds(self) -> bool:
        return bool(self._seeds)

    @property
    def under_way(self) -> bool:
        """Will something happen by itself?"""
        return "join" in self.deadlines

    def start(self, seeds: Iterable[Address], hints: Iterable[Address], now: float, shared: bool = False) -> list[Effect]:
        """For the first time. shared: another node at our address is a seed like any other."""
        self._seeds = tuple(address for address in seeds if shared or address != self._me.address)
        self._hints = tuple(address for address in hints if address != self._me.address)
        self.deadlines.set("seed", now + self._parameters.row_interval_s * self._rng.uniform(0.5, 1.0))
        return self.begin(now)

    def begin(self, now: float, known: Iterable[Address] = ()) -> list[Effect]:
        """From the first seed; after the seeds, `known` peers, the first few, and those remembered before."""
        self.placed, self._rounds = False, 0
        fresh = [address for address in known if address not in self._seeds][:HINTS_MAX]
        self._hints = tuple(dict.fromkeys((*fresh, *self._hints)))[:HINTS_MAX]
        self._untried = deque((*self._seeds, *self._hints))
        return self._try_next(now)

    def done(self) -> None:
        """This node is in a ring."""
        self._wait_s = self._parameters.retry_min_s
        self.deadlines.drop("join")

    def _try_next(self, now: float) -> list[Effect]:
        if self._untried:
            self.deadlines.set("join", now + self._parameters.join_timeout_s)
            return [DialSeed(self._untried.popleft())]
        self._rounds += 1
        if not self._seeds or (self._rounds >= FOUNDING_ROUNDS and self._may_found()):
            return self._found(now)
        wait_s = self._wait_s * self._rng.uniform(0.75, 1.25)
        self._wait_s = min(2 * self._wait_s, self._parameters.retry_max_s)
        self._untried = deque((*self._seeds, *self._hints))
        self.deadlines.set("join", now + wait_s)
        return [Notify("no_seed_reachable", {"tried": (*self._seeds, *self._hints), "again_in_s": round(wait_s, 2)})]

    def answered(self, peer: Peer, now: float) -> list[Effect]:
        """A seed lives: it routes our JOIN."""
        if "join" in self.deadlines:
            self.deadlines.set("join", now + self._parameters.join_timeout_s)
        return self.ask(peer, now)

    def failed(self, address: Address, reason: str, now: float) -> list[Effect]:
        return [Notify("seed_failed", {"address": address, "reason": reason}), *self._try_next(now)]

    def ask(self, peer: Peer, now: float) -> list[Effect]:
        """This peer shall route our JOIN."""
        self._asked_at = now
        return [Send(peer, Route(self._me.id, JoinRequest(self._me)))]

    def probed(self, peer: Peer, now: float) -> list[Effect]:
        """By one that is in a ring, while we are in none (rule 1)."""
        return [] if self.placed or self.asked_within(self._parameters.join_timeout_s, now) else self.ask(peer, now)

    def asked_within(self, seconds: float, now: float) -> bool:
        return now <= self._asked_at + seconds

    def on_timer(self, now: float, active: bool, probing: bool, nodes: float) -> list[Effect]:
        """active: in a ring, of about so many nodes; probing: a place was told, and is being looked at."""
        effects: list[Effect] = []
        for kind in self.deadlines.due(now):
            if kind == "seed":
                alone = active and nodes < 2
                wait_s = self._parameters.retry_max_s if alone else self._parameters.row_interval_s * max(1.0, nodes / 64)
                self.deadlines.set(kind, now + wait_s * self._rng.uniform(0.75, 1.25))
                places = (*self._seeds, *self._hints) if alone else self._seeds
                effects += [DialSeed(self._rng.choice(places))] if active and places else []
            elif self.placed and probing:
                self.deadlines.set(kind, now + self._parameters.join_timeout_s)
            else:
                effects += self._try_next(now)
        return effects
