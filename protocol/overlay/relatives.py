"""Who is parent, child or asked to be parent, and in which trees: kept as it changes, so that a node in a thousand trees need not look
through them.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.identifiers import NodeId, Peer, TreeId
from protocol.overlay.tree import Tree


class Relatives:
    """Parents and children in all trees. A peer may be both, but not in one tree."""

    def __init__(self) -> None:
        self.revision = 0
        """Grows whenever `peers()` changes."""
        self.loose: dict[TreeId, Tree] = {}
        """Trees with neither a parent nor the root here."""
        self._trees: dict[NodeId, dict[TreeId, None]] = {}
        self._peers: dict[NodeId, Peer] = {}
        """The latest life of each."""
        self._listed: tuple[Peer, ...] | None = ()
        self._asked: dict[NodeId, dict[TreeId, None]] = {}
        """Whom a JOIN was sent to, in which trees, while its answer is awaited."""

    def peers(self) -> tuple[Peer, ...]:
        """Each once, by its latest life."""
        if self._listed is None:
            self._listed = tuple(self._peers.values())
        return self._listed

    def trees_of(self, identifier: NodeId) -> list[TreeId]:
        """The trees in which this peer is our parent or child, or was asked to be our parent."""
        return list(self._trees.get(identifier, {}) | self._asked.get(identifier, {}))

    # --- changes ------------------------------------------------------------------------------------------------------

    def hang(self, tree: Tree, parent: Peer | None) -> None:
        """Below this parent from now on, or below none; nobody else is asked any more."""
        self.ask(tree, None)
        if tree.parent is not None and (parent is None or parent.id != tree.parent.id):
            self.release(tree, tree.parent.id)
        tree.parent = parent
        if parent is not None:
            self.bind(tree, parent)
        if parent is None and not tree.is_root:
            self.loose[tree.id] = tree
        else:
            self.loose.pop(tree.id, None)

    def ask(self, tree: Tree, hop: Peer | None) -> None:
        """A JOIN goes to `hop`, or none is awaited any more."""
        if tree.joining is not None:
            asked = self._asked[tree.joining.id]
            del asked[tree.id]
            if not asked:
                del self._asked[tree.joining.id]
        tree.joining = hop
        if hop is not None:
            self._asked.setdefault(hop.id, {})[tree.id] = None

    def bind(self, tree: Tree, peer: Peer) -> None:
        """The peer is our parent or child in this tree, in this life."""
        self._trees.setdefault(peer.id, {})[tree.id] = None
        known = self._peers.get(peer.id)
        if known is None or (known != peer and known.incarnation <= peer.incarnation):
            self._peers[peer.id] = peer
            self._changed()

    def release(self, tree: Tree, identifier: NodeId) -> None:
        """The peer is neither any more in this tree."""
        trees = self._trees[identifier]
        del trees[tree.id]
        if not trees:
            del self._trees[identifier], self._peers[identifier]
            self._changed()

    def _changed(self) -> None:
        self.revision += 1
        self._listed = None

    def check_invariants(self, trees: Iterable[Tree]) -> None:
        """What is kept here is what the trees themselves have."""
        trees = list(trees)
        bonds = {(identifier, tree.id) for tree in trees for identifier in tree.children}
        bonds |= {(tree.parent.id, tree.id) for tree in trees if tree.parent is not None}
        assert {(identifier, tree) for identifier, found in self._trees.items() for tree in found} == bonds, "relatives are not kept"
        assert self._peers.keys() == self._trees.keys(), "a relative without a tree"
        asked = {(tree.joining.id, tree.id) for tree in trees if tree.joining is not None}
        assert {(identifier, tree) for identifier, found in self._asked.items() for tree in found} == asked, "who was asked is not kept"
        loose = {tree.id for tree in trees if tree.parent is None and not tree.is_root}
        assert self.loose.keys() == loose, "trees without a parent are not kept"
