"""Where copies go (protocol/overlay/placement.py): who is slow, who is one place, and what a fast writer gets."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.overlay import effects as fx
from protocol.overlay.placement import SLOWER_MAX
from tests.overlay.holder import FIVE, TREE, Node, targets
from tests.overlay.scene import ME, P, facts, of, peer, record

KEY = (ME.id, TREE)
LARGE = 40 << 20


def test_one_that_is_slow_beside_the_others_is_passed_over_long_before_its_time() -> None:
    node = Node(*FIVE)
    node.replicate(1)
    node.ends(FIVE[0], "stored", now=0.01)
    node.ends(FIVE[1], "stored", now=0.01)
    assert targets(node.until(0.9 * P.probe_timeout_s)) == []
    seen = node.until(P.probe_timeout_s)
    assert (facts(seen), targets(seen)) == (["replica_slow"], [FIVE[3]])
    assert P.probe_timeout_s < P.transfer_timeout_s(1000)


def test_how_slow_is_measured_by_the_first_that_was_done() -> None:
    """The record is large, or the network slow: a second is what it takes."""
    node = Node(*FIVE)
    node.note(node.machine.replicate(record(ME, 1, record_bytes=LARGE), 0.0))
    node.ends(FIVE[1], "stored", now=1.0)
    assert targets(node.until(0.99 * SLOWER_MAX)) == []
    assert targets(node.until(1.01 * SLOWER_MAX)) == [FIVE[3], FIVE[4]]
    assert P.transfer_timeout_s(LARGE) / 2 > 1.01 * SLOWER_MAX


def test_the_slow_one_counts_where_it_is_done_after_all_and_the_other_is_given_up() -> None:
    node = Node(*FIVE)
    node.replicate(1)
    for holder in FIVE[:2]:
        node.ends(holder, "stored", now=0.01)
    node.until(P.probe_timeout_s)
    late = node.ends(FIVE[2], "stored", now=0.3)
    assert of(fx.CancelTransfer, late) == [fx.CancelTransfer(node.transfers[FIVE[3]])]
    assert set(node.machine.holders(KEY)) == {holder.id for holder in FIVE[:3]}


def test_who_has_it_and_is_no_place_any_more_does_not_count_and_the_next_is_tried() -> None:
    """Others joined nearer to us while it moved: three copies that no quorum is counted of, and nothing more would be tried."""
    small = replace(P, leaf_set_size=4)
    node = Node(*FIVE[:4], parameters=small)
    pushed = targets(node.replicate(1))
    node.neighbours = [*node.neighbours, *(peer(leading) for leading in (0x84, 0x7C, 0x83, 0x7D))]
    node.note(node.machine.leaf_set_changed(0.2))
    near = [targets(node.ends(holder, "stored", now=0.3)) for holder in pushed]
    assert len(node.transfers) == 2 * len(pushed), near
    assert node.machine.holders(KEY) == ()
    seen = [effect for holder in list(node.transfers)[len(pushed) :] for effect in node.ends(holder, "stored", now=0.4)]
    assert [durable.record for durable in of(fx.Durable, seen)] == [record(ME, 1)]


def test_all_that_are_slow_without_measure_are_doubled_at_half_of_their_time() -> None:
    """Three hang, and nobody knows yet."""
    node = Node(*FIVE, peer(0x50))
    node.note(node.machine.replicate(record(ME, 1, record_bytes=LARGE), 0.0))
    assert targets(node.until(0.49 * P.transfer_timeout_s(LARGE))) == []
    assert len(targets(node.until(0.51 * P.transfer_timeout_s(LARGE)))) == 3


def test_two_nodes_at_one_address_are_one_place() -> None:
    """A manager's trees: both replicas would die with its process."""
    twin = replace(FIVE[1], host=FIVE[0].host, port=FIVE[0].port)
    node = Node(FIVE[0], twin, *FIVE[2:])
    assert targets(node.replicate(1)) == [FIVE[0], FIVE[2], FIVE[3]]


def test_our_own_process_is_no_place_and_no_quorum() -> None:
    twin = replace(FIVE[0], host=ME.host, port=ME.port)
    node = Node(twin)
    assert node.replicate(1) == [], "two trees of one manager alone: nothing is durable"
    node.neighbours = [twin, FIVE[1]]
    assert targets(node.note(node.machine.leaf_set_changed(1.0))) == [FIVE[1]]
    assert of(fx.Durable, node.ends(FIVE[1], "stored"))


