"""Scribe (Castro et al., IEEE JSAC 20(8), 2002): trees on the ring, one for each application.

A tree is the union of the ways from its members to its treeId. The root is the manager's node, whose id is the treeId: a JOIN that is
routed to the treeId ends there with no special case.

1. JOIN (Scribe III-A). A node that wants in sends JOIN to its next hop towards the treeId; that one takes it as a child and, where it is
   not in the tree itself, joins in turn: it is a forwarder, whether a member or not.
2. Where no root lives, the node closest to the treeId keeps its children and tries again: the tree stays whole until the root returns.
   That node hangs below nobody who does not reach the root: every way leads to it.
3. Push-down (after Scribe's bottleneck remover, IV-E). A node with `fan_out_max` children hands a newcomer to the one of them with the
   fewest members below it. A redirected JOIN is a JOIN: who has left the tree meanwhile joins in turn, and leaves when the newcomer does.
   To refuse would cost the newcomer a wait and gain nothing.
4. Alive (soft state). Each heartbeat a child tells its parent its digest and who came and went below it; the parent answers with the
   path from the root, which it tells at once when it changes. So both know each other to live, and the root knows every member by name.
5. A parent whose own view of a child's members differs from the child's digest asks for the whole list, and not again while that is on
   its way. Now and then the whole list is sent unasked: names and addresses are not in the digest.
6. Repair (Scribe III-B). A dead parent: JOIN again. A dead child: it is reported up as died, the members below it as orphaned until they
   are heard through another. A child that is alive but silent in this tree has moved.
7. No cycles. A JOIN from a node on our own path is refused; a node that finds itself on its parent's path leaves it and joins again.
   Routes do not run in circles, but those who were pushed down do not hang on their route. Without the root, the way of the topmost may
   so lead to its own descendants, for ever. So whoever is asked by its own ancestor goes; and where the topmost finds no way in a few
   attempts, it tells everyone below, and those who do not hang on their route join again by it, once in silence_max_s: who is
   pushed down again hangs no better.
8. Multicast (Scribe III-A). Down the tree, from the parent and nobody else, each once and in order (multicasts.py). TreeJoin and Alive say
   where the child stands; what it lacks is sent again, at most once in a heartbeat.
9. Orders are numbered by the root's life first. Who has one of a later life than that of the root that speaks would take all of its orders
   for old ones: it says so to that root (node.py), which would wait for ever.

    out --join--> attaching --welcome--> attached --parent died, cycle--> attaching
                  attaching --redirect--> attaching, elsewhere
    root: attached for ever
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Protocol

from protocol.errors import LocalProtocolError, UnknownTree
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Effect, MembersChanged, MulticastReceived, Notify, Send, Suspect
from protocol.overlay.judgement import Judgement
from protocol.overlay.multicasts import NOTHING, Multicasts
from protocol.overlay.relatives import Relatives
from protocol.overlay.tree import Branch, Cause, Tree, check_alive
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Alive, Multicast, RoundOpen, TreeJoin, TreeLeave, TreePulse, TreeRedirect, TreeRefusal, TreeWelcome
from protocol.wire.values import MemberInfo, Progress

ATTEMPTS_MAX = 3
"""JOINs without a lasting parent after which those below are told that there is no way here."""
COMPARE_EVERY = 300
"""Heartbeats between two whole lists that nobody asked for; by chance a quarter more or fewer, so that they spread out."""


class Ring(Protocol):
    """What a tree must know of the ring below it (pastry.py)."""

    @property
    def active(self) -> bool:
        """Are we in it?"""

    def next_hop(self, key: NodeId) -> Peer | None:
        """Towards the key; None where we are closest."""

    def next_beat(self, now: float) -> float:
        """When its next heartbeat is due: trees beat with it."""


class Scribe:
    """The trees of one node. `judge` is the failure detector."""

    def __init__(self, me: Peer, parameters: OverlayParameters, rng: Random, ring: Ring, judge: Judgement) -> None:
        self._me = me
        self._parameters = parameters
        self._rng = rng
        self._ring = ring
        self._judge = judge
        self.trees: dict[TreeId, Tree] = {}
        self._relatives = Relatives()
        self.deadlines: Deadlines[tuple[str, TreeId]] = Deadlines()

    def next_deadline(self) -> float | None:
        return self.deadlines.next()

    @property
    def revision(self) -> int:
        """Grows whenever `relatives()` changes."""
        return self._relatives.revision

    def relatives(self) -> tuple[Peer, ...]:
        """Parents and children in all trees: those whose silence matters."""
        return self._relatives.peers()

    def successor_of(self, peer: Peer) -> Peer | None:
        """Rule 9: the later root of this peer's tree whose order has come here; None where it is no root, or the latest."""
        tree = self.trees.get(peer.id)
        return tree.multicasts.root_after(peer) if tree is not None else None

    # --- what the application wants -----------------------------------------------------------------------------------

    def create(self, identifier: TreeId, now: float) -> list[Effect]:
        """Root the tree here. LocalProtocolError where this node's id is not the treeId: no JOIN would ever come."""
        if identifier != self._me.id:
            raise LocalProtocolError(f"tree {identifier.short} cannot be rooted at {self._me.id.short}: a root's id is the treeId")
        tree = self._tree(identifier, now)
        if tree.is_root:
            return []
        if tree.order[0] >= self._me.incarnation:
            tree.multicasts = Multicasts(self._parameters.multicasts_kept_max)  # forged: we have sent none in this life
        tree.is_root = True
        effects: list[Effect] = [Send(tree.parent, TreeLeave(identifier))] if tree.parent is not None else []
        effects += self._hang(tree, None, ())
        self.deadlines.drop(("attach", identifier))
        tree.list_anew()
        return effects + self._tell_up(tree)

    def join(self, identifier: TreeId, member: MemberInfo, now: float) -> list[Effect]:
        """Become a member, and attach."""
        tree = self._tree(identifier, now)
        last = tree.multicasts.last if tree.member is None else None
        tree.add_self(member)
        effects = self._attach(tree, now) if tree.parent is None and not tree.is_root else self._tell_up(tree)
        if last is not None and not tree.is_root:
            # As a forwarder it has passed on the order that it now needs itself; nobody will send that again.
            effects.append(MulticastReceived(tree.id, tree.parent or last.body.holder, last.body, last.order))
        return effects

    def leave(self, identifier: TreeId) -> list[Effect]:
        """Stop being a member; prune where nobody is below (Scribe III-A)."""
        tree = self._known(identifier)
        if tree.member is None:
            return []
        tree.remove_self("left", "left the tree in order")
        return self._prune(tree) or self._tell_up(tree)

    def report(self, identifier: TreeId, progress: Progress) -> list[Effect]:
        self._known(identifier).progress = progress
        return []

    def multicast(self, identifier: TreeId, body: RoundOpen) -> list[Effect]:
        """From the root down."""
        tree = self._known(identifier)
        if not tree.is_root:
            raise UnknownTree(f"tree {identifier.short} is not rooted here: only its root sends multicasts")
        message = tree.multicasts.make(identifier, self._me.incarnation, body)
        return [Send(peer, found) for peer, found in tree.pass_on(message, old=False)]

    def _known(self, identifier: TreeId) -> Tree:
        tree = self.trees.get(identifier)
        if tree is None:
            raise UnknownTree(f"tree {identifier.short} was neither joined nor created here")
        return tree

    def _tree(self, identifier: TreeId, now: float) -> Tree:
        tree = self.trees.get(identifier)
        if tree is None:
            tree = self.trees[identifier] = Tree(identifier, self._me, self._parameters.multicasts_kept_max)
            tree.beats = self._beats()
            self._relatives.loose[identifier] = tree
            self.deadlines.set(("alive", identifier), self._ring.next_beat(now))
        return tree

    def _beats(self) -> int:
        return round(COMPARE_EVERY * self._rng.uniform(0.75, 1.25))

    # --- attaching ----------------------------------------------------------------------------------------------------

    def ring_changed(self, now: float) -> list[Effect]:
        """We are in the ring, or it moved: whoever waits for a root may now find it."""
        waiting = [tree for tree in self._relatives.loose.values() if tree.joining is None]
        return [effect for tree in waiting for effect in self._attach(tree, now)]

    def _attach(self, tree: Tree, now: float) -> list[Effect]:
        """JOIN towards the treeId, again after a while until a parent says welcome."""
        if tree.is_root or tree.parent is not None:
            return []
        self._relatives.ask(tree, None)
        wait_s = self._answer_max_s()
        self.deadlines.set(("attach", tree.id), now + wait_s)
        if not self._ring.active:
            return []
        hop = self._ring.next_hop(tree.id)
        if hop is None:
            tree.attempts = 0
            self.deadlines.set(("attach", tree.id), now + self._parameters.retry_min_s * self._rng.uniform(0.75, 1.25))
            return self._tell_down(tree, (), lost=False)
        tree.attempts += 1
        tree.redirects = 0
        self._relatives.ask(tree, hop)
        return [Send(hop, TreeJoin(tree.id, tree.seen())), *self._tell_down(tree, (), lost=tree.attempts > ATTEMPTS_MAX)]

    def _answer_max_s(self) -> float:
        """How long the answer to a JOIN may take."""
        return self._parameters.delay_max_s * self._rng.uniform(1.0, 1.5) * self._judge.patience

    def join_received(self, child: Peer, message: TreeJoin, now: float) -> list[Effect]:
        if not self._ring.active:
            return [Send(child, TreeRefusal(message.tree, "not active yet"))]
        if message.tree not in self.trees and len(self.trees) >= self._parameters.trees_max:
            return [Send(child, TreeRefusal(message.tree, f"{len(self.trees)} trees are held here already"))]
        tree = self._tree(message.tree, now)
        if child.id in tree.path or (tree.parent is not None and tree.parent.id == child.id):
            return self._refuse_cycle(tree, child, now)
        branch = tree.children.get(child.id)
        effects: list[Effect] = []
        if branch is None:
            if len(tree.children) >= self._parameters.fan_out_max:
                return [Send(child, self._push_down(tree, now))]
            branch = tree.children[child.id] = Branch(child, heard=now)
        branch.peer, branch.heard = child, now
        self._relatives.bind(tree, child)
        effects.append(Send(child, TreeWelcome(tree.id, tree.pulse.path)))
        tree.welcome(branch, message.seen)
        effects += self._serve(tree, branch, now)
        if tree.parent is None and not tree.is_root and ("attach", tree.id) not in self.deadlines:
            effects += self._attach(tree, now)
        return effects

    def _refuse_cycle(self, tree: Tree, child: Peer, now: float) -> list[Effect]:
        """Who asks has no parent, and we hang below it. Where we knew that the root is lost, we free its way."""
        refusal: list[Effect] = [Send(child, TreeRefusal(tree.id, "a cycle: I am below you"))]
        return refusal if tree.reaches_root else refusal + self._go(tree, "whoever is above us looks for a way through us", now)

    def _push_down(self, tree: Tree, now: float) -> TreeRedirect | TreeRefusal:
        """Whom a newcomer shall join through. Nobody who may be dead: the newcomer would wait in vain."""
        since = now - self._parameters.silence_max_s
        fit = [branch for branch in tree.children.values() if branch.heard >= since and not self._judge.is_suspect(branch.peer.id)]
        if not fit:
            return TreeRefusal(tree.id, "no room here, and of no child it is certain that it lives")
        chosen = min(fit, key=lambda branch: (branch.digest.members + branch.redirected, branch.peer.id))
        chosen.redirected += 1
        return TreeRedirect(tree.id, chosen.peer)

    def redirect_received(self, sender: Peer, message: TreeRedirect, now: float) -> list[Effect]:
        """Whom we asked has no room: ask its child. Not us, nor who hangs below us; and not for ever."""
        tree = self.trees.get(message.tree)
        if tree is None or tree.joining is None or tree.joining.id != sender.id:
            return []
        child = message.child
        tree.redirects += 1
        if child.id in (self._me.id, sender.id) or child.id in tree.children or tree.redirects > self._parameters.path_max:
            return self._refused(tree, sender, f"redirected in a circle, to {child.id.short}", now)
        self._relatives.ask(tree, child)
        self.deadlines.set(("attach", tree.id), now + self._answer_max_s())
        return [Send(child, TreeJoin(tree.id, tree.seen()))]

    def welcome_received(self, sender: Peer, message: TreeWelcome, now: float) -> list[Effect]:
        tree = self.trees.get(message.tree)
        if tree is None or tree.is_root or (tree.parent is not None and tree.parent.id != sender.id):
            return [Send(sender, TreeLeave(message.tree))]
        if self._bad_path(message.path):
            return [Send(sender, TreeLeave(message.tree)), *self._detach(tree, "the welcome closes a cycle", now)]
        if sender.id in tree.children:
            return [Send(sender, TreeLeave(message.tree)), *self._detach(tree, "the welcome comes from a child", now)]
        effects: list[Effect] = [Notify("tree_attached", {"tree": tree.id, "parent": sender, "depth": len(message.path)})]
        effects += self._hang(tree, sender, message.path)
        tree.parent_heard = tree.told_all_at = now
        tree.tell_all = True
        self.deadlines.drop(("attach", tree.id))
        return effects + self._tell_up(tree)

    def refusal_received(self, sender: Peer, message: TreeRefusal, now: float) -> list[Effect]:
        """No to our JOIN; or our parent, which restarted, does not know us any more."""
        tree = self.trees.get(message.tree)
        if tree is None:
            return []
        if tree.parent is not None and tree.parent.id == sender.id:
            return self._detach(tree, f"the parent says: {message.reason}", now) + self._attach(tree, now)
        if tree.joining is None or tree.joining.id != sender.id:
            return []
        return self._refused(tree, sender, message.reason, now)

    def _refused(self, tree: Tree, by: Peer, reason: str, now: float) -> list[Effect]:
        """Not there: by the next hop again, after a moment of chance."""
        self._relatives.ask(tree, None)
        self.deadlines.set(("attach", tree.id), now + self._parameters.retry_min_s * self._rng.uniform(1.0, 2.0))
        return [Notify("tree_refused", {"tree": tree.id, "by": by, "reason": reason})]

    def _bad_path(self, path: tuple[NodeId, ...]) -> bool:
        return self._me.id in path or len(path) > self._parameters.path_max

    def _detach(self, tree: Tree, reason: str, now: float) -> list[Effect]:
        self.deadlines.set(("attach", tree.id), now + self._parameters.retry_min_s * self._rng.uniform(1.0, 2.0))
        return [Notify("tree_detached", {"tree": tree.id, "reason": reason}), *self._hang(tree, None, ())]

    def _go(self, tree: Tree, reason: str, now: float) -> list[Effect]:
        """Leave our parent for the way that Pastry knows."""
        tree.went_at = now
        leave: list[Effect] = [Send(tree.parent, TreeLeave(tree.id))] if tree.parent is not None else []
        return leave + self._detach(tree, reason, now) + self._attach(tree, now)

    def _hang(self, tree: Tree, parent: Peer | None, path: tuple[NodeId, ...]) -> list[Effect]:
        """Below this parent from now on, or below none; those below us are told of the new path."""
        self._relatives.hang(tree, parent)
        return self._tell_down(tree, path, lost=False)

    def leave_received(self, child: Peer, message: TreeLeave) -> list[Effect]:
        tree = self.trees.get(message.tree)
        if tree is None or child.id not in tree.children:
            return []
        self._drop(tree, child.id, "moved", "left this parent")
        return self._prune(tree) or self._tell_up(tree)

    def _drop(self, tree: Tree, child: NodeId, cause: Cause, reason: str, silent_ms: int = 0) -> None:
        tree.remove_branch(child, cause, reason, silent_ms)
        self._relatives.release(tree, child)

    def _prune(self, tree: Tree) -> list[Effect]:
        """A forwarder without children and membership leaves."""
        if tree.is_root or tree.member is not None or tree.children:
            return []
        parent = tree.parent
        self._hang(tree, None, ())
        del self.trees[tree.id], self._relatives.loose[tree.id]
        for kind in ("alive", "attach"):
            self.deadlines.drop((kind, tree.id))
        return [Send(parent, TreeLeave(tree.id))] if parent is not None else []

    # --- soft state ---------------------------------------------------------------------------------------------------

    def _tell_up(self, tree: Tree) -> list[Effect]:
        """Tell the parent, or the application where we are the root, what has changed."""
        if tree.is_root:
            joined, departed = tree.take_changes()
            return [MembersChanged(tree.id, joined, departed)] if joined or departed else []
        if tree.parent is None:
            return []
        return [Send(tree.parent, alive) for alive in tree.reports()]

    def _tell_down(self, tree: Tree, path: tuple[NodeId, ...], *, lost: bool) -> list[Effect]:
        """Take our place, and where that is news, tell those below at once: what they know of cycles is as old as their path."""
        if not tree.place(path, lost):
            return []
        return [Send(branch.peer, tree.pulse) for branch in tree.children.values()]

    def alive_received(self, child: Peer, message: Alive, now: float) -> list[Effect]:
        tree = self.trees.get(message.tree)
        branch = tree.children.get(child.id) if tree is not None else None
        if tree is None or branch is None:
            # We forgot it (or restarted): it is to join again.
            return [Send(child, TreeRefusal(message.tree, "you are not my child"))]
        check_alive(branch, message)
        branch.heard = now
        if branch.peer is not child:
            branch.peer = child
            self._relatives.bind(tree, child)
        before = tree.revision
        tree.update_branch(branch, message)
        effects: list[Effect] = []
        if not message.more:
            effects.append(Send(child, tree.pulse if self._content(branch, now) else replace(tree.pulse, resync=True)))
        if tree.lacks(branch, message.seen):
            if now >= branch.served_at + self._parameters.heartbeat_interval_s:
                branch.seen = max(message.seen, NOTHING)
                effects += self._serve(tree, branch, now)
        elif message.seen > branch.seen:
            branch.seen = message.seen
        if tree.revision != before:
            effects += self._tell_up(tree)
        return effects

    def _content(self, branch: Branch, now: float) -> bool:
        """Nothing to ask the child for: its digest is that of our view, or its whole list is on its way."""
        if branch.agrees():
            branch.ask_again_at = now
            return True
        if now < branch.ask_again_at:
            return True
        branch.ask_again_at = now + self._parameters.silence_max_s
        return False

    def pulse_received(self, sender: Peer, message: TreePulse, now: float) -> list[Effect]:
        tree = self.trees.get(message.tree)
        if tree is None or tree.parent is None or tree.parent.id != sender.id:
            return [Send(sender, TreeLeave(message.tree))]
        if self._bad_path(message.path):
            return [Send(sender, TreeLeave(message.tree)), *self._detach(tree, "the path from the root closes a cycle", now)]
        tree.parent_heard = now
        if message.path[:1] != (tree.id,) and self._ring.active:
            hop = self._ring.next_hop(tree.id)
            settled = now < tree.went_at + self._parameters.silence_max_s  # that way has just led here: we were pushed down to it
            if hop is None or (message.lost and hop.id != sender.id and not settled):
                return self._go(tree, "the way to the root does not lead through this parent", now)
        effects = self._tell_down(tree, message.path, lost=message.lost)
        if message.resync:
            tree.tell_all = True
            if now >= tree.told_all_at + self._parameters.heartbeat_interval_s:
                tree.told_all_at = now
                effects += self._tell_up(tree)
        return effects

    # --- multicasts ---------------------------------------------------------------------------------------------------

    def multicast_received(self, sender: Peer, message: Multicast, now: float) -> list[Effect]:
        tree = self.trees.get(message.tree)
        if tree is None or tree.parent is None or tree.parent.id != sender.id:
            return [Send(sender, TreeLeave(message.tree))]
        tree.parent_heard = now  # Scribe III-B: it stands for a heartbeat
        kind = tree.multicasts.take(message)
        if kind == "early":
            return self._tell_place(tree)
        effects: list[Effect] = [Send(peer, found) for peer, found in tree.pass_on(message, old=kind == "old")]
        if tree.member is not None and kind != "old":
            effects.append(MulticastReceived(tree.id, sender, message.body, message.order, kind == "gap"))
        return effects

    def _serve(self, tree: Tree, branch: Branch, now: float) -> list[Effect]:
        """Send again what the child lacks, once in a heartbeat; where we do not keep that, our parent may."""
        if not tree.lacks(branch, branch.seen) or now < branch.served_at + self._parameters.heartbeat_interval_s:
            return []
        branch.served_at = now
        found = tree.serve(branch)
        return [Send(peer, message) for peer, message in found] if found else self._tell_place(tree)

    def _tell_place(self, tree: Tree) -> list[Effect]:
        """Tell the parent what we, or a child, lack: at once, but once in a heartbeat."""
        if tree.asked:
            return []
        tree.asked = True
        return self._tell_up(tree)

    # --- deaths and time ----------------------------------------------------------------------------------------------

    def died(self, peer: Peer, reason: str, in_order: bool, silent_s: float, now: float) -> list[Effect]:
        """A verified death, or a leave in order."""
        effects: list[Effect] = []
        for identifier in self._relatives.trees_of(peer.id):
            tree = self.trees[identifier]
            if tree.parent is not None and tree.parent.id == peer.id and tree.parent.incarnation <= peer.incarnation:
                effects += self._detach(tree, f"the parent died: {reason}", now) + self._attach(tree, now)
            elif tree.joining is not None and tree.joining.id == peer.id:
                effects += self._attach(tree, now)
            branch = tree.children.get(peer.id)
            if branch is not None and branch.peer.incarnation <= peer.incarnation:
                self._drop(tree, peer.id, "left" if in_order else "died", reason, silent_ms=round(1000 * silent_s))
                effects += self._prune(tree) or self._tell_up(tree)
        return effects

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for kind, identifier in self.deadlines.due(now):
            tree = self.trees.get(identifier)
            if tree is None:
                continue  # pruned in this same moment
            if kind == "alive":
                effects += self._beat(tree, now)
                continue
            if tree.joining is not None:
                effects.append(Suspect(tree.joining, "no answer to the JOIN of a tree"))
            effects += self._attach(tree, now)
        return effects

    def _beat(self, tree: Tree, now: float) -> list[Effect]:
        """One heartbeat of one tree."""
        self.deadlines.set(("alive", tree.id), now + self._parameters.heartbeat_interval_s)
        effects = self._expire(tree, now)
        if tree.id not in self.trees:
            return effects
        tree.asked = False
        if tree.parent is not None:
            tree.attempts = 0
        tree.beats -= 1
        if tree.beats <= 0:
            tree.beats, tree.tell_all = self._beats(), True
        if tree.tell_all:
            tree.told_all_at = now
        return effects + self._tell_up(tree)

    def _expire(self, tree: Tree, now: float) -> list[Effect]:
        """Alive elsewhere but silent here for twice what makes a suspect: it is no longer our child, or our parent."""
        limit = now - (2 * self._parameters.silence_max_s + self._parameters.probe_timeout_s) * self._judge.patience
        effects: list[Effect] = []
        for branch in [branch for branch in tree.children.values() if branch.heard < limit]:
            self._drop(tree, branch.peer.id, "orphaned", "alive, but silent in this tree")
        if tree.parent is not None and tree.parent_heard < limit:
            effects += [Send(tree.parent, TreeLeave(tree.id)), *self._detach(tree, "the parent is silent in this tree", now)]
        return effects + self._prune(tree)

    def forgive(self, late_s: float, now: float) -> None:
        """This node slept for so long, which does not count as silence of others."""
        for tree in self.trees.values():
            tree.parent_heard = min(tree.parent_heard + late_s, now)
            for branch in tree.children.values():
                branch.heard = min(branch.heard + late_s, now)

    def check_invariants(self) -> None:
        for tree in self.trees.values():
            tree.check_invariants()
            assert not (tree.is_root and tree.parent), "a root has a parent"
            assert tree.is_root or tree.parent or ("attach", tree.id) in self.deadlines, "detached, and nothing will happen"
            assert ("alive", tree.id) in self.deadlines, "a tree without a heartbeat"
            assert len(tree.children) <= self._parameters.fan_out_max, "more children than there is room for"
        self._relatives.check_invariants(self.trees.values())
