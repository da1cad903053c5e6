"""Scribe (Castro et al., IEEE JSAC 20(8), 2002): trees on the ring, one for each application.

A tree is the union of the ways from its members to its treeId. The root is the manager's node, whose id is the treeId: a JOIN that is
routed to the treeId ends there with no special case.

1. JOIN (Scribe 3.2). A node that wants in sends JOIN to its next hop towards the treeId; that one takes it as a child and, where it is not
   in the tree itself, joins in turn: it is a forwarder, whether a member or not.
2. Where no root lives, the node closest to the treeId keeps its children and tries again: the tree stays whole until the root returns.
3. Alive (soft state). Each heartbeat a child tells its parent its digest and who came and went below it; the parent answers with the
   path from the root. So both know each other to live, and the root knows every member by name.
4. A parent whose own view of a child's members differs from the child's digest asks for the whole list.
5. Repair (Scribe 3.3). A dead parent: JOIN again. A dead child: it is reported up as died, the members below it as orphaned until they
   are heard through another. A child that is alive but silent in this tree has moved.
6. No cycles. A JOIN from a node on our own path is refused; a node that finds itself on its parent's path leaves it and joins again.
7. Multicast (Scribe 3.4). Down the tree, from the parent and nobody else, each once: only what is newer than the last seen is
   passed on. A new child is given the last one.

    out --join--> attaching --welcome--> attached --parent died, cycle--> attaching
    root: attached for ever
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol.errors import LocalProtocolError, UnknownTree
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Effect, MembersChanged, MulticastReceived, Notify, Send
from protocol.overlay.tree import Branch, Tree, check_alive
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Alive, Multicast, RoundOpen, TreeJoin, TreeLeave, TreePulse, TreeRefusal, TreeWelcome
from protocol.wire.values import MemberInfo, Progress


class Scribe:
    """The trees of one node. `next_hop` is Pastry's word: the next hop towards a key, None where we are closest; `ready`: we are active."""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        rng: Random,
        next_hop: Callable[[NodeId], Peer | None],
        ready: Callable[[], bool],
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._rng = rng
        self._next_hop = next_hop
        self._ready = ready
        self.trees: dict[TreeId, Tree] = {}
        self._deadlines: Deadlines[tuple[str, TreeId]] = Deadlines()

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    @property
    def revision(self) -> int:
        return hash(tuple(self.relatives()))

    def relatives(self) -> list[Peer]:
        """Parents and children in all trees: those whose silence matters."""
        found: dict[NodeId, Peer] = {}
        for tree in self.trees.values():
            for peer in (*((tree.parent,) if tree.parent else ()), *(branch.peer for branch in tree.children.values())):
                found[peer.id] = peer
        return list(found.values())

    # --- what the application wants -----------------------------------------------------------------------------------

    def create(self, identifier: TreeId, now: float) -> list[Effect]:
        """Root the tree here. LocalProtocolError where this node's id is not the treeId: no JOIN would ever come."""
        if identifier != self._me.id:
            raise LocalProtocolError(f"tree {identifier.short} cannot be rooted at {self._me.id.short}: a root's id is the treeId")
        tree = self._tree(identifier, now)
        parent, tree.parent, tree.joining, tree.path = tree.parent, None, None, ()
        tree.is_root = True
        return [Send(parent, TreeLeave(identifier))] if parent is not None else []

    def join(self, identifier: TreeId, member: MemberInfo, now: float) -> list[Effect]:
        """Become a member, and attach."""
        tree = self._tree(identifier, now)
        tree.add_self(member)
        return self._attach(tree, now) if tree.parent is None else self._tell_up(tree)

    def leave(self, identifier: TreeId) -> list[Effect]:
        """Stop being a member; prune where nobody is below (Scribe 3.2)."""
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
        tree.last = Multicast(identifier, (self._me.incarnation, tree.order[1] + 1), body)
        return [Send(branch.peer, tree.last) for branch in tree.children.values()]

    def _known(self, identifier: TreeId) -> Tree:
        tree = self.trees.get(identifier)
        if tree is None:
            raise UnknownTree(f"tree {identifier.short} was neither joined nor created here")
        return tree

    def _tree(self, identifier: TreeId, now: float) -> Tree:
        tree = self.trees.get(identifier)
        if tree is None:
            tree = self.trees[identifier] = Tree(identifier, self._me)
            self._deadlines.set(("alive", identifier), now + self._parameters.heartbeat_interval_s)
        return tree

    # --- attaching ----------------------------------------------------------------------------------------------------

    def activated(self, now: float) -> list[Effect]:
        """We are in the ring: attach what waits."""
        effects: list[Effect] = []
        for tree in self.trees.values():
            effects += self._attach(tree, now)
        return effects

    def _attach(self, tree: Tree, now: float) -> list[Effect]:
        """JOIN towards the treeId, again after a while until a parent says welcome."""
        if tree.is_root or tree.parent is not None:
            return []
        wait_s = self._parameters.join_timeout_s * self._rng.uniform(0.75, 1.25)
        self._deadlines.set(("attach", tree.id), now + wait_s)
        if not self._ready():
            return []
        hop = self._next_hop(tree.id)
        if hop is None:
            self._deadlines.set(("attach", tree.id), now + self._parameters.retry_min_s * self._rng.uniform(0.75, 1.25))
            return []
        tree.joining = hop
        return [Send(hop, TreeJoin(tree.id, tree.order))]

    def ring_changed(self, now: float) -> list[Effect]:
        """The ring moved: whoever waits for a root may now find it; and the closest node no longer waits under a stranger."""
        effects: list[Effect] = []
        for tree in self.trees.values():
            if tree.parent is None and tree.joining is None:
                effects += self._attach(tree, now)
        return effects

    def join_received(self, child: Peer, message: TreeJoin, now: float) -> list[Effect]:
        if not self._ready():
            return [Send(child, TreeRefusal(message.tree, "not active yet"))]
        if message.tree not in self.trees and len(self.trees) >= self._parameters.trees_max:
            return [Send(child, TreeRefusal(message.tree, f"{len(self.trees)} trees are held here already"))]
        tree = self._tree(message.tree, now)
        if child.id in tree.path or (tree.parent is not None and tree.parent.id == child.id):
            return [Send(child, TreeRefusal(message.tree, "a cycle: I am below you"))]
        effects: list[Effect] = []
        if (known := tree.children.get(child.id)) is None:
            tree.children[child.id] = Branch(child, heard=now)
        else:
            known.peer, known.heard = child, now
        effects.append(Send(child, TreeWelcome(tree.id, (*tree.path, self._me.id))))
        if tree.last is not None and tree.last.order > message.seen:
            effects.append(Send(child, tree.last))
        if tree.parent is None and tree.joining is None:
            effects += self._attach(tree, now)
        return effects

    def welcome_received(self, sender: Peer, message: TreeWelcome, now: float) -> list[Effect]:
        tree = self.trees.get(message.tree)
        if tree is None or tree.is_root or (tree.parent is not None and tree.parent.id != sender.id):
            return [Send(sender, TreeLeave(message.tree))]
        if self._bad_path(message.path):
            return [Send(sender, TreeLeave(message.tree)), *self._detach(tree, "the welcome closes a cycle", now)]
        if sender.id in tree.children:
            return [Send(sender, TreeLeave(message.tree)), *self._detach(tree, "the welcome comes from a child", now)]
        tree.parent, tree.joining, tree.path = sender, None, message.path
        tree.parent_heard = now
        tree.tell_all = True
        self._deadlines.drop(("attach", tree.id))
        return [Notify("tree_attached", {"tree": tree.id, "parent": sender, "depth": len(message.path)}), *self._tell_up(tree)]

    def refusal_received(self, sender: Peer, message: TreeRefusal, now: float) -> list[Effect]:
        """No to our JOIN; or our parent, which restarted, does not know us any more."""
        tree = self.trees.get(message.tree)
        if tree is None:
            return []
        if tree.parent is not None and tree.parent.id == sender.id:
            return self._detach(tree, f"the parent says: {message.reason}", now) + self._attach(tree, now)
        if tree.joining is None or tree.joining.id != sender.id:
            return []
        tree.joining = None
        self._deadlines.set(("attach", tree.id), now + self._parameters.retry_min_s * self._rng.uniform(1.0, 2.0))
        return [Notify("tree_refused", {"tree": tree.id, "by": sender, "reason": message.reason})]

    def _bad_path(self, path: tuple[NodeId, ...]) -> bool:
        return self._me.id in path or len(path) > self._parameters.path_max

    def _detach(self, tree: Tree, reason: str, now: float) -> list[Effect]:
        tree.parent, tree.joining, tree.path = None, None, ()
        self._deadlines.set(("attach", tree.id), now + self._parameters.retry_min_s * self._rng.uniform(1.0, 2.0))
        return [Notify("tree_detached", {"tree": tree.id, "reason": reason})]

    def leave_received(self, child: Peer, message: TreeLeave) -> list[Effect]:
        tree = self.trees.get(message.tree)
        if tree is None or child.id not in tree.children:
            return []
        tree.remove_branch(child.id, "moved", "left this parent")
        return self._prune(tree) or self._tell_up(tree)

    def _prune(self, tree: Tree) -> list[Effect]:
        """A forwarder without children and membership leaves."""
        if tree.is_root or tree.member is not None or tree.children:
            return []
        del self.trees[tree.id]
        for kind in ("alive", "attach"):
            self._deadlines.drop((kind, tree.id))
        return [Send(tree.parent, TreeLeave(tree.id))] if tree.parent is not None else []

    # --- soft state ---------------------------------------------------------------------------------------------------

    def _tell_up(self, tree: Tree) -> list[Effect]:
        """Tell the parent, or the application where we are the root, what has changed."""
        if tree.is_root:
            joined, departed = tree.take_changes()
            return [MembersChanged(tree.id, joined, departed)] if joined or departed else []
        if tree.parent is None:
            return []
        full, tree.tell_all = tree.tell_all, False
        joined, departed = tree.take_changes()
        if full:
            joined = tuple(tree.members.values())
        return [Send(tree.parent, Alive(tree.id, tree.digest(), tree.progress, joined, departed, full))]

    def alive_received(self, child: Peer, message: Alive, now: float) -> list[Effect]:
        tree = self.trees.get(message.tree)
        branch = tree.children.get(child.id) if tree is not None else None
        if tree is None or branch is None:
            # We forgot it (or restarted): it is to join again.
            return [Send(child, TreeRefusal(message.tree, "you are not my child"))]
        check_alive(message)
        branch.peer, branch.heard = child, now
        before = tree.revision
        tree.update_branch(branch, message)
        pulse = TreePulse(tree.id, (*tree.path, self._me.id), resync=not branch.agrees())
        effects: list[Effect] = [Send(child, pulse)]
        if tree.revision != before or tree.is_root:
            effects += self._tell_up(tree)
        return effects

    def pulse_received(self, sender: Peer, message: TreePulse, now: float) -> list[Effect]:
        tree = self.trees.get(message.tree)
        if tree is None or tree.parent is None or tree.parent.id != sender.id:
            return [Send(sender, TreeLeave(message.tree))]
        if self._bad_path(message.path):
            return [Send(sender, TreeLeave(message.tree)), *self._detach(tree, "the path from the root closes a cycle", now)]
        tree.path, tree.parent_heard = message.path, now
        if message.resync:
            tree.tell_all = True
            return self._tell_up(tree)
        return []

    def multicast_received(self, sender: Peer, message: Multicast) -> list[Effect]:
        tree = self.trees.get(message.tree)
        if tree is None or tree.parent is None or tree.parent.id != sender.id:
            return [Send(sender, TreeLeave(message.tree))]
        if message.order <= tree.order:
            return []
        tree.last = message
        effects: list[Effect] = [Send(branch.peer, message) for branch in tree.children.values() if branch.peer.id != sender.id]
        if tree.member is not None:
            effects.append(MulticastReceived(tree.id, sender, message.body))
        return effects

    # --- deaths and time ----------------------------------------------------------------------------------------------

    def died(self, peer: Peer, reason: str, in_order: bool, silent_s: float, now: float) -> list[Effect]:
        """A verified death, or a leave in order."""
        effects: list[Effect] = []
        for tree in list(self.trees.values()):
            if tree.parent is not None and tree.parent.id == peer.id and tree.parent.incarnation <= peer.incarnation:
                effects += self._detach(tree, f"the parent died: {reason}", now) + self._attach(tree, now)
            elif tree.joining is not None and tree.joining.id == peer.id:
                tree.joining = None
                effects += self._attach(tree, now)
            branch = tree.children.get(peer.id)
            if branch is not None and branch.peer.incarnation <= peer.incarnation:
                tree.remove_branch(peer.id, "left" if in_order else "died", reason, silent_ms=round(1000 * silent_s))
                effects += self._prune(tree) or self._tell_up(tree)
        return effects

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for kind, identifier in self._deadlines.due(now):
            tree = self.trees.get(identifier)
            if tree is None:
                continue  # pruned in this same moment
            if kind == "attach":
                tree.joining = None
                effects += self._attach(tree, now)
                continue
            self._deadlines.set(("alive", identifier), now + self._parameters.heartbeat_interval_s)
            effects += self._expire(tree, now)
            if identifier in self.trees:
                effects += self._tell_up(tree)
        return effects

    def _expire(self, tree: Tree, now: float) -> list[Effect]:
        """Alive elsewhere but silent here for twice what makes a suspect: it is no longer our child, or our parent."""
        limit = now - 2 * self._parameters.silence_max_s - self._parameters.probe_timeout_s
        effects: list[Effect] = []
        for branch in [branch for branch in tree.children.values() if branch.heard < limit]:
            tree.remove_branch(branch.peer.id, "orphaned", "alive, but silent in this tree")
        if tree.parent is not None and tree.parent_heard < limit:
            effects += [Send(tree.parent, TreeLeave(tree.id)), *self._detach(tree, "the parent is silent in this tree", now)]
        return effects + self._prune(tree)

    def forgive(self, now: float) -> None:
        """This node slept: nobody's silence counts."""
        for tree in self.trees.values():
            tree.parent_heard = now
            for branch in tree.children.values():
                branch.heard = now

    def check_invariants(self) -> None:
        for tree in self.trees.values():
            tree.check_invariants()
            assert not (tree.is_root and tree.parent), "a root has a parent"
            assert tree.is_root or tree.parent or ("attach", tree.id) in self._deadlines, "detached, and nothing will happen"
            assert ("alive", tree.id) in self._deadlines, "a tree without a heartbeat"
