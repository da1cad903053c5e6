"""Replication, rule by rule (FMRec, section III-D; numbers as in the module's docstring)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.identifiers import Peer
from protocol.overlay import effects as fx
from protocol.overlay.retrieval import LOOK_UPS_MAX
from protocol.wire.messages import LookUp, LookUpReply
from protocol.wire.values import Holding, RecordSummary
from tests.overlay.holder import FIVE, OWNER, TREE, Node, targets
from tests.overlay.scene import ME, P, facts, node_id, of, peer, record


def held_by(node: Node) -> set:
    return set(node.machine.holders((ME.id, TREE)))


def test_rule_1_of_nodes_in_one_process_the_first_alone_counts_and_of_our_own_none() -> None:
    """A manager's trees are several nodes at one address: two copies there are one, and one beside the owner is none."""
    first, beside, other = FIVE[0], replace(FIVE[1], host=FIVE[0].host, port=FIVE[0].port), FIVE[2]
    own = replace(FIVE[3], host=ME.host, port=ME.port)
    node = Node(first, beside, own, other)
    assert targets(node.replicate(1)) == [first, other]
    assert not of(fx.Durable, node.ends(first, "stored"))
    assert of(fx.Durable, node.ends(other, "stored"))
    alone = Node(own)
    assert targets(alone.replicate(1)) == []


def test_rule_1_the_first_of_a_process_dies_and_the_next_takes_its_place() -> None:
    first, beside, other = FIVE[0], replace(FIVE[1], host=FIVE[0].host, port=FIVE[0].port), FIVE[2]
    node = Node(first, beside, other)
    node.replicate(1)
    node.ends(other, "stored")
    node.neighbours = [beside, other]
    assert targets(node.note([*node.machine.died(first, 1.0), *node.machine.leaf_set_changed(1.0)])) == [beside]


def test_rule_1_k_members_in_order_of_placement_and_durable_with_the_quorum() -> None:
    node = Node(*FIVE)
    assert targets(node.replicate(1)) == FIVE[:3]
    assert not of(fx.Durable, node.ends(FIVE[1], "stored"))
    assert of(fx.Durable, node.ends(FIVE[0], "stored")) == [fx.Durable(record(ME, 1), (FIVE[1].id, FIVE[0].id))]
    assert node.ends(FIVE[2], "stored") == [], "said once"


@pytest.mark.parametrize("outcome", ["refused", "failed"])
def test_rule_2_who_refuses_or_fails_is_passed_over_for_the_next(outcome: str) -> None:
    node = Node(*FIVE)
    node.replicate(1)
    effects = node.ends(FIVE[0], outcome)
    assert targets(effects) == [FIVE[3]]
    assert facts(effects) == ["replica_refused"]


def test_rule_2_refusals_do_not_lower_the_quorum() -> None:
    """P2: five neighbours live and all but one are full. One copy is one copy: the write is not acknowledged."""
    node = Node(*FIVE)
    node.replicate(1)
    seen = node.ends(FIVE[0], "stored")
    for full in FIVE[1:]:
        seen += node.ends(full, "refused")
    assert held_by(node) == {FIVE[0].id}
    assert not of(fx.Durable, seen)


def test_rule_2_failures_do_not_lower_it_either_while_pushes_are_under_way() -> None:
    node = Node(*FIVE[:3])
    node.replicate(1)
    seen = node.ends(FIVE[0], "failed") + node.ends(FIVE[1], "failed") + node.ends(FIVE[2], "stored")
    assert not of(fx.Durable, seen)


def test_rule_2_with_fewer_neighbours_than_the_quorum_all_of_them_must_hold_it() -> None:
    node = Node(FIVE[0])
    assert not of(fx.Durable, node.replicate(1))
    assert of(fx.Durable, node.ends(FIVE[0], "stored"))


def test_rule_2_with_no_neighbour_nothing_is_durable() -> None:
    node = Node()
    assert node.replicate(1) == []
    assert node.machine.leaf_set_changed(1.0) == []
    node.neighbours = FIVE[:1]
    assert targets(node.note(node.machine.leaf_set_changed(2.0))) == FIVE[:1]
    assert of(fx.Durable, node.ends(FIVE[0], "stored"))