def test_suspects_are_the_last_to_be_chosen() -> None:
    node = Node(*FIVE)
    node.suspects.add(FIVE[0].id)
    assert targets(node.replicate(1)) == FIVE[1:4]


def test_a_holder_that_starts_again_must_hold_it_again() -> None:
    """The same id, perhaps elsewhere, and without its disk."""
    node = Node(*FIVE[:3])
    node.replicate(1)
    for holder in FIVE[:3]:
        node.ends(holder, "stored")
    later = replace(FIVE[0], incarnation=2, port=4711)
    node.leaf_set.insert(later)
    node.note(node.machine.died(FIVE[0], 1.0))
    assert targets(node.until(1.0 + P.mend_after_s)) == [later]
    node.ends(later, "stored", now=1.6)
    assert node.machine.died(FIVE[0], 1.7) == [], "late news of the life before"
    assert later.id in node.machine.holders(KEY)


def test_each_second_version_of_a_fast_writer_gets_its_quorum() -> None:
    """Checkpoints come faster than they are brought: if each gave up the one before it, nothing would ever be durable."""
    node = Node(*FIVE)
    node.replicate(1)
    assert of(fx.CancelTransfer, node.replicate(2)), "the first time, the newer one is worth more"
    assert node.replicate(3) == [], "it waits"
    assert node.replicate(4) == [], "and 3 will never be brought"
    seen = node.ends(FIVE[0], "stored") + node.ends(FIVE[1], "stored")
    assert [effect.record.version for effect in of(fx.Durable, seen)] == [2]
    assert {effect.record.version for effect in of(fx.Push, seen)} == {4}


def test_a_version_that_another_waits_for_is_not_begun_at_a_new_place() -> None:
    """The store keeps the newest alone: the push would fail at once, and take those under way with it."""
    node = Node(*FIVE)
    for version in (1, 2, 3):
        node.replicate(version)
    assert not of(fx.Push, node.until(P.probe_timeout_s)), "three are slow, and go on"
    seen = node.ends(FIVE[0], "stored") + node.ends(FIVE[1], "stored")
    assert [effect.record.version for effect in of(fx.Durable, seen)] == [2]


def test_what_waits_does_not_wait_for_a_version_that_lost_a_copy() -> None:
    node = Node(*FIVE)
    for version in (1, 2, 3):
        node.replicate(version)
    seen = node.ends(FIVE[0], "failed")
    assert {effect.record.version for effect in of(fx.Push, seen)} == {3}


@given(st.lists(st.tuples(st.sampled_from(["write", "stored", "failed", "refused", "time"]), st.integers(0, 9)), max_size=60))
@settings(deadline=None, max_examples=300)
def test_whatever_becomes_of_the_pushes_the_newest_version_is_durable_when_they_succeed(steps: list[tuple[str, int]]) -> None:
    """Invariants after each step; never more than k copies; and when pushes succeed at last, of the newest version."""
    node, version, now = Node(*FIVE), 1, 0.0
    node.replicate(version)
    under_way: dict[int, fx.Push] = {}

    def follow(effects: list[fx.Effect]) -> list[fx.Effect]:
        for effect in effects:
            if isinstance(effect, fx.Push):
                under_way[effect.transfer] = effect
            elif isinstance(effect, fx.CancelTransfer):
                under_way.pop(effect.transfer, None)
        return effects

    follow(node.replicate(version))
    for what, which in steps:
        now += 0.05
        if what == "write":
            version += 1
            follow(node.replicate(version, now))
        elif what == "time":
            now += 0.3 * which
            follow(node.until(now))
        elif under_way:
            push = under_way.pop(sorted(under_way)[which % len(under_way)])
            follow(node.note(node.machine.push_ended(push.transfer, what, "", now)))
    follow(node.note(node.machine.leaf_set_changed(now)))
    said: list[fx.Effect] = []
    for _ in range(2):  # before and after what may wait
        while under_way:
            push = under_way.pop(min(under_way))
            said += follow(node.note(node.machine.push_ended(push.transfer, "stored", "", now)))
        follow(node.until(now + P.mend_after_s))
    assert len(node.machine.holders(KEY)) == P.replicas
    versions = [effect.record.version for effect in of(fx.Durable, said)]
    assert versions[-1:] in ([], [version])
    assert node.machine.held() == (record(ME, version),)
