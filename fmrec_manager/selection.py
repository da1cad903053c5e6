"""Who takes part in a round: a pure choice among the members of the role that the round is for.

In the modes that recover, every member that has not left is expected, dead or alive: what it has learnt is not given up because its
process died. Without recovery (`drop`) only who is alive when the round opens is.
"""

from __future__ import annotations

from collections.abc import Mapping

from fmrec_manager.liveness import Member
from protocol.identifiers import NodeId
from protocol.wire.messages import RecoveryMode


def select(members: Mapping[NodeId, Member], mode: RecoveryMode) -> tuple[NodeId, ...]:
    """The expected contributors, in the order of their ids. `members`: those of the round's role that have not left."""
    return tuple(sorted(i for i, member in members.items() if mode != "drop" or member.state in ("alive", "suspect")))