def test_rule_2_when_the_others_die_those_that_hold_it_suffice() -> None:
    """Two neighbours, one full: not durable. The full one dies: all neighbours hold it now."""
    node = Node(*FIVE[:2])
    node.replicate(1)
    assert not of(fx.Durable, node.ends(FIVE[0], "stored") + node.ends(FIVE[1], "refused"))
    node.neighbours = FIVE[:1]
    assert of(fx.Durable, node.machine.died(FIVE[1], 1.0) + node.machine.leaf_set_changed(1.0))


def test_rule_2_who_failed_is_tried_again_who_refused_is_not() -> None:
    """P8: a moment without file descriptors, and no later event of the ring: the record must not stay short of copies for ever."""
    node = Node(*FIVE[:3])
    node.replicate(1)
    node.ends(FIVE[0], "failed")
    node.ends(FIVE[1], "refused")
    node.ends(FIVE[2], "stored")
    seen = node.until(0.1 + P.retry_max_s)
    assert targets(seen) == [FIVE[0]]
    assert of(fx.Durable, node.ends(FIVE[0], "stored"))
    assert node.until(100.0) == []


def test_rule_2_a_push_that_never_ends_has_failed() -> None:
    node = Node(*FIVE)
    node.replicate(1)
    first = node.transfers[FIVE[0]]
    seen = node.until(P.transfer_timeout_s(1000) + P.delay_max_s)
    assert fx.CancelTransfer(first) in seen
    assert set(targets(seen)) == {*FIVE[3:]}
    assert node.machine.push_ended(first, "stored", "", 9.0) == [], "its late end is no news"


def test_rule_3_a_newer_version_supersedes_one_under_way() -> None:
    node = Node(*FIVE)
    node.replicate(1)
    old = dict(node.transfers)
    effects = node.replicate(2)
    assert {effect.transfer for effect in of(fx.CancelTransfer, effects)} == set(old.values())
    assert targets(effects) == FIVE[:3]
    for transfer in old.values():
        assert node.machine.push_ended(transfer, "stored", "", 0.5) == [], "copies of version 1 do not make version 2 durable"
    assert held_by(node) == set()
    assert node.machine.replicate(record(ME, 1), 0.6) == [], "an older version does not come back"


def test_rule_4_a_dead_holder_is_replaced() -> None:
    node = Node(*FIVE)
    node.replicate(1)
    for holder in FIVE[:3]:
        node.ends(holder, "stored")
    node.leaf_set.remove(FIVE[1].id)
    assert targets(node.note(node.machine.died(FIVE[1], 1.0))) == [], "the quorum is left: the recovery of who died goes first"
    assert held_by(node) == {FIVE[0].id, FIVE[2].id}
    assert targets(node.until(1.0 + P.mend_after_s)) == [FIVE[3]]


def test_rule_4_a_dead_holder_is_replaced_at_once_where_the_quorum_is_lost() -> None:
    node = Node(*FIVE)
    node.replicate(1)
    for holder in FIVE[:3]:
        node.ends(holder, "stored")
    for holder in FIVE[:2]:
        node.leaf_set.remove(holder.id)
    assert targets(node.note(node.machine.died(FIVE[0], 1.0))) == []
    assert len(targets(node.note(node.machine.died(FIVE[1], 1.1)))) == 2
    assert targets(node.until(1.1 + P.mend_after_s)) == [], "what waited is under way"


def test_rule_4_who_dies_under_a_push_is_replaced() -> None:
    node = Node(*FIVE)
    node.replicate(1)
    node.leaf_set.remove(FIVE[0].id)
    effects = node.machine.died(FIVE[0], 1.0)
    assert of(fx.CancelTransfer, effects) == [fx.CancelTransfer(node.transfers[FIVE[0]])]
    assert targets(effects) == [FIVE[4]], "the right side has its turn"


