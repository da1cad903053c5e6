"""What a tree's root is given: what the settings ask of it, and what its record says of an earlier life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fmrec_manager.round import Terms
from fmrec_manager.selection import Seen, Selection
from protocol.identifiers import NodeId
from protocol.wire.values import MemberInfo


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tree's settings ask of its root. Times in seconds."""

    rounds: int
    sources_min: int
    targets_min: int
    adapt: bool
    terms: Terms
    orphan_max_s: float
    ask_timeout_s: float
    silence_max_s: float
    electors_max: int
    answer_max_s: float
    """Electors that have not answered are asked again after this."""
    selection: Selection = field(default_factory=Selection)
    """Which sources train in a round."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the tree's own record says: the next round, who was a member, what they brought last. term: it was written in. put_to: whose
    agreement it needed (ballot.py, rule 1)."""

    version: int
    term: int
    round: int
    losses: tuple[float, ...]
    members: tuple[MemberInfo, ...]
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seen: Mapping[NodeId, Seen] = field(default_factory=dict)
    put_to: tuple[tuple[NodeId, ...], ...] = ()
