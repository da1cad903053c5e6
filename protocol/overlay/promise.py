"""What an elector has promised in one tree (terms.py). It must outlive the elector where that has a disk."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.identifiers import Peer, TreeId


@dataclass(frozen=True, slots=True)
class Promise:
    """The latest term that was promised, and to whom; the newest version that was agreed to, with the term of its writer. witnessed: from
    how many such versions, one after the other, the root has gone on, so that they were committed; two at most (terms.py, rule 8)."""

    term: int = 0
    version: int = 0
    written: int = 0
    root: Peer | None = None
    witnessed: int = 0


@dataclass(frozen=True, slots=True)
class TreePromise:
    """A promise, and the tree that it is of."""

    tree: TreeId
    promise: Promise