def test_rule_4_a_holder_that_the_ring_has_moved_away_from_does_not_count() -> None:
    """P2: agents join between us and our holders. When we die, the look-up asks our neighbours of then: they must hold it."""
    node = Node(*FIVE[:3])
    node.replicate(1)
    for holder in FIVE[:3]:
        node.ends(holder, "stored")
    newcomers = [peer(0x84), peer(0x7C), peer(0x86)]
    node.neighbours = [*newcomers, FIVE[0]]
    assert targets(node.note(node.machine.leaf_set_changed(1.0))) == newcomers[:2]
    assert held_by(node) == {FIVE[0].id}


# --- retrievals -------------------------------------------------------------------------------------------------------


def wanting(*holdings: Holding, node: Node | None = None) -> tuple[Node, list[fx.Effect]]:
    """A retrieval whose look-up was answered with these."""
    node = node or Node(*FIVE)
    [asked] = of(fx.RouteBody, node.machine.retrieve(1, OWNER.id, TREE, 0.0))
    assert isinstance(asked.body, LookUp)
    return node, node.machine.look_up_answered(LookUpReply(asked.body.request, holdings), 0.1)


def ended(effects: list[fx.Effect]) -> fx.RetrievalEnded:
    [end] = of(fx.RetrievalEnded, effects)
    return end


def fetches(effects: list[fx.Effect]) -> list[tuple[Peer, int]]:
    return [(effect.peer, effect.record.version) for effect in of(fx.Fetch, effects)]


def test_rule_6_the_newest_first_and_the_next_holder_where_one_fails() -> None:
    node, effects = wanting(Holding(FIVE[0], record(OWNER, 2)), Holding(FIVE[1], record(OWNER, 3)), Holding(FIVE[2], record(OWNER, 3)))
    assert fetches(effects) == [(FIVE[1], 3)]
    effects = node.machine.fetch_ended(1, None, "the digest is wrong", 0.2)
    assert fetches(effects) == [(FIVE[2], 3)]
    end = ended(node.machine.fetch_ended(2, record(OWNER, 3), "", 0.3))
    assert end.record == record(OWNER, 3)
    assert (end.attempts, end.located_s, round(end.transferred_s, 6)) == (2, 0.1, 0.2)
    assert record(OWNER, 3) in node.machine.held()


def test_rule_6_where_the_newest_fails_and_somebody_was_not_heard_everyone_is_asked_before_an_older_one_will_do() -> None:
    """The one that nobody waited for may hold the newest as well."""
    node = Node()
    node.machine.retrieve(1, OWNER.id, TREE, 0.0)
    newest, older, unheard = Holding(FIVE[0], record(OWNER, 5)), Holding(FIVE[1], record(OWNER, 4)), Holding(FIVE[2], record(OWNER, 5))
    first = fetches(node.machine.look_up_answered(LookUpReply(1, (newest, older), 1), 0.1))
    assert first == [(FIVE[0], 5)]
    [again] = of(fx.RouteBody, node.machine.fetch_ended(1, None, "connection reset", 0.2))
    assert again.body == LookUp(1, OWNER.id, TREE, ME, all=True)
    assert fetches(node.machine.look_up_answered(LookUpReply(1, (unheard, older), 0), 0.3)) == [(FIVE[2], 5)]
    assert fetches(node.machine.fetch_ended(2, None, "connection reset", 0.4)) == [(FIVE[1], 4)], "now it is known that nobody else has it"


def test_rule_6_a_holder_that_gives_an_older_version_than_it_said_has_failed() -> None:
    node, _ = wanting(Holding(FIVE[0], record(OWNER, 3)), Holding(FIVE[1], record(OWNER, 3)))
    assert fetches(node.machine.fetch_ended(1, record(OWNER, 2), "", 0.2)) == [(FIVE[1], 3)]


def test_rule_6_a_fetch_that_never_ends_goes_to_the_next_holder() -> None:
    node, _ = wanting(Holding(FIVE[0], record(OWNER, 3)), Holding(FIVE[1], record(OWNER, 3)))
    seen = node.until(0.1 + P.transfer_timeout_s(1000) + P.delay_max_s)
    assert of(fx.CancelTransfer, seen) == [fx.CancelTransfer(1)]
    assert fetches(seen) == [(FIVE[1], 3)]


