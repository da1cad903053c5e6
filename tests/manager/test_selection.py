"""Who takes part in a round."""

from __future__ import annotations

import pytest

from fmrec_manager.liveness import Member, State
from fmrec_manager.selection import select
from protocol.identifiers import NodeId, Peer
from protocol.wire.messages import RecoveryMode
from protocol.wire.values import MemberInfo


def members(**states: State) -> dict[NodeId, Member]:
    made = {}
    for index, (name, state) in enumerate(reversed(states.items())):
        peer = Peer(NodeId(100 - index), "h", 1, 1)
        made[peer.id] = Member(MemberInfo(peer, name, "source", 1), state, "", 0.0)
    return made


def test_the_modes_that_recover_expect_the_dead_too_in_the_order_of_ids() -> None:
    three = members(a="alive", b="suspect", c="dead")
    for mode in ("exact", "substitute"):
        assert select(three, mode) == tuple(sorted(three))  # type: ignore[arg-type]


def test_without_recovery_only_who_may_be_alive_takes_part() -> None:
    three = members(a="alive", b="suspect", c="dead")
    assert {three[i].info.name for i in select(three, "drop")} == {"a", "b"}


@pytest.mark.parametrize("mode", ["exact", "substitute", "drop"])
def test_nobody_is_nobody(mode: RecoveryMode) -> None:
    assert select({}, mode) == ()
