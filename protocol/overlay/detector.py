"""The failure detector: which life of which peer is over.

A false alarm costs a recovery that nobody needed; a missed death costs a round. So suspicion is cheap and comes from anywhere, and a
verdict has one source: a fresh dial.

1. Any message from a peer stands for its heartbeat.
2. A connection that broke makes a suspect at once: a killed process is known within milliseconds.
3. Silence of a watched peer (ring neighbours, parent and children in trees) beyond `silence_max_s` makes a suspect: a hang.
4. The suspect is dialled. Refused: the process is gone. No hello within `probe_timeout_s`: it hangs, dead. A hello clears it.
   A later life that others tell of, and that nobody finds, kills nobody: the life that was heard stands.
5. The higher incarnation of an id wins at once: the lower one is dead ("restarted as ..."); a lower one that speaks is told so.
6. The dead are remembered and dialled again with doubling waits and jitter, so that a healed partition or a process that slept is found.
   One that left in order is not.
7. A node whose own timer comes late was asleep itself: it forgives the silence of others, and begins its dials anew.

    unknown/alive --lost, silent, suspected--> suspect --hello--> alive
                                                suspect --refused, timeout, later life--> dead --hello, any message--> alive
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from random import Random

from protocol.identifiers import NodeId, Peer
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Dial, Disconnect, Effect, Notify, PeerCleared, PeerDied, Send
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Superseded


@dataclass(slots=True)
class Suspicion:
    """One suspect under trial."""

    peer: Peer
    reason: str


@dataclass(slots=True)
class Dead:
    """One dead peer that is dialled now and then."""

    peer: Peer
    wait_s: float


class Detector:
    """Judges peers; see the module's rules."""

    def __init__(self, me: Peer, parameters: OverlayParameters, rng: Random) -> None:
        self._me = me
        self._parameters = parameters
        self._rng = rng
        self._lives: dict[NodeId, Peer] = {}
        """The latest life of every peer heard and not known to be dead."""
        self._heard: dict[NodeId, float] = {}
        self._watched: dict[NodeId, Peer] = {}
        self._suspects: dict[NodeId, Suspicion] = {}
        self._dead: dict[NodeId, Dead] = {}
        self._deadlines: Deadlines[tuple[str, NodeId]] = Deadlines()

    # --- what others ask ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def is_suspect(self, identifier: NodeId) -> bool:
        return identifier in self._suspects

    def is_dead(self, peer: Peer) -> bool:
        """Is this life of the peer known to be over?"""
        dead, live = self._dead.get(peer.id), self._lives.get(peer.id)
        return (dead is not None and dead.peer.incarnation >= peer.incarnation) or (
            live is not None and live.incarnation > peer.incarnation
        )

    def recently_dead(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self._dead))

    def lives(self) -> list[Peer]:
        """Everyone heard and not known to be dead."""
        return list(self._lives.values())

    # --- hearing ------------------------------------------------------------------------------------------------------

    def heard(self, peer: Peer, now: float) -> tuple[bool, list[Effect]]:
        """The peer itself was heard. False: an older life, to be ignored (it has been told)."""
        known = self._lives.get(peer.id)
        dead = self._dead.get(peer.id)
        if known is not None and peer.incarnation < known.incarnation:
            return False, [Send(peer, Superseded(known))]
        effects: list[Effect] = []
        on_trial = self._suspects.get(peer.id)
        before = known or (on_trial.peer if on_trial is not None else None)
        if before is not None and peer.incarnation > before.incarnation:
            effects += self._bury(before, f"restarted as incarnation {peer.incarnation}", now, remember=False)
        if known is None and dead is not None:
            effects += [Notify("peer_back", {"peer": peer}), PeerCleared(peer)]
            self._forget_dead(peer.id)
        self._lives.pop(peer.id, None)
        self._lives[peer.id] = peer
        self._heard[peer.id] = now
        self._forget_lives()
        return True, effects

    def _forget_lives(self) -> None:
        """Bounded: those unheard for longest go first, unless they are watched or on trial."""
        while len(self._lives) > self._parameters.remembered_lives_max:
            idle = (identifier for identifier in self._lives if identifier not in self._watched and identifier not in self._suspects)
            if (oldest := next(idle, None)) is None:
                return
            del self._lives[oldest]
            self._heard.pop(oldest, None)

    def watch(self, peers: Iterable[Peer], now: float) -> None:
        """From now on the silence of these, and of nobody else, is suspicious."""
        wanted = {peer.id: peer for peer in peers if not self.is_dead(peer)}
        for identifier in sorted(self._watched.keys() - wanted.keys()):
            self._deadlines.drop(("silence", identifier))
        for identifier, peer in wanted.items():
            if self._watched.get(identifier) != peer:
                self._heard[identifier] = max(now, self._heard.get(identifier, now))
                self._deadlines.set(("silence", identifier), now + self._parameters.silence_max_s)
        self._watched = wanted

    # --- suspecting ---------------------------------------------------------------------------------------------------

    def suspect(self, peer: Peer, reason: str, now: float) -> list[Effect]:
        """Something was missed from this peer: put it on trial, unless it is or is known to be dead."""
        if peer.id == self._me.id or peer.id in self._suspects or self.is_dead(peer):
            return []
        self._suspects[peer.id] = Suspicion(peer, reason)
        self._deadlines.set(("trial", peer.id), now + 1.5 * self._parameters.probe_timeout_s)
        return [Notify("peer_suspected", {"peer": peer, "reason": reason}), Dial(peer)]

    def dial_ended(self, peer: Peer, found: Peer | None, refused: bool, reason: str, now: float) -> list[Effect]:
        """The verdict on a suspect, or news of one remembered as dead."""
        if found is not None and found.id == peer.id:
            on_trial = self._suspects.get(peer.id)
            welcome, effects = self.heard(found, now)
            if on_trial is None or self._suspects.get(peer.id) is not on_trial:
                return effects
            if not welcome:
                return effects + self._bury(on_trial.peer, f"{on_trial.reason}; an earlier life answers at {peer.address}", now)
            return effects + self._clear(found, "answered a fresh dial", now)
        if found is not None:
            refused, reason = True, f"another node ({found.id.short}) answers at {peer.address}"
        suspicion = self._suspects.get(peer.id)
        if suspicion is None or suspicion.peer.incarnation > peer.incarnation:
            return []
        live = self._lives.get(peer.id)
        if live is not None and live.incarnation < suspicion.peer.incarnation:
            return self._clear(live, f"nobody has heard its life {suspicion.peer.incarnation}, of which others told", now)
        if not refused and self._heard.get(peer.id, -inf) > now - self._parameters.delay_max_s:
            return self._clear(suspicion.peer, "was heard while it was dialled", now)
        return self._bury(suspicion.peer, f"{suspicion.reason}; {reason or 'no answer to a fresh dial'}", now)

    def goodbye(self, peer: Peer, now: float) -> list[Effect]:
        """The peer leaves in order."""
        return self._bury(peer, "left in order", now, remember=False, in_order=True)

    def _clear(self, peer: Peer, reason: str, now: float) -> list[Effect]:
        self._suspects.pop(peer.id, None)
        self._deadlines.drop(("trial", peer.id))
        if peer.id in self._watched:
            self._deadlines.set(("silence", peer.id), now + self._parameters.silence_max_s)
        return [Notify("peer_cleared", {"peer": peer, "reason": reason}), PeerCleared(peer)]

    def _bury(self, peer: Peer, reason: str, now: float, *, remember: bool = True, in_order: bool = False) -> list[Effect]:
        silent_s = max(0.0, now - self._heard.pop(peer.id, now))
        self._suspects.pop(peer.id, None)
        self._watched.pop(peer.id, None)
        for kind in ("trial", "silence"):
            self._deadlines.drop((kind, peer.id))
        live = self._lives.get(peer.id)
        if live is not None and live.incarnation <= peer.incarnation:
            del self._lives[peer.id]
        if remember:
            self._remember(peer, now)
        return [
            Notify("peer_left" if in_order else "peer_died", {"peer": peer, "reason": reason, "silent_s": silent_s}),
            Disconnect(peer),
            PeerDied(peer, reason, in_order, silent_s),
        ]

    # --- the dead -----------------------------------------------------------------------------------------------------

    def _remember(self, peer: Peer, now: float) -> None:
        self._dead.pop(peer.id, None)
        if len(self._dead) >= self._parameters.remembered_dead_max:
            self._forget_dead(next(iter(self._dead)))
        self._dead[peer.id] = Dead(peer, self._parameters.retry_min_s)
        self._schedule_redial(peer.id, now)

    def _schedule_redial(self, identifier: NodeId, now: float) -> None:
        dead = self._dead[identifier]
        self._deadlines.set(("redial", identifier), now + dead.wait_s * self._rng.uniform(0.75, 1.25))
        dead.wait_s = min(2 * dead.wait_s, self._parameters.retry_max_s)

    def _forget_dead(self, identifier: NodeId) -> None:
        self._dead.pop(identifier, None)
        self._deadlines.drop(("redial", identifier))

    # --- time ---------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for kind, identifier in self._deadlines.due(now):
            if kind == "silence":
                effects += self._silence_due(identifier, now)
            elif kind == "trial":
                effects += self.dial_ended(self._suspects[identifier].peer, None, False, "no end of the dial", now)
            elif identifier in self._dead:
                effects.append(Dial(self._dead[identifier].peer))
                self._schedule_redial(identifier, now)
        return effects

    def _silence_due(self, identifier: NodeId, now: float) -> list[Effect]:
        if identifier not in self._watched:
            return []  # its trial ended in this same moment
        due = self._heard.get(identifier, now) + self._parameters.silence_max_s
        if due > now:
            self._deadlines.set(("silence", identifier), due)
            return []
        self._deadlines.set(("silence", identifier), now + self._parameters.silence_max_s)
        return self.suspect(self._watched[identifier], f"silent for {now - due + self._parameters.silence_max_s:.2f} s", now)

    def forgive(self, now: float) -> list[Effect]:
        """This node slept: nobody's silence counts, and trials begin anew."""
        for identifier in self._watched:
            self._heard[identifier] = now
            self._deadlines.set(("silence", identifier), now + self._parameters.silence_max_s)
        for identifier in self._suspects:
            self._deadlines.set(("trial", identifier), now + 1.5 * self._parameters.probe_timeout_s)
        return [Dial(suspicion.peer) for suspicion in self._suspects.values()]

    def check_invariants(self) -> None:
        assert not self._lives.keys() & self._dead.keys() - {
            i for i in self._lives if self._lives[i].incarnation > self._dead.get(i, Dead(self._lives[i], 0)).peer.incarnation
        }, "a peer is both alive and dead"
        assert self._me.id not in self._suspects, "a node suspects itself"
        assert all(("trial", identifier) in self._deadlines for identifier in self._suspects), "a trial without a deadline"
        assert all(("silence", identifier) in self._deadlines for identifier in self._watched), "a watch without a deadline"