def test_rule_6_no_holder_left_is_lost_and_said_with_the_last_reason() -> None:
    node, _ = wanting(Holding(FIVE[0], record(OWNER, 3)))
    end = ended(node.machine.fetch_ended(1, None, "connection reset", 0.2))
    assert (end.record, end.reason, end.attempts) == (None, "connection reset", 1)
    _, effects = wanting()
    assert (ended(effects).record, ended(effects).reason) == (None, "no live node holds a record of it")


def test_rule_6_what_we_hold_ourselves_needs_no_transfer() -> None:
    """A restart with its disk: among equals our own copy is taken; a newer one elsewhere is fetched."""
    node = Node(*FIVE)
    node.machine.record_held(record(OWNER, 3), 0.0)
    _, effects = wanting(Holding(FIVE[0], record(OWNER, 3)), node=node)
    assert ended(effects).record == record(OWNER, 3)
    assert not of(fx.Fetch, effects)
    _, effects = wanting(Holding(FIVE[0], record(OWNER, 4)), node=node)
    assert fetches(effects) == [(FIVE[0], 4)]


def test_rule_6_what_answers_an_earlier_retrieval_answers_no_later_one() -> None:
    """A manager that looks again does so under the same number; what was said to its first look, and was late, may be older."""
    node, _ = wanting(Holding(FIVE[0], record(OWNER, 3)))
    assert ended(node.machine.fetch_ended(1, record(OWNER, 3), "", 0.2)).record == record(OWNER, 3)
    [asked] = of(fx.RouteBody, node.machine.retrieve(1, OWNER.id, TREE, 0.3))
    assert isinstance(asked.body, LookUp)
    assert node.machine.look_up_answered(LookUpReply(1, (Holding(FIVE[0], record(OWNER, 2)),)), 0.4) == []
    effects = node.machine.look_up_answered(LookUpReply(asked.body.request, (Holding(FIVE[1], record(OWNER, 4)),)), 0.5)
    assert fetches(effects) == [(FIVE[1], 4)]


def test_rule_6_a_look_up_that_nobody_answers_is_repeated_and_then_given_up() -> None:
    node = Node(*FIVE)
    node.machine.retrieve(1, OWNER.id, TREE, 0.0)
    seen = node.until(LOOK_UPS_MAX * P.look_up_timeout_s + 0.01)
    assert len(of(fx.RouteBody, seen)) == LOOK_UPS_MAX - 1
    assert ended(seen).record is None
    assert str(LOOK_UPS_MAX) in ended(seen).reason
    assert node.machine.look_up_answered(LookUpReply(1, ()), 9.0) == [], "it has ended, once"


def test_rule_6_when_no_look_up_is_answered_our_own_copy_is_better_than_nothing() -> None:
    node = Node(*FIVE)
    node.machine.record_held(record(OWNER, 3), 0.0)
    node.machine.retrieve(1, OWNER.id, TREE, 0.0)
    assert ended(node.until(60.0)).record == record(OWNER, 3)


def absurd() -> list[Holding]:
    wrong: list[RecordSummary] = [record(OWNER, 9, tree=node_id(0x11)), record(FIVE[1], 9)]
    wrong += [record(OWNER, 9, record_bytes=size) for size in (-1, P.record_bytes_max + 1, 2**64 - 1)]
    return [Holding(FIVE[index], summary) for index, summary in enumerate(wrong)] + [Holding(ME, record(OWNER, 9))]


@pytest.mark.parametrize("holding", absurd(), ids=["another tree", "another owner", "less than nothing", "too large", "endless", "ours"])
def test_rule_6_absurd_holdings_are_not_fetched(holding: Holding) -> None:
    """P7, P8: a record of 2**64 bytes would be awaited for ages; one that we do not hold cannot be taken from ourselves."""
    _, effects = wanting(holding, Holding(peer(0x21), record(OWNER, 1)))
    assert fetches(effects) == [(peer(0x21), 1)]


