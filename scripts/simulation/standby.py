"""A standby in a simulated run: the decisions of fmrec_manager/standby.py, carried out as standby_host.py does.

It is a node of the ring with an id of its own. When it takes the tree over, the root's node starts beside it, as a process that can
die, hang or be cut off by itself; when that is over, the standby watches again, as one that a supervisor has started anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fmrec_manager.standby import AskForRoot, LookForRecord, Sound, Standby, StandbyOrder, TakeOver
from fmrec_manager.standby_host import patience_of
from protocol.identifiers import TreeId
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.wire.values import MemberInfo, RecordSummary
from scripts.simulation.application import Application
from scripts.simulation.cluster import Cluster, Process

ABOUT_THE_ROOT = 7
"""The number of its questions."""
STARTED_AGAIN_S = 0.5
"""After its root's end."""

StartRoot = Callable[[Process, int, RecordSummary | None], None]
MembersOn = Callable[[RecordSummary], tuple[MemberInfo, ...]]


class StandbyLife(Application):
    """One life of one standby. members_on: whom the tree's record names; start_root(here, term, record): take the tree over."""

    def __init__(self, cluster: Cluster, process: Process, tree: TreeId, members_on: MembersOn, start_root: StartRoot) -> None:
        super().__init__(cluster, process)
        self.taken = 0
        """How often it has taken over."""
        self._tree = tree
        self._members_on = members_on
        self._start_root = start_root
        self._watch()

    def _watch(self) -> None:
        self.standby = Standby(self._tree, patience_of(self._cluster.parameters))
        self._later(0.0, self._tick)

    def superseded(self, term: int) -> None:
        """The root in its process has another after it, or had, with this term."""
        self.standby.superseded(term)
        self._later(0.0, self._tick)

    def root_ended(self) -> None:
        """The root that it has started is dead: so is it, and is started again."""
        self._later(STARTED_AGAIN_S, self._watch)

    def told(self, effect: fx.Effect) -> None:
        standby, now = self.standby, self._now
        match effect:
            case fx.RootAnswered():
                self._obey(standby.answered(effect, now, alone=not len(self.process.node.pastry.leaf_set)))
            case fx.ElectorAnswered():
                self._obey(standby.heard(effect, now))
            case fx.RetrievalEnded(record=record):
                members, term = (self._members_on(record), record.incarnation) if record is not None else ((), 0)
                self._obey(standby.found(members, term, effect.none_left, now, round(1000 * now)))

    def _tick(self) -> None:
        self._obey(self.standby.tick(self._now))

    def _obey(self, orders: Iterable[StandbyOrder]) -> None:
        for order in orders:
            match order:
                case AskForRoot():
                    self._tell(ev.AskRoot(ABOUT_THE_ROOT, self._tree))
                case LookForRecord():
                    self._tell(ev.Retrieve(ABOUT_THE_ROOT, self._tree, self._tree))
                case Sound(term, electors):
                    self._tell(ev.AskElectors(ABOUT_THE_ROOT, self._tree, term, 0, electors, sounding=True))
                case TakeOver(term):
                    self.taken += 1
                    self._start_root(self.process, term, self.process.store.get((self._tree, self._tree)))
        self._arm(self.standby.next_deadline(), self._tick)
