"""The failure detector: which life of which peer is over.

A false alarm costs a recovery that nobody needed; a missed death costs a round. So suspicion is cheap and comes from anywhere, and a
verdict needs evidence: a host that refuses a fresh dial, or silence that several have met.

1. Any message from a peer stands for its heartbeat, and ends its trial.
2. Direct evidence. A connection that broke makes a suspect at once: a killed process is known within milliseconds.
3. Silence of a watched peer (right ring neighbour, tree relatives) beyond `silence_max_s` makes a suspect: a hang.
4. The suspect is dialled. Refused: the process is gone, dead. A hello clears it.
5. Indirect probes (SWIM 3.1). Without an answer within `delay_max_s`, or at once where its heartbeats have stopped, `helpers` others are
   asked to dial it: those nearest to it on the ring, who will want to know themselves, and whose ids say nothing of where they are. One
   that gets a hello clears it; when our dial and all of theirs have ended in silence, it is dead, at the latest after `trial_max_s`.
   Who answers others time and again, and never us, is dead to us: we cannot route through it.
   Where most helpers give no word at all, they may be gone, too, or too busy: the trial begins anew, once, with others. Where we are not
   well either, or hear nobody, it is we who are not heard (Lifeguard's missing nack): then it does so with more patience.
   A helper that gets no answer from a peer of its own has a suspect of its own; its dial counts, and so does that of others shortly
   before: a hang is known to all of its neighbours in the time of one trial.
6. Refutation (SWIM 4.2; Lifeguard's buddy system). The helper tells the suspect who doubts it, and the suspect dials the doubter.
7. Local health (Lifeguard, section IV-A). A node whose own timer comes late, which hears nobody at all, whose suspect answers others or
   is heard later than a healthy peer answers, or whose dials come to no end, is itself the slow one: it adds its timeouts (`patience`:
   those of ring and trees, too) to themselves once more, up to `local_health_max` times, believes no doubts of others in whom it has
   heard lately, and recovers with time.
8. The higher incarnation of an id wins at once: the lower one is dead ("restarted as ..."); a lower one that speaks is told so. But where
   nobody has heard the higher one lately, it is put on trial instead, and counts no longer when it is dead: a clock may have been set back.
   A later life that others tell of, and that nobody finds, kills nobody: the life that was heard stands.
9. The dead are remembered and dialled again, with doubling waits and jitter: in the long run one in `retry_max_s` of those that fell
   silent, and a few of those that refused. Who is forgotten for whom, so that a partition of any length heals: suspicion.py. Who refused
   is at first given that long: no cut keeps it from us, and where it starts again it will come itself. Who left in order is not dialled.
10. The time that a node slept does not count as silence of others, nor in its trials; after a long sleep it begins these anew, so often.
    What came in meanwhile is read before anybody is judged; a busy machine is not made busier by new dials.

    unknown/alive --lost, silent, no ack, told--> suspect --heard, hello, answers others--> alive
                                suspect --refused, all silent, unreachable, later life--> dead --heard--> alive
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nsmallest
from math import inf
from random import Random

from protocol.identifiers import NodeId, Peer, rank
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Dial, Disconnect, Effect, Notify, PeerCleared, PeerDied, Send
from protocol.overlay.suspicion import DeadOnes, Errands, Suspicion
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Heartbeat, IndirectAnswer, IndirectProbe, Superseded, Suspected

VOUCHED_MAX = 3
"""So many trials in a row may end with the word of others alone."""


class Detector:
    """Judges peers; see the module's rules. `acquaintances`: who may be asked to help."""

    def __init__(self, me: Peer, parameters: OverlayParameters, rng: Random, acquaintances: Callable[[], Iterable[Peer]]) -> None:
        self._me = me
        self._parameters = parameters
        self._rng = rng
        self._acquaintances = acquaintances
        self.health = 0
        """Lifeguard's local health: 0 is well; each point adds every timeout to itself once more."""
        self._lives: dict[NodeId, Peer] = {}
        """The latest life of every peer heard and not known to be dead."""
        self._heard: dict[NodeId, float] = {}
        self._anyone_at = -inf
        """When anybody was last heard."""
        self._watched: dict[NodeId, Peer] = {}
        self._excused: dict[NodeId, float] = {}
        """Of those watched: until when their silence counts for nothing: we did not listen, did not watch, or it has led to a trial."""
        self._suspects: dict[NodeId, Suspicion] = {}
        self._vouched: dict[NodeId, int] = {}
        """Trials in a row that ended with the word of others."""
        self._refuting: set[NodeId] = set()
        """Who doubts us and is being dialled."""
        self._errands = Errands(parameters.held_messages_max)
        self._unanswered: dict[NodeId, tuple[Peer, float]] = {}
        """Who lately gave no answer to a dial of ours, and when."""
        self._dead = DeadOnes(parameters, rng)
        self.deadlines: Deadlines[tuple[str, NodeId]] = Deadlines()

    # --- what others ask ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        return self.deadlines.next()

    def is_suspect(self, identifier: NodeId) -> bool:
        return identifier in self._suspects

    def is_dead(self, peer: Peer) -> bool:
        """Is this life of the peer known to be over?"""
        dead, live = self._dead.get(peer.id), self._lives.get(peer.id)
        return (dead is not None and dead.incarnation >= peer.incarnation) or (live is not None and live.incarnation > peer.incarnation)

    def recently_dead(self, now: float) -> tuple[NodeId, ...]:
        """Whom we have lately found dead, latest first: what a leaf-set probe tells."""
        return self._dead.since(now - 2 * self._parameters.hold_max_s)

    def heard_at(self, identifier: NodeId) -> float:
        """When this peer was last heard; -inf for never."""
        return self._heard.get(identifier, -inf)

    def life_of(self, identifier: NodeId) -> Peer | None:
        """The latest life of this id that was heard and is not known to be dead."""
        return self._lives.get(identifier)

    def lives(self) -> list[Peer]:
        """Everyone heard and not known to be dead."""
        return list(self._lives.values())

    # --- hearing ------------------------------------------------------------------------------------------------------

    def heard(self, peer: Peer, now: float) -> tuple[bool, list[Effect]]:
        """The peer itself was heard. False: an older life, to be ignored (it has been told, or will be when the later one is heard)."""
        identifier = peer.id
        known = self._lives.get(identifier)
        if known is not None and known.incarnation == peer.incarnation and identifier not in self._suspects:
            self._lives[identifier] = peer
            self._heard[identifier] = self._anyone_at = now
            if self._vouched:
                self._vouched.pop(identifier, None)
            if self._unanswered:
                self._unanswered.pop(identifier, None)
            return True, []
        if known is not None and peer.incarnation < known.incarnation:
            unheard = self.heard_at(identifier) < now - self._parameters.silence_max_s
            if unheard and self._vouched.pop(identifier, None) is None:  # the word of others is good for one answer
                return False, self.suspect(known, "an earlier life of it speaks", now)
            return False, [Send(peer, Superseded(known))]
        effects: list[Effect] = []
        on_trial = self._suspects.get(identifier)
        before = known or (on_trial.peer if on_trial is not None else None)
        if before is not None and peer.incarnation > before.incarnation:
            effects += self._bury(before, f"restarted as incarnation {peer.incarnation}", now, remember=False)
        if known is None and (dead := self._dead.get(identifier)) is not None:
            missed_since = self._dead.died_at(identifier) if dead.incarnation == peer.incarnation else None
            self._dead.forget(identifier)
            self.deadlines.drop(("redial", identifier))
            effects += [Notify("peer_back", {"peer": peer}), PeerCleared(peer, missed_since)]
        self._lives[identifier] = peer
        self._heard[identifier] = self._anyone_at = now
        self._vouched.pop(identifier, None)
        self._unanswered.pop(identifier, None)
        self._forget_lives()
        on_trial = self._suspects.get(identifier)
        if on_trial is not None and on_trial.peer.incarnation <= peer.incarnation:
            if now > on_trial.began + self._parameters.delay_max_s:
                self._ail(now)  # a healthy peer's answer does not take so long, unless we are late to hear it
            effects += self._clear(peer, "was heard", now)
        return True, effects

    def _forget_lives(self) -> None:
        """Bounded: those unheard for longest go first, an eighth at a time, unless they are watched or on trial."""
        if len(self._lives) <= self._parameters.remembered_lives_max:
            return
        idle = [identifier for identifier in self._lives if identifier not in self._watched and identifier not in self._suspects]
        for identifier in nsmallest(max(1, len(self._lives) // 8), idle, key=self._heard.__getitem__):
            del self._lives[identifier], self._heard[identifier]

    def watch(self, peers: Iterable[Peer], now: float) -> None:
        """From now on the silence of these, and of nobody else, is suspicious."""
        wanted = {peer.id: peer for peer in peers if not self.is_dead(peer)}
        for identifier, peer in wanted.items():
            if self._watched.get(identifier) != peer:
                self._excused[identifier] = now
        self._watched = wanted
        self._listen(now)

    def _listen(self, now: float) -> None:
        """One deadline for all who are watched: when the first of them has been silent for too long, if it is not heard before."""
        since = [max(self._heard.get(identifier, now), self._excused.get(identifier, -inf)) for identifier in self._watched]
        if since:
            self.deadlines.set(("silence", self._me.id), min(since) + self._silence_max_s)
        else:
            self.deadlines.drop(("silence", self._me.id))

    # --- suspecting ---------------------------------------------------------------------------------------------------

    def suspect(
        self, peer: Peer, reason: str, now: float, *, silent: bool = False, dialled: bool = True, hearsay: bool = False
    ) -> list[Effect]:
        """Something was missed from this peer: put it on trial, unless it is or is known to be dead.

        silent: its heartbeats have stopped, others are asked at once; dialled: False where the end of a dial is what is about to count;
        hearsay: others doubt it, which is nothing to a node that is not well and has heard it lately.
        """
        if peer.id == self._me.id or peer.id in self._suspects or self.is_dead(peer):
            return []
        if hearsay and self.health and self.heard_at(peer.id) > now - self.health * self._parameters.silence_max_s:
            return []
        self._suspects[peer.id] = Suspicion(peer, reason, now)
        self._begin_trial(peer.id, now)
        said = Notify("peer_suspected", {"peer": peer, "reason": reason})
        if not dialled:
            return [said]
        return [said, self._dial(peer), *(self._ask(self._suspects[peer.id], now) if silent else [])]

    def _dial(self, peer: Peer) -> Effect:
        return Dial(peer, self.patience)

    def _begin_trial(self, identifier: NodeId, now: float) -> None:
        self.deadlines.set(("ask", identifier), now + self._parameters.delay_max_s * self.patience)
        self.deadlines.set(("trial", identifier), now + self._parameters.trial_max_s * self.patience)

    def dial_ended(self, peer: Peer, found: Peer | None, refused: bool, reason: str, now: float) -> list[Effect]:
        """A fresh dial ended: evidence on a suspect, an errand done, or news of one remembered as dead."""
        if found is None and not refused:
            self._unanswered[peer.id] = peer, now
            if len(self._unanswered) > self._parameters.remembered_dead_max:
                del self._unanswered[next(iter(self._unanswered))]
        effects = self._errand_ends(peer, found, refused, now)
        if found is not None and found.id == peer.id:
            return effects + self._found(peer, found, now)
        self._refuting.discard(peer.id)
        if found is not None:
            refused, reason = True, f"another node ({found.id.short}) answers at {peer.address}"
        suspicion = self._suspects.get(peer.id)
        if suspicion is None and refused and self._lives.get(peer.id) == peer:
            return effects + self.suspect(peer, reason, now)  # cleared meanwhile, by an older word than this
        if suspicion is None or suspicion.peer != peer:
            return effects  # at the address of another life nothing is learned of this one
        live = self._lives.get(peer.id)
        if live is not None and live.incarnation < suspicion.peer.incarnation:
            return effects + self._clear(live, f"nobody has heard its life {suspicion.peer.incarnation}, of which others told", now)
        if refused:
            return effects + self._bury(suspicion.peer, f"{suspicion.reason}; {reason or 'refused a fresh dial'}", now, reached=True)
        suspicion.dial_failed = reason or "no answer to a fresh dial"
        return effects + (self._judge(suspicion, now) if suspicion.was_asked else self._ask(suspicion, now))

    def _found(self, peer: Peer, found: Peer, now: float) -> list[Effect]:
        """The dial was answered with a hello."""
        effects: list[Effect] = []
        if found.id in self._refuting:
            self._refuting.discard(found.id)
            effects.append(Send(found, Heartbeat()))
        on_trial = self._suspects.get(peer.id)
        welcome, more = self.heard(found, now)
        effects += more
        if not welcome and on_trial is not None and on_trial.peer == peer and self._suspects.get(peer.id) is on_trial:
            effects += self._bury(on_trial.peer, f"{on_trial.reason}; an earlier life answers at {peer.address}", now)
        return effects

    def goodbye(self, peer: Peer, now: float) -> list[Effect]:
        """The peer leaves in order."""
        return self._bury(peer, "left in order", now, remember=False, in_order=True)

    # --- indirect probes ----------------------------------------------------------------------------------------------

    def _ask(self, suspicion: Suspicion, now: float) -> list[Effect]:
        """Others shall try, and tell the suspect."""
        suspect = suspicion.peer.id
        suspicion.was_asked = True
        self.deadlines.drop(("ask", suspect))
        others = {peer.id: peer for peer in self._acquaintances() if peer.id != suspect and peer.id not in self._suspects}
        others = {identifier: peer for identifier, peer in others.items() if identifier not in suspicion.deaf} or others
        chosen = nsmallest(self._parameters.helpers, others.values(), key=lambda peer: rank(suspect, peer.id))
        suspicion.asked = {peer.id for peer in chosen}
        return [*(Send(peer, IndirectProbe(suspicion.peer)) for peer in chosen), *self._judge(suspicion, now)]

    def indirect_answer(self, helper: Peer, answer: IndirectAnswer, now: float) -> list[Effect]:
        """What a helper's dial came to."""
        suspicion = self._suspects.get(answer.suspect.id)
        if suspicion is None or helper.id not in suspicion.asked or suspicion.peer.incarnation != answer.suspect.incarnation:
            return []
        suspicion.asked.discard(helper.id)
        if answer.verdict == "answered":
            return self._vouch(suspicion, helper, now)
        suspicion.agreeing.append(f"{answer.verdict} to {helper.id.short}")
        suspicion.refused_helper |= answer.verdict == "refused"
        return self._judge(suspicion, now)

    def _vouch(self, suspicion: Suspicion, helper: Peer, now: float) -> list[Effect]:
        """The suspect answers the helper. Ours is the slow side, or the way between the two of us is cut."""
        peer = suspicion.peer
        self._vouched[peer.id] = self._vouched.get(peer.id, 0) + 1
        if self._vouched[peer.id] > VOUCHED_MAX:
            del self._vouched[peer.id]
            return self._bury(peer, f"{suspicion.reason}; it answers {helper.id.short}, but never us", now)
        if suspicion.dial_failed:
            self._ail(now)
        return self._clear(peer, f"answers {helper.id.short}", now)

    def _judge(self, suspicion: Suspicion, now: float) -> list[Effect]:
        """Rule 5: dead once our dial has failed, and nobody is left who may still get an answer."""
        if not suspicion.dial_failed or (suspicion.asked and not suspicion.refused_helper):
            return []
        found = "; ".join([suspicion.reason, suspicion.dial_failed, *suspicion.agreeing])
        return self._bury(suspicion.peer, found, now)

    def indirect_probe(self, asker: Peer, suspect: Peer, now: float) -> list[Effect]:
        """Somebody asks us to dial a suspect. That we have heard it just now is no answer: so has who asks."""
        if suspect.id == self._me.id:
            return [Send(asker, Heartbeat())] if suspect.incarnation == self._me.incarnation else []
        silent = self._unanswered.get(suspect.id)
        if silent is not None and silent[0] == suspect and silent[1] > now - self._parameters.probe_timeout_s:
            return [Send(asker, IndirectAnswer(suspect, "silent"))]
        if not self._errands.take(asker, suspect):
            return []
        self.deadlines.set(("errand", suspect.id), now + 2 * self._parameters.probe_timeout_s * self.patience)
        return [self._dial(suspect)]

    def _errand_ends(self, suspect: Peer, found: Peer | None, refused: bool, now: float) -> list[Effect]:
        askers = self._errands.done(suspect)
        if not askers:
            return []
        self.deadlines.drop(("errand", suspect.id))
        if found == suspect:
            answers: list[Effect] = [Send(asker, IndirectAnswer(suspect, "answered")) for asker in askers]
            return answers + [Send(suspect, Suspected(asker)) for asker in askers]
        verdict = IndirectAnswer(suspect, "refused" if refused or found is not None else "silent")
        effects: list[Effect] = [Send(asker, verdict) for asker in askers]
        unheard = self.heard_at(suspect.id) < now - self._parameters.probe_timeout_s  # as long as it was dialled
        if verdict.verdict == "silent" and unheard and any(peer == suspect for peer in self._acquaintances()):
            effects += self.suspect(suspect, f"{askers[0].id.short} gets no answer from it", now, dialled=False)
        return effects

    def suspected(self, by: Peer, now: float) -> list[Effect]:
        """We are told that `by` doubts us: let it hear us, on a connection of our own making."""
        if by.id == self._me.id or by.id in self._refuting or len(self._refuting) >= self._parameters.helpers**2:
            return []
        self._refuting.add(by.id)
        self.deadlines.set(("refute", by.id), now + 2 * self._parameters.probe_timeout_s * self.patience)
        return [self._dial(by)]

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def _clear(self, peer: Peer, reason: str, now: float) -> list[Effect]:
        self._end_trial(peer.id)
        if peer.id in self._watched:
            self._excused[peer.id] = now
        return [Notify("peer_cleared", {"peer": peer, "reason": reason}), PeerCleared(peer)]

    def _end_trial(self, identifier: NodeId) -> None:
        self._suspects.pop(identifier, None)
        self.deadlines.drop(("ask", identifier))
        self.deadlines.drop(("trial", identifier))

    def _bury(
        self, peer: Peer, reason: str, now: float, *, remember: bool = True, in_order: bool = False, reached: bool = False
    ) -> list[Effect]:
        """reached: its host has answered, so there is no cut that may heal."""
        live = self._lives.get(peer.id)
        if live is not None and live.incarnation > peer.incarnation:
            return []
        self._end_trial(peer.id)
        self._lives.pop(peer.id, None)
        self._vouched.pop(peer.id, None)
        silent_s = now - self._heard.pop(peer.id, now)
        self._watched.pop(peer.id, None)
        self._excused.pop(peer.id, None)
        if not self._watched:
            self.deadlines.drop(("silence", self._me.id))
        if remember:
            forgotten, wait_s = self._dead.add(peer, now, reached)
            for identifier in forgotten:
                self.deadlines.drop(("redial", identifier))
            self.deadlines.set(("redial", peer.id), now + wait_s)
        fact = Notify("peer_left" if in_order else "peer_died", {"peer": peer, "reason": reason, "silent_s": round(silent_s, 3)})
        effects: list[Effect] = [fact, PeerDied(peer, reason, in_order, silent_s, remember and not reached), Disconnect(peer)]
        for suspicion in [suspicion for suspicion in self._suspects.values() if peer.id in suspicion.asked]:
            suspicion.asked.discard(peer.id)
            effects += self._judge(suspicion, now)
        return effects

    # --- local health -------------------------------------------------------------------------------------------------

    @property
    def patience(self) -> int:
        """By what every timeout of this node is multiplied now."""
        return 1 + self.health

    @property
    def _silence_max_s(self) -> float:
        return self._parameters.silence_max_s * self.patience

    def _ail(self, now: float) -> None:
        """Evidence that it is we who are slow."""
        self.health = min(self.health + 1, self._parameters.local_health_max)
        self.deadlines.set(("health", self._me.id), now + 2 * self._parameters.silence_max_s)

    def _mend(self, now: float) -> list[Effect]:
        """A little less patience; and whoever was only spared for it is looked at."""
        self.health = max(0, self.health - 1)
        if self.health:
            self.deadlines.set(("health", self._me.id), now + 2 * self._parameters.silence_max_s)
        return self._silence_due(now)

    # --- time ---------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for kind, identifier in self.deadlines.due(now):
            match kind:
                case "silence":
                    effects += self._silence_due(now)
                case "ask" if identifier in self._suspects:
                    effects += self._ask(self._suspects[identifier], now)
                case "trial" if identifier in self._suspects:
                    effects += self._trial_ends(self._suspects[identifier], now)
                case "redial" if (dead := self._dead.get(identifier)) is not None:
                    effects.append(self._dial(dead))
                    self.deadlines.set((kind, identifier), now + self._dead.next_wait_s(identifier))
                case "errand":
                    self._errands.drop(identifier)
                case "refute":
                    self._refuting.discard(identifier)
                case "health":
                    effects += self._mend(now)
        return effects

    def _trial_ends(self, suspicion: Suspicion, now: float) -> list[Effect]:
        """Time is up, and who has given no word counts for nothing. Where nobody at all was heard, that says something about us."""
        unheard = self._anyone_at < now - self._parameters.probe_timeout_s
        if len(suspicion.asked) > len(suspicion.agreeing) and not suspicion.deaf:
            if self.health or unheard:
                self._ail(now)
            again = Suspicion(suspicion.peer, suspicion.reason, now, extensions=suspicion.extensions, deaf=frozenset(suspicion.asked))
            self._suspects[again.peer.id] = again
            self._begin_trial(again.peer.id, now)
            return [self._dial(again.peer), *self._ask(again, now)]
        if suspicion.asked:
            if unheard:
                self._ail(now)
            suspicion.agreeing.append(f"no word from {len(suspicion.asked)} helpers")
            suspicion.asked.clear()
        if not suspicion.dial_failed and suspicion.extensions < self._parameters.local_health_max:
            # Our own shell has not come to an end with one dial: it is we who cannot keep up.
            self._ail(now)
            suspicion.extensions += 1
            self.deadlines.set(("trial", suspicion.peer.id), now + self._parameters.trial_max_s)
            return []
        suspicion.dial_failed = suspicion.dial_failed or "no end of the dial"
        return self._judge(suspicion, now)

    def _silence_due(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._excused = {identifier: when for identifier, when in self._excused.items() if identifier in self._watched}
        for identifier, peer in list(self._watched.items()):
            heard = self._heard.get(identifier, now)
            if max(heard, self._excused.get(identifier, -inf)) + self._silence_max_s <= now:
                self._excused[identifier] = now
                effects += self.suspect(peer, f"silent for {now - heard:.2f} s", now, silent=True)
        self._listen(now)
        return effects

    def forgive(self, late_s: float, now: float) -> list[Effect]:
        """Rule 10: this node slept for so long."""
        self._ail(now)
        for identifier in self._watched:
            since = max(self._heard.get(identifier, now), self._excused.get(identifier, -inf))
            self._excused[identifier] = min(since + late_s, now)
        self._listen(now)
        anew: list[Effect] = []
        for identifier, suspicion in list(self._suspects.items()):
            if late_s > self._parameters.probe_timeout_s and suspicion.extensions < self._parameters.local_health_max:
                again = Suspicion(suspicion.peer, suspicion.reason, now, extensions=suspicion.extensions + 1, deaf=suspicion.deaf)
                self._suspects[identifier] = again
                self._begin_trial(identifier, now)
                anew.append(self._dial(suspicion.peer))
                continue
            for kind in ("ask", "trial"):
                if (when := self.deadlines.when((kind, identifier))) is not None:
                    self.deadlines.set((kind, identifier), max(when, now) + late_s)
        return anew

    def check_invariants(self) -> None:
        both = [i for i in self._lives.keys() & self._dead.ids() if not self._newer_than_dead(i)]
        assert not both, "a peer is both alive and dead"
        assert self._me.id not in self._suspects, "a node suspects itself"
        assert all(("trial", identifier) in self.deadlines for identifier in self._suspects), "a trial without a deadline"
        assert all(s.was_asked or ("ask", i) in self.deadlines for i, s in self._suspects.items()), "a trial that asks nobody"
        assert not self._watched or ("silence", self._me.id) in self.deadlines, "a watch without a deadline"
        assert 0 <= self.health <= self._parameters.local_health_max, "local health out of range"

    def _newer_than_dead(self, identifier: NodeId) -> bool:
        dead = self._dead.get(identifier)
        return dead is None or self._lives[identifier].incarnation > dead.incarnation