def test_rule_6_one_answer_cannot_keep_us_busy_for_ever() -> None:
    """P8: thousands of holders, or one named a thousand times; none of them answers."""
    many = [Holding(peer(index % 256), record(OWNER, index)) for index in range(2000)]
    node, effects = wanting(*many)
    attempts = 0
    while not of(fx.RetrievalEnded, effects):
        attempts += 1
        effects = node.machine.fetch_ended(of(fx.Fetch, effects)[0].transfer, None, "no", 0.2)
    assert attempts == P.leaf_set_size + 1


def test_rule_6_asked_again_under_the_same_number_it_begins_anew_and_ends_once() -> None:
    """A manager looks for its own record when it starts, and again when enough members have come."""
    node, _ = wanting(Holding(FIVE[0], record(OWNER, 3)), node=Node(*FIVE, OWNER))
    effects = node.machine.retrieve(1, OWNER.id, TREE, 0.2)
    assert of(fx.CancelTransfer, effects) == [fx.CancelTransfer(1)]
    assert node.machine.fetch_ended(1, record(OWNER, 3), "", 0.3) == []
    assert len(of(fx.RetrievalEnded, node.until(60.0))) == 1
    assert node.machine.next_deadline() is None


def test_rule_6_all_who_hold_the_same_bytes_are_named() -> None:
    """A large record is fetched from several at once; one with another version is none of them."""
    same = [Holding(holder, record(OWNER, 3)) for holder in FIVE[:3]]
    _, effects = wanting(*same, Holding(FIVE[3], record(OWNER, 2)))
    [fetch] = of(fx.Fetch, effects)
    assert (fetch.peer, fetch.others) == (FIVE[0], (FIVE[1], FIVE[2]))


def test_rule_6_the_heir_is_asked_when_who_was_closest_dies() -> None:
    """Owner and next neighbour die together: the look-up may have died with it, and must not wait for its timeout."""
    node = Node(*FIVE)
    node.machine.retrieve(1, OWNER.id, TREE, 0.0)
    node.leaf_set.remove(FIVE[3].id)
    again = of(fx.RouteBody, node.machine.died(FIVE[3], 0.01))
    assert again == [fx.RouteBody(OWNER.id, LookUp(1, OWNER.id, TREE, ME))]
    node.leaf_set.remove(FIVE[0].id)
    assert not of(fx.RouteBody, node.machine.died(FIVE[0], 0.02)), "it was not closest"
    end = ended(node.machine.look_up_answered(LookUpReply(1, ()), 0.03))
    assert end.record is None
    assert node.machine.look_up_answered(LookUpReply(1, ()), 0.04) == [], "the first answer may come all the same"


def test_rule_6_our_own_record_is_asked_for_until_everyone_near_was_heard() -> None:
    """P2: version 4 is durable on two that hang; a third has version 3. A restart must not begin from that while 4 may be there."""
    node = Node(*FIVE)
    node.machine.retrieve(1, ME.id, TREE, 0.0)
    old = LookUpReply(1, (Holding(FIVE[2], record(ME, 3)),), 2)
    assert of(fx.RouteBody, node.machine.look_up_answered(old, 0.1))
    assert of(fx.RouteBody, node.machine.look_up_answered(old, 0.9 * P.verdict_max_s))
    found = LookUpReply(1, (Holding(FIVE[0], record(ME, 4)), Holding(FIVE[2], record(ME, 3))), 0)
    assert fetches(node.machine.look_up_answered(found, 0.95 * P.verdict_max_s)) == [(FIVE[0], 4)]


def test_rule_6_but_not_for_ever() -> None:
    node = Node(*FIVE)
    node.machine.retrieve(1, ME.id, TREE, 0.0)
    node.machine.look_up_answered(LookUpReply(1, (), 1), 0.1)
    effects = node.machine.look_up_answered(LookUpReply(1, (Holding(FIVE[2], record(ME, 3)),), 1), P.verdict_max_s)
    assert fetches(effects) == [(FIVE[2], 3)]
    assert not ended(node.machine.fetch_ended(1, record(ME, 3), "", 2.0)).complete, "it may be older than the newest, and that is said"
