"""Dials: how a connection comes to be, or why it does not.

Nobody listens: refused, after one round trip. A host that is gone, or paths that are cut, answer nothing: the dial fails when
its time is over. A paused process accepts, for its kernel does, and says no hello until it goes on. A later life at the same
address says its own hello; another node there refuses.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from protocol.identifiers import Address, Peer
from protocol.overlay import events as ev
from protocol.parameters import OverlayParameters

if TYPE_CHECKING:
    from scripts.simulation.cluster import Process
    from scripts.simulation.network import Link, Network


class Attempt:
    """One dial. peer: whom; None where anybody at the address will do (a seed)."""

    __slots__ = ("address", "delay_s", "done", "index", "link", "name", "peer", "source", "until")

    def __init__(self, source: Process, address: Address, peer: Peer | None, link: Link | None, until: float) -> None:
        self.source = source
        self.address = address
        self.peer = peer
        self.link = link
        self.until = until
        self.delay_s = 0.0
        self.done = False
        self.index = source.index
        self.name = source.name


class Dialling:
    """All dials of one network."""

    def __init__(self, network: Network, parameters: OverlayParameters, rng: Random) -> None:
        self.count = self.for_look_ups = 0
        """All of them; those that a look-up's next hop needed."""
        self._network = network
        self._clock = network.clock
        self._parameters = parameters
        self._rng = rng

    def begin(self, source: Process, address: Address, peer: Peer | None = None, link: Link | None = None, patience: int = 1) -> None:
        """To `peer`, or to whoever is at the address; for messages that wait for `link`, or for the hello alone."""
        self.count += 1
        network = self._network
        timeout_s = self._parameters.probe_timeout_s * patience if link is None else self._parameters.trial_max_s
        attempt = Attempt(source, address, peer, link, self._clock.now + timeout_s)
        target = network.at.get(address)
        attempt.delay_s = network.terrain.delay(source, target) if target is not None else network.terrain.mean_s
        if target is not None and self._unheard(source, target):
            self._give_up_later(attempt)
        elif target is None or not target.alive:
            self._clock.after(2 * attempt.delay_s, self._failed, attempt, "refused")
        else:
            way_s = 3 * attempt.delay_s + network.terrain.jitter_s * self._rng.random()
            if network.stall_share and self._rng.random() < network.stall_share:
                way_s += self._rng.uniform(*network.stall_s)
                self._give_up_later(attempt)
            self._clock.after(way_s, self.accept, attempt)

    def _unheard(self, source: Process, target: Process) -> bool:
        return target.host_gone or self._network.blocked(source, target) or self._network.blocked(target, source)

    def _give_up_later(self, attempt: Attempt) -> None:
        self._clock.at(max(attempt.until, self._clock.now), self._failed, attempt, "no hello in time")

    def accept(self, attempt: Attempt, _: Any) -> None:
        """The dialler's hello is there: the connection stands, and each side may send."""
        target, source = self._network.at[attempt.address], attempt.source
        if attempt.done or not source.alive:
            return
        if self._unheard(source, target):
            self._give_up_later(attempt)
        elif not target.alive:
            self._failed(attempt, "refused")
        elif target.blocked:
            self._give_up_later(attempt)
            target.put_off(self.accept, attempt)
        elif target is source:
            self._failed(attempt, "this node itself")
        elif attempt.peer is not None and attempt.peer.id != target.peer.id:
            self._failed(attempt, "refused")
        else:
            attempt.done = True
            there, back = self._network.pair(source, target, attempt.delay_s)
            back.last = self._clock.now + attempt.delay_s
            self._network.flush(back)
            self._network.flush(there, attempt.delay_s)
            self._clock.after(attempt.delay_s, self._greeted, attempt, target.peer)

    def _greeted(self, attempt: Attempt, found: Peer) -> None:
        link, peer = attempt.link, attempt.peer
        if peer is None:
            self._network.tell(attempt.source, ev.SeedAnswered(attempt.address, found))
        elif link is None:
            self._network.tell(attempt.source, ev.DialEnded(peer, found))
        elif found != peer:
            self._network.lose(link, f"incarnation {found.incarnation} lives there, not {peer.incarnation}")

    def _failed(self, attempt: Attempt, reason: str) -> None:
        if attempt.done:
            return
        attempt.done = True
        if attempt.peer is None:
            self._network.tell(attempt.source, ev.SeedFailed(attempt.address, reason))
        elif attempt.link is None:
            self._network.tell(attempt.source, ev.DialEnded(attempt.peer, None, reason == "refused", reason))
        elif attempt.link.state == "dialling":
            self._network.lose(attempt.link, reason)
