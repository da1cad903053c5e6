"""A ballot: the electors of a tree are asked whether its root's term may go on, and their answers are counted.

1. The electors are the members on record, those nearest to the treeId, `most` of them: whoever reads the record knows them. Each
   version is put to those of the version before it, as a change of members must be agreed on by those that were; the first of all
   to whoever has joined. A root that starts from a version cannot know whether it was committed: it asks both those that it was put to,
   who may be asked for another in its place, and those that it names, who may have agreed to the next; and so does the next root,
   until a version is committed. Each of these groups must carry it (Raft's joint consensus).
2. It is carried when more than half of those who have a say grant it. Any two such halves have one in common, and that one has
   promised the later term, or tells of the newer version: so of two roots only one commits (protocol/overlay/terms.py).
3. Who is gone (its host refuses) has no say: it keeps no promise. Who is silent has one, and withholds it: it may be on the other side
   of a cut, where another root asks it. Who has agreed and is said to have died or left is asked again: a grant of a life that is over does
   not count where another life is heard, or its host refuses.
4. It is lost when so many have promised a later term that no half can be had any more.
5. Nobody on record, or all of them gone: there is nobody who could have promised anything. It is carried.
6. An elector without a disk that was killed comes back forgetful: it grants, whatever an earlier life of it has promised, to a root that
   has died since perhaps. It says so until two versions, one after the other, were committed that it has agreed to (rule 8 of
   protocol/overlay/terms.py). Until then its voice counts only where nobody refuses, for one that remembers a later term is the sign that
   there was such a root, and where nobody is silent who might; a silent one is asked FORGETFUL_ASKS times. Nobody remembers anything at the
   beginning: all are heard then. A sounding binds nobody, and needs no memory.

Rules 3 and 6 buy that a run goes on though most of its agents were killed. The price: an elector that was killed, comes back where this
root does not reach it, and there helps another root to a half. It takes a cut that begins after the kill, and a standby on its other
side; or a cut that keeps away all who remember a later root, for as long as they are asked, after so many of its electors have died. And
a ballot waits where one refuses, so many have forgotten that all must be heard, and one hangs: until that one wakes, or is killed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from protocol.identifiers import NodeId, Peer, TreeId, rank
from protocol.overlay.effects import ElectorAnswered
from protocol.wire.values import MemberInfo

Verdict = Literal["lost", "wait", "carried"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""The first that any group gives is that of all."""
Groups = tuple[tuple[NodeId, ...], ...]
FORGETFUL_ASKS = 8
"""Rule 6: seven waits for an answer, 3.5 s by the preset loopback, 5.6 by lan, 42 by wan: longer than a verdict takes."""


def electors_of(members: Iterable[MemberInfo], tree: TreeId, most: int) -> tuple[Peer, ...]:
    """Rule 1: the nearest to the treeId, `most` at most."""
    nearest = sorted((member.peer for member in members), key=lambda peer: rank(tree, peer.id))
    return tuple(nearest[:most])


def groups_of(*groups: Iterable[NodeId]) -> Groups:
    """Each group once, none that is empty."""
    return tuple(dict.fromkeys(found for group in groups if (found := tuple(group))))


@dataclass(slots=True)
class Ballot:
    """One question, about this version: `electors` by id, with where they were last known to live; groups: see rule 1, one of all where
    none are given. Who is in a group and not among the electors has left. binding False: a sounding. asks: how often they were asked."""

    version: int
    electors: dict[NodeId, Peer]
    groups: Groups = ()
    binding: bool = True
    asks: int = 0
    forgetful: set[NodeId] = field(default_factory=set)
    granted: set[NodeId] = field(default_factory=set)
    doubted: set[NodeId] = field(default_factory=set)
    """Who has granted, and is said to have died or left since."""
    gone: set[NodeId] = field(default_factory=set)
    refused: dict[NodeId, str] = field(default_factory=dict)
    term: int = 0
    """The latest that any of them has promised."""
    newest: tuple[int, int] = (0, 0)
    """The latest (term, version) that any who granted has agreed to before: it may be committed."""

    def heard(self, answer: ElectorAnswered) -> None:
        """One elector's word; its last one counts."""
        elector = answer.elector
        if elector not in self.electors:
            return
        self.granted.discard(elector)
        self.doubted.discard(elector)
        self.gone.discard(elector)
        self.refused.pop(elector, None)
        self.term = max(self.term, answer.promised)
        if answer.answer == "gone":
            self.gone.add(elector)
        elif answer.answer == "refused":
            self.refused[elector] = answer.reason
        else:
            self.granted.add(elector)
            if self.binding and not answer.remembers:
                self.forgetful.add(elector)
            self.newest = max(self.newest, (answer.written, answer.version))

    def departed(self, elector: NodeId) -> None:
        """It is said to have died, or has left. It may hang, and keep its promise: what it answers will tell."""
        if elector in self.granted:
            self.doubted.add(elector)

    def lives(self, peer: Peer) -> None:
        """An elector's next life is heard, elsewhere perhaps: it is to be asked there."""
        if peer.id in self.electors and peer.incarnation > self.electors[peer.id].incarnation:
            self.electors[peer.id] = peer
            self.granted.discard(peer.id)
            self.doubted.discard(peer.id)
            self.gone.discard(peer.id)

    def silent(self) -> tuple[Peer, ...]:
        """Who has not granted yet and may still, or must be heard once more: whom to ask again."""
        return tuple(peer for elector, peer in self.electors.items() if elector not in self.granted or elector in self.doubted)

    def judge(self) -> tuple[Verdict, str]:
        """(verdict, reason); rules 2 to 6 for each group."""
        verdicts = [self._judge(group) for group in self.groups or (tuple(self.electors),)]
        return min(verdicts, key=lambda given: VERDICTS.index(given[0]))

    def _judge(self, group: tuple[NodeId, ...]) -> tuple[Verdict, str]:
        """As judge(), for the electors of one group."""
        electors = [elector for elector in group if elector in self.electors]
        voices = [elector for elector in electors if elector not in self.gone]
        if not voices:
            return "carried", "no elector lives" if electors else "there are no electors"
        needed = len(voices) // 2 + 1
        granted = sum(elector in self.granted for elector in voices)
        forgetful = sum(elector in self.granted and elector in self.forgetful for elector in voices)
        refused = [said for elector in voices if (said := self.refused.get(elector)) is not None]
        all_heard = granted + len(refused) == len(voices) or self.asks >= FORGETFUL_ASKS
        if granted - forgetful >= needed or (granted >= needed and all_heard and not refused):
            return "carried", f"{granted} of {len(voices)} electors agree"
        if refused and len(voices) - len(refused) - forgetful < needed:
            others = f", and {forgetful} remember nothing" if forgetful else ""
            return "lost", f"{len(refused)} of {len(voices)} electors refuse{others}: {refused[0]}"
        unheard = [elector.short for elector in voices if elector not in self.granted]
        memory = f", {forgetful} of them remember nothing" if forgetful else ""
        return "wait", f"{granted} of {len(voices)} electors agree{memory}, {needed} must; not yet: {', '.join(unheard)}"
