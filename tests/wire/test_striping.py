"""The rules of striping.py, by number, with made-up holders and times; and holders drawn by chance (DESIGN 8)."""

from __future__ import annotations

from random import Random

import pytest

from protocol.assembly import runs_of
from protocol.identifiers import Peer, agent_id
from protocol.striping import RUN_BYTES_MIN, Share, Striping

CHUNK = RUN_BYTES_MIN // 4
A, B, C = (Peer(agent_id("c", name), "127.0.0.1", 1, 1) for name in "abc")


def striping(chunks: int = 48, sharing: int = 3) -> Striping:
    return Striping(range(chunks), lambda index: CHUNK, sharing, stall_max_s=0.5, worth_s=0.05)


def bring(work: Striping, share: Share, count: int, now: float) -> list[int]:
    """The holder's next chunks arrive."""
    brought = list(share.owed)[:count]
    for index in brought:
        work.arrived(share, index)
        work.heard(share, CHUNK, now)
    work.check_invariants()
    return brought


def test_rule_1_a_holder_that_is_alone_is_asked_for_all() -> None:
    work = striping(sharing=1)
    assert work.next_runs(work.join(A, 0.0), 0.0) == ((0, 48),)


def test_rule_1_each_gets_its_part_of_half_of_what_is_left() -> None:
    work = striping(48)
    a, b, c = (work.join(peer, 0.0) for peer in (A, B, C))
    assert [work.next_runs(share, 0.0) for share in (a, b, c)] == [((0, 8),), ((8, 7),), ((15, 6),)]
    for _ in range(20):
        bring(work, a, 8, 1.0)
        last = work.next_runs(a, 1.0)
        if not last:
            break
        assert sum(count for _, count in last) * CHUNK >= RUN_BYTES_MIN or not work._unasked
    assert not work._unasked


def test_rule_1_a_run_need_not_be_in_one_piece() -> None:
    """What an older version had lies in between."""
    work = Striping([0, 1, 5, 9], lambda index: CHUNK, 1, stall_max_s=0.5, worth_s=0.05)
    assert work.next_runs(work.join(A, 0.0), 0.0) == ((0, 2), (5, 1), (9, 1))


def test_rule_2_the_next_run_is_asked_for_at_half_of_the_last() -> None:
    work = striping(48)
    a = work.join(A, 0.0)
    work.next_runs(a, 0.0)
    bring(work, a, 3, 0.1)
    assert work.next_runs(a, 0.1) == ()
    bring(work, a, 1, 0.1)
    assert work.next_runs(a, 0.1) == ((8, 7),)


def test_rule_3_a_holder_that_has_stalled_is_let_go() -> None:
    work = striping()
    a, b = work.join(A, 0.0), work.join(B, 0.0)
    work.next_runs(a, 0.0)
    work.next_runs(b, 0.0)
    work.heard(b, 100, 0.4)
    assert work.to_let_go(0.49) is None
    assert work.to_let_go(0.5) == (A, "nothing has come from it for 0.5 s")
    assert work.next_look_s() <= 0.5 / 4


def test_rule_3_silence_of_a_holder_that_was_asked_for_nothing_is_no_stall() -> None:
    work = striping(4, sharing=2)
    a, b = work.join(A, 0.0), work.join(B, 0.0)
    work.next_runs(a, 0.0)
    assert work.next_runs(b, 0.0) == ()
    work.heard(a, 100, 9.9)
    assert work.to_let_go(10.0) is None


def test_rules_4_and_5_the_slowest_is_let_go_for_one_that_is_idle_and_its_rest_is_asked_for_anew() -> None:
    work = striping(8, sharing=2)
    a, b = work.join(A, 0.0), work.join(B, 0.0)
    work.next_runs(a, 0.0)
    work.next_runs(b, 0.0)
    bring(work, a, 1, 0.1)
    bring(work, b, 3, 0.1)
    assert work.to_let_go(0.2) is None, "b has something to do"
    bring(work, b, 1, 0.1)
    assert work.next_runs(b, 0.1) == ()
    found = work.to_let_go(0.2)
    assert found is not None
    assert found[0] == A
    assert "it is slow" in found[1]
    work.leave(A)
    work.check_invariants()
    assert work.next_runs(b, 0.2) == ((1, 3),)


def test_rule_4_who_is_nearly_done_or_has_just_been_asked_is_left_alone() -> None:
    work = striping(8, sharing=2)
    a, b = work.join(A, 0.0), work.join(B, 0.0)
    work.next_runs(a, 0.0)
    work.next_runs(b, 0.0)
    bring(work, b, 4, 0.01)
    assert work.to_let_go(0.049) is None, "asked a moment ago: nothing can have come yet"
    bring(work, a, 3, 0.06)
    assert work.to_let_go(0.06) is None, "the rest comes in 20 ms: not worth it"


def test_rule_5_what_a_failed_holder_owed_comes_first_again() -> None:
    work = striping(48)
    a, b = work.join(A, 0.0), work.join(B, 0.0)
    work.next_runs(a, 0.0)
    work.next_runs(b, 0.0)
    bring(work, a, 2, 0.1)
    work.leave(A)
    work.leave(C)
    work.check_invariants()
    bring(work, b, 7, 0.1)
    assert work.next_runs(b, 0.2)[0][0] == 2


@pytest.mark.parametrize("seed", range(30))
def test_by_chance_every_chunk_arrives_once_whoever_fails(seed: int) -> None:
    """Holders of any speed join, bring, stall and fail; one honest holder is left, and brings the rest."""
    chance = Random(seed)
    work = striping(chance.randrange(1, 200))
    shares = {A: work.join(A, 0.0)}
    arrived: list[int] = []
    now = 0.0
    for _ in range(400):
        now += chance.random() / 10
        work.check_invariants()
        peer = chance.choice((A, B, C))
        if peer not in shares:
            shares[peer] = work.join(peer, now)
        elif peer != A and chance.random() < 0.1:
            work.leave(peer)
            del shares[peer]
        else:
            arrived += bring(work, shares[peer], chance.randrange(6), now)
            work.next_runs(shares[peer], now)
        if (found := work.to_let_go(now)) is not None and found[0] != A:
            work.leave(found[0])
            del shares[found[0]]
    for peer in (B, C):
        work.leave(peer)
    work.alone()
    while work.next_runs(shares[A], now) or shares[A].owed:
        arrived += bring(work, shares[A], 1000, now)
    assert sorted(arrived) == list(range(len(arrived)))
    assert len(arrived) == len(set(arrived))


def test_runs_are_what_is_in_a_row() -> None:
    assert runs_of([]) == ()
    assert runs_of([3]) == ((3, 1),)
    assert runs_of([0, 1, 2, 5, 6, 9]) == ((0, 3), (5, 2), (9, 1))
