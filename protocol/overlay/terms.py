"""Terms: which life of a tree's root may commit, so that of two managers never both do.

A manager that hung and wakes, or that is cut off, does not know that another has taken its place. It need not: it asks before each
commit. This is the part of those who are asked, the electors, and of whoever asks.

1. A term is one life of a tree's root: the incarnation of the node whose id is the treeId. Later terms win.
2. An elector promises the term of a root that asks, unless it has promised a later one; a promise is never taken back. It agrees to
   a version that this root has written, and tells the next root of it: with its term, for two roots may have written versions of one
   number. The later root goes on from the version of the latest term, or from one after it (this is Paxos, with Raft's order of logs;
   records are kept in the same order). Of two roots that have chosen one term, as standbys do whose clocks are behind, the first has it.
3. What comes from an earlier life than one that is promised, or was heard, is refused: orders for a tree, and records of its own that it
   brings to be kept. A root that speaks after its successor was promised is told so, and heard no further, though that successor has
   died: the failure detector would have it back, and it would wait for contributions that nobody brings it.
4. Sounding. A standby asks first what would be said to its term. Who hears the root says no: a root that lives is not to be
   disturbed because a standby has lost sight of it. Nothing is promised.
5. Who is asked and refuses the connection is gone, its promises with it; silence is no answer. The difference is one fresh dial. Whoever
   ends that connection, too, is asked with the next question: it may not understand ours.
6. Who roots the tree is asked by route to the treeId. Another node than the root answers only when it is the live node closest to
   the treeId: that is the word of the ring that the root is gone (Pastry, rule 3).
7. Terms come from clocks, in milliseconds. One that is further ahead than any two clocks are apart is nobody's, and refused: a promise of
   the largest number would lock out every later root. An elector that has promised in as many trees as a node may be in forgets the
   promise that was renewed longest ago, of a tree that it is not in; it is an elector of those that it is in.
8. Whoever begins without a promise may have made one in an earlier life, and forgotten it: it says so to whoever asks. When a root has gone
   on from one version that it has agreed to, and from the next one, all that was promised before its life is settled: that next version
   was put to a half that was asked after its life had begun, of which one would have told a later term, and was heard
   (fmrec_manager/ballot.py, rule 6).

An elector that has a disk answers when its promise is on it, and reads it when it starts again. Without one a promise is in memory: an
elector that dies forgets it, and so does one whose file is lost or torn. So who remembers nothing is silent until it is in the ring: by
then it has heard of the latest root like everyone near the treeId, and refuses an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from protocol.errors import RemoteProtocolError
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.overlay.effects import Dial, Effect, ElectorAnswered, KeepPromises, RootAnswered, RouteBody, Send
from protocol.overlay.promise import Promise, TreePromise
from protocol.parameters import OverlayParameters
from protocol.wire.electing import RootQuery, RootReply, TermReply, TermRequest

QUESTIONS_MAX = 64
"""Questions of ours, to electors and to the ring, that are kept; an older one is forgotten."""
REASON_MAX = 500
"""Characters of a reason that is passed on; what a peer says may be longer."""
NUMBER_MAX = 1 << 62
"""No honest term or version is larger, and one more than it still fits the wire."""
WITNESSED = 2
"""Rule 8."""
LEAP_MAX = 1 << 42
"""Milliseconds, 139 years: a clock that has never been set begins with 1970, and no two are further apart."""
LEAP_HEARD_MAX = LEAP_MAX // 2
"""Of what others tell: a term after that must be one that electors promise, whenever they were started."""

NONE = Promise()


@dataclass(slots=True)
class Question:
    """What we have asked the electors, and whose answer is awaited. repeated: of whom, on another connection (rule 5)."""

    message: TermRequest
    waiting: dict[NodeId, Peer] = field(default_factory=dict)
    repeated: set[NodeId] = field(default_factory=set)


class Terms:
    """Promises and questions of one node. `life_of` is the failure detector's word on who lives; `hears`: was it heard lately? `is_in`: is
    this node in the tree, `in_ring`: in the ring? kept: what an earlier life has promised; None where promises are in memory alone."""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        life_of: Callable[[NodeId], Peer | None],
        hears: Callable[[NodeId, float], bool],
        is_in: Callable[[TreeId], bool] = lambda tree: False,
        in_ring: Callable[[], bool] = lambda: True,
        kept: Iterable[TreePromise] | None = None,
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._life_of = life_of
        self._hears = hears
        self._is_in = is_in
        self._in_ring = in_ring
        self._keeps = kept is not None
        self._promises: dict[TreeId, Promise] = {each.tree: each.promise for each in kept or ()}
        """The one that was renewed longest ago first."""
        self._questions: dict[int, Question] = {}
        self._root_asked: dict[int, TreeId] = {}
        """Which tree's root each question to the ring was about."""

    # --- as an elector ------------------------------------------------------------------------------------------------

    def promised(self, tree: TreeId) -> int:
        """The latest term promised in this tree; 0 for none."""
        return self._promises.get(tree, NONE).term

    def successor_of(self, peer: Peer) -> Peer | None:
        """The later root that is promised, where this is one of a tree that has one (rule 3)."""
        promise = self._promises.get(peer.id, NONE)
        return promise.root if promise.term > peer.incarnation else None

    def is_of_the_past(self, owner: Peer) -> bool:
        """Is a later life of this node promised, or heard? What it brings is then refused (rule 3)."""
        live = self._life_of(owner.id)
        return self.promised(owner.id) > owner.incarnation or (live is not None and live.incarnation > owner.incarnation)

    def term_requested(self, sender: Peer, message: TermRequest, now: float) -> list[Effect]:
        """Rules 2 and 4. RemoteProtocolError where a root asks for another term than its own, or for what cannot be."""
        before = self._promises.get(message.tree, NONE)
        _check(message.term, message.version)
        if message.term > max(self._me.incarnation, before.term) + LEAP_MAX:
            raise RemoteProtocolError(f"term {message.term} of tree {message.tree.short} is of no clock: set that of {sender.address}")
        if not message.sounding and (sender.id, sender.incarnation) != (message.tree, message.term):
            raise RemoteProtocolError(f"{sender.id.short} asks for a term of tree {message.tree.short}, which it does not root")
        has_kept = self._keeps and bool(self._promises)
        if not has_kept and not self._in_ring():
            return []
        reason = self._objection(sender, message, before, now)
        after = before
        if not reason and not message.sounding:
            # A question that was asked again may be overtaken by the next one: what was agreed to is not taken back.
            agreed = before.written, before.version
            written, version = max(agreed, (message.term, message.version)) if message.version else agreed
            after = Promise(message.term, version, written, sender, self._witnessed(sender, message, before))
            self._promise(message.tree, after)
        known = before.version, before.written
        answer = Send(sender, TermReply(message.request, not reason, after.term, *known, reason, after.witnessed == WITNESSED))
        if after is before or not self._keeps:
            return [answer]
        return [KeepPromises(tuple(TreePromise(tree, promise) for tree, promise in self._promises.items()), answer)]

    def _witnessed(self, sender: Peer, message: TermRequest, before: Promise) -> int:
        """Rule 8; once it is settled it remains so."""
        if before.witnessed == WITNESSED:
            return WITNESSED
        if before.root != sender or before.written != message.term or not message.version:
            return 0
        return before.witnessed + (message.version > before.version)

    def _promise(self, tree: TreeId, promise: Promise) -> None:
        if self._promises.pop(tree, None) is None and self._is_full() and (forgotten := self._to_forget()) is not None:
            del self._promises[forgotten]
        self._promises[tree] = promise

    def _is_full(self) -> bool:
        return len(self._promises) >= self._parameters.trees_max

    def _to_forget(self) -> TreeId | None:
        """Rule 7; None where we are in all of them."""
        return next((tree for tree in self._promises if not self._is_in(tree)), None)

    def _objection(self, sender: Peer, message: TermRequest, before: Promise, now: float) -> str:
        """Why not; empty for yes."""
        if before.term > message.term or (before.term == message.term and before.root != sender):
            return f"term {before.term} is promised"
        if before is NONE and self._is_full() and self._to_forget() is None:
            return f"this node is in {len(self._promises)} trees already"
        root = self._life_of(message.tree)
        if root is None:
            return ""
        if root.incarnation > message.term or (message.sounding and root.incarnation == message.term):
            return f"a later root lives at {root.address}"
        return f"the root at {root.address} is heard" if message.sounding and self._hears(root.id, now) else ""

    # --- as one who asks ----------------------------------------------------------------------------------------------

    def ask(self, request: int, message: TermRequest, electors: tuple[Peer, ...]) -> list[Effect]:
        """Put the question to these; one about this tree that was put before is withdrawn, for it is settled, or never will be."""
        for earlier in [number for number, question in self._questions.items() if question.message.tree == message.tree]:
            del self._questions[earlier]
        self._questions[request] = Question(message, {peer.id: peer for peer in electors})
        if len(self._questions) > QUESTIONS_MAX:
            del self._questions[next(iter(self._questions))]
        return [Send(peer, message) for peer in electors]

    def replied(self, sender: Peer, reply: TermReply) -> list[Effect]:
        """RemoteProtocolError where an elector agrees, and says that it has agreed to a later term before."""
        _check(reply.promised, reply.version, reply.written)
        question = self._questions.get(reply.request)
        asked = question.waiting.get(sender.id) if question is not None else None
        if question is None or asked is None or sender.incarnation < asked.incarnation:
            return []  # nobody waits for it, or it is the last word of a life that is over
        del question.waiting[sender.id]
        if reply.granted and reply.written > question.message.term:
            raise RemoteProtocolError(f"{sender.id.short} agrees to term {question.message.term} after term {reply.written}")
        word: Literal["granted", "refused"] = "granted" if reply.granted else "refused"
        known = self._believed(reply.promised), reply.version, reply.written
        return [ElectorAnswered(reply.request, sender.id, word, *known, reply.reason[:REASON_MAX], reply.remembers)]

    def lost(self, peer: Peer) -> list[Effect]:
        """A connection broke, or none could be made: where this is an elector that we wait for, one fresh dial tells which (rule 5)."""
        asked = (each for each in self._questions.values() if peer.id not in each.repeated)
        return [Dial(peer)] if any(question.waiting.get(peer.id) == peer for question in asked) else []

    def dial_ended(self, peer: Peer, found: Peer | None, refused: bool) -> list[Effect]:
        """An elector's next life is asked in its place; where nobody listens, or somebody else, it is gone."""
        effects: list[Effect] = []
        for request, question in self._questions.items():
            if question.waiting.get(peer.id) != peer:
                continue
            if found is not None and found.id == peer.id:
                question.waiting[peer.id] = found
                question.repeated.add(peer.id)
                effects.append(Send(found, question.message))
            elif refused or found is not None:
                del question.waiting[peer.id]
                effects.append(ElectorAnswered(request, peer.id, "gone", reason="its process is gone"))
        return effects

    # --- who roots the tree -------------------------------------------------------------------------------------------

    def ask_root(self, request: int, tree: TreeId) -> list[Effect]:
        """Put the question to the ring."""
        self._root_asked.pop(request, None)
        self._root_asked[request] = tree
        if len(self._root_asked) > QUESTIONS_MAX:
            del self._root_asked[next(iter(self._root_asked))]
        return [RouteBody(tree, RootQuery(request, tree, self._me))]

    def root_query_delivered(self, query: RootQuery) -> list[Effect]:
        """We are the root, or the live node closest to the treeId (rule 6)."""
        rooted, known = self._me.id == query.tree, self._promises.get(query.tree, NONE)
        term = self._me.incarnation if rooted else known.term
        put = [question.message.version for question in self._questions.values() if question.message.tree == query.tree]
        return [Send(query.asker, RootReply(query.request, rooted, term, max([known.version, *put])))]

    def root_replied(self, sender: Peer, reply: RootReply) -> list[Effect]:
        """RemoteProtocolError where another than the root says that it is the root."""
        _check(reply.term, reply.version)
        tree = self._root_asked.get(reply.request)
        if tree is None:
            return []
        if reply.rooted != (sender.id == tree):
            raise RemoteProtocolError(f"{sender.id.short} says that it {'roots' if reply.rooted else 'does not root'} tree {tree.short}")
        del self._root_asked[reply.request]
        return [RootAnswered(reply.request, sender, reply.rooted, self._believed(reply.term), reply.version)]

    def _believed(self, term: int) -> int:
        """Rule 7: who tells of a term that is of no clock would have ours be of none."""
        return min(term, self._me.incarnation + LEAP_HEARD_MAX)

    def check_invariants(self) -> None:
        assert max(len(self._questions), len(self._root_asked)) <= QUESTIONS_MAX, "questions without end"
        assert all(promise.term > 0 for promise in self._promises.values()), "a promise of no term"


def _check(*numbers: int) -> None:
    """RemoteProtocolError where one of these is no term or version."""
    if not all(0 <= number < NUMBER_MAX for number in numbers):
        raise RemoteProtocolError(f"a term or a version that cannot be: {numbers}")
