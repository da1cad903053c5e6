"""The round state that survives the manager: what is written is what a later life reads."""

from __future__ import annotations

import math

import pytest

from fmrec_manager.ledger import Ledger, ledger_of
from fmrec_manager.plan import Plan
from fmrec_manager.root import Root
from fmrec_manager.round import Terms
from fmrec_manager.selection import Seen
from protocol.errors import RecordInvalid
from protocol.identifiers import Peer, agent_id, tree_id
from protocol.wire.values import Departed, MemberInfo

PLAN = Plan(5, 1, 0, True, Terms("exact", 30, 600, 1.0, 5, 0.5), 3.0, 2.0, 1.0, 12, 0.5)


def info(name: str, role: str = "source") -> MemberInfo:
    return MemberInfo(Peer(agent_id("c", name), "127.0.0.1", 7710, 1_790_000_000_123), name, role, 42)


def root() -> Root:
    root = Root(tree_id("main", "t"), PLAN)
    root.liveness.changed([info("a"), info("b", "target"), info("gone")], [], 0.0)
    root.liveness.changed([], [Departed(agent_id("c", "gone"), 1_790_000_000_123, "left", "goodbye")], 1.0)
    root.losses = [0.1 + 0.2, 1e-300]
    root.results = {"b": {"rmse_pp": 7.25}}
    root.seen = {agent_id("c", "a"): Seen(120, 0.1 + 0.2), agent_id("c", "b"): Seen(7), agent_id("c", "gone"): Seen(1, 1.0)}
    root.on_record = root.liveness.staying()
    root.candidacy.put_to = ((agent_id("c", "a"), agent_id("c", "gone")), (agent_id("c", "b"),))
    return root


def test_what_is_written_is_what_is_read() -> None:
    text = ledger_of(7, root()).model_dump_json()
    ledger = Ledger.read(text.encode())
    assert ledger.seed == 7
    resumed = ledger.resumed(version=4, term=9, round_number=3)
    assert (resumed.version, resumed.term, resumed.round) == (4, 9, 3)
    assert resumed.losses == (0.1 + 0.2, 1e-300), "bit for bit"
    assert resumed.results == {"b": {"rmse_pp": 7.25}}
    assert resumed.seen == {agent_id("c", "a"): Seen(120, 0.1 + 0.2), agent_id("c", "b"): Seen(7)}
    assert resumed.put_to == root().put_to
    assert {member.name: member for member in resumed.members} == {"a": info("a"), "b": info("b", "target")}


def test_who_has_left_is_not_waited_for_by_a_later_life() -> None:
    assert "gone" not in {member.name for member in ledger_of(7, root()).members}


def test_equal_states_give_equal_bytes() -> None:
    assert ledger_of(7, root()).model_dump_json() == ledger_of(7, root()).model_dump_json()


def test_a_figure_that_is_not_finite_does_not_make_the_ledger_unreadable() -> None:
    odd = root()
    odd.results = {"b": {"rmse_pp": math.nan, "worst": math.inf}}
    read = Ledger.read(ledger_of(7, odd).model_dump_json().encode())
    assert math.isnan(read.results["b"]["rmse_pp"])
    assert read.results["b"]["worst"] == math.inf


@pytest.mark.parametrize(("state", "said"), [(b"", "it is no part"), (b"[]", "it is no part"), (b'{"seed": "x"}', "seed is no part")])
def test_what_is_no_ledger_is_said_in_a_sentence(state: bytes, said: str) -> None:
    with pytest.raises(RecordInvalid, match=said) as caught:
        Ledger.read(state)
    assert "\n" not in str(caught.value)


def test_a_ledger_from_before_selection_is_read() -> None:
    assert Ledger.read(b'{"seed": 1, "losses": [], "members": [], "results": {}}').resumed(1, 1, 0).seen == {}
