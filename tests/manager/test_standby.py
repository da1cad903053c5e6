"""The standby of one tree: what it watches for, what it needs before it takes over, and what keeps it from it. Rules of standby.py."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fmrec_manager.standby import AskForRoot, LookForRecord, Patience, Sound, Standby, StandbyOrder, TakeOver
from protocol.identifiers import Peer
from protocol.overlay.effects import ElectorAnswered, RootAnswered
from tests.manager.stage import TREE, info, named

PATIENCE = Patience(interval_s=0.2, settle_s=0.2, patience_s=2.0, electors_max=12)
ROOT = Peer(TREE, "127.0.0.1", 7700, 100)
CLOSEST = info("a").peer
MEMBERS = [info(name) for name in "abc"]
CLOCK = 5000


@dataclass
class Watch:
    """A standby and its time; every order is kept."""

    standby: Standby = field(default_factory=lambda: Standby(TREE, PATIENCE))
    now: float = 0.0
    orders: list[StandbyOrder] = field(default_factory=list)

    def took(self, orders: list[StandbyOrder]) -> list[StandbyOrder]:
        self.orders += orders
        return orders

    def after(self, seconds: float) -> list[StandbyOrder]:
        end, given = self.now + seconds, []
        while (due := self.standby.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            given += self.took(self.standby.tick(self.now))
        self.now = end
        return given

    def root_answers(self, root: Peer = ROOT, version: int = 0) -> list[StandbyOrder]:
        return self.took(self.standby.answered(RootAnswered(0, root, True, root.incarnation, version), self.now, alone=False))

    def closest_answers(self, term: int = 0, version: int = 0, *, alone: bool = False) -> list[StandbyOrder]:
        return self.took(self.standby.answered(RootAnswered(0, CLOSEST, False, term, version), self.now, alone=alone))

    def finds(self, *names: str, term: int = 100, certain: bool = False, clock: int = CLOCK) -> list[StandbyOrder]:
        return self.took(self.standby.found([info(name) for name in names], term, certain, self.now, clock))

    def finds_nothing(self, *, certain: bool) -> list[StandbyOrder]:
        return self.took(self.standby.found((), 0, certain, self.now, CLOCK))

    def hears(self, name: str, answer: Any, **facts: Any) -> list[StandbyOrder]:
        return self.took(self.standby.heard(ElectorAnswered(0, named(name), answer, **facts), self.now))

    def root_is_gone(self) -> list[StandbyOrder]:
        """It was there, and the ring has said twice that it is not."""
        self.root_answers()
        self.closest_answers()
        self.after(PATIENCE.settle_s)
        return self.closest_answers()


def test_rule_3_a_standby_that_nobody_answers_says_so_and_waits_until_there_is_a_ring_again() -> None:
    """All may be dead, or it is cut off: it cannot know which."""
    watch = Watch(now=1000.0)
    watch.after(0.0)
    assert watch.standby.reason == "looking for the root"
    watch.root_answers()
    assert set(watch.after(PATIENCE.patience_s + 1)) == {AskForRoot()}
    assert (watch.standby.stage, watch.standby.reason) == ("watching", "nobody in the ring answers: cut off, or alone")
    watch.closest_answers()
    watch.after(PATIENCE.settle_s)
    assert watch.closest_answers() == [LookForRecord()], "the agents are back, and the root is not"


def test_rule_3_what_it_says_itself_is_no_word_of_the_ring() -> None:
    """Alone, it is the node closest to the treeId."""
    watch = Watch()
    watch.root_answers()
    for _ in range(20):
        watch.after(PATIENCE.settle_s)
        assert watch.closest_answers(alone=True) == []
    assert watch.standby.reason == "nobody in the ring answers: cut off, or alone"


def test_from_watching_to_rooting() -> None:
    watch = Watch()
    assert watch.after(0.0) == [AskForRoot()]
    watch.root_answers()
    assert watch.standby.reason == "the root at 127.0.0.1:7700 lives"
    assert watch.root_is_gone() == [LookForRecord()]
    (sound,) = watch.finds("a", "b", "c")
    assert isinstance(sound, Sound)
    assert (sound.term, {peer.id for peer in sound.electors}) == (CLOCK, {member.peer.id for member in MEMBERS})
    assert watch.hears("a", "granted") == []
    (taken,) = watch.hears("b", "granted")
    assert taken == TakeOver(CLOCK, f"the root at 127.0.0.1:7700 is gone, says {CLOSEST.id.short}; 2 of 3 electors agree")
    assert watch.standby.next_deadline() is None
    assert watch.hears("c", "granted") + watch.root_answers() + watch.closest_answers() == [], "it is taken over once"


def test_rule_1_it_asks_each_interval() -> None:
    watch = Watch()
    assert watch.after(1.0) == [AskForRoot()] * 6


def test_rule_2_once_is_not_enough_and_the_root_answering_again_ends_it() -> None:
    watch = Watch()
    watch.root_answers()
    assert watch.closest_answers() == []
    watch.after(0.1)
    assert watch.closest_answers() == [], "a ring in repair"
    watch.root_answers()
    watch.after(0.3)
    assert watch.closest_answers() == [], "it counts anew"


def test_rule_3_silence_is_no_verdict() -> None:
    watch = Watch()
    watch.root_answers()
    watch.after(60.0)
    assert set(watch.orders) == {AskForRoot()}


def test_rule_4_one_that_hears_the_root_is_not_overruled_by_a_few() -> None:
    watch = Watch()
    watch.root_is_gone()
    watch.finds("a", "b", "c")
    watch.hears("a", "granted")
    watch.hears("b", "refused", reason="the root at 127.0.0.1:7700 is heard")
    watch.hears("c", "refused", reason="the root at 127.0.0.1:7700 is heard")
    assert watch.standby.stage == "watching"
    assert "2 of 3 electors refuse: the root at 127.0.0.1:7700 is heard" in watch.standby.reason
    assert not [order for order in watch.orders if isinstance(order, TakeOver)]


def test_rule_4_on_the_smaller_side_of_a_cut_it_stays_a_standby_and_tries_again() -> None:
    """Two of three electors are on the other side with the root: they say nothing."""
    watch = Watch()
    for _ in range(3):
        assert watch.root_is_gone() == [LookForRecord()]
        watch.finds("a", "b", "c")
        watch.hears("a", "granted")
        watch.after(PATIENCE.patience_s)
        assert watch.standby.stage == "watching"
    assert not [order for order in watch.orders if isinstance(order, TakeOver)]


def test_rule_4_the_gone_have_no_say() -> None:
    """The manager and two of three agents were on one machine, which burnt."""
    watch = Watch()
    watch.root_is_gone()
    watch.finds("a", "b", "c")
    watch.hears("b", "gone")
    watch.hears("c", "gone")
    assert isinstance(watch.hears("a", "granted")[0], TakeOver)


def test_rule_4_a_root_that_answers_while_the_electors_are_asked_ends_it() -> None:
    watch = Watch()
    watch.root_is_gone()
    watch.finds("a", "b", "c")
    watch.hears("a", "granted")
    watch.root_answers()
    assert watch.hears("b", "granted") == []
    assert watch.standby.stage == "watching"


def test_rule_5_a_tree_that_nobody_has_begun_is_left_alone() -> None:
    watch = Watch()
    watch.closest_answers()
    watch.after(0.2)
    watch.closest_answers()
    assert watch.finds_nothing(certain=True) == []
    assert watch.standby.reason == "no manager has begun this tree yet"


def test_rule_5_a_root_that_died_before_it_committed_anything_is_followed() -> None:
    watch = Watch()
    watch.root_is_gone()
    (taken,) = [order for order in watch.finds_nothing(certain=True) if isinstance(order, TakeOver)]
    assert "there are no electors" in taken.reason


@pytest.mark.parametrize("told_by", ["the root", "who is closest", "who is closest, and no root was ever heard"])
def test_rule_5_where_something_was_committed_it_never_begins_anew(told_by: str) -> None:
    """On the smaller side of a cut, with nobody who has any of it: the run goes on on the other side."""
    watch = Watch()
    if "no root" not in told_by:
        watch.root_answers(version=6 if told_by == "the root" else 0)
    watch.closest_answers(version=6 if told_by != "the root" else 0)
    watch.after(PATIENCE.settle_s)
    assert watch.closest_answers() == [LookForRecord()]
    assert watch.finds_nothing(certain=True) == []
    assert watch.standby.stage == "watching"
    assert watch.standby.reason == "version 6 of the tree's record was committed, and nobody here has any: start who holds it"
    watch.after(PATIENCE.interval_s)
    assert watch.closest_answers() == [LookForRecord()], "and it looks again"
    assert isinstance(watch.finds("a")[0], Sound)


def test_rule_5_that_nothing_was_found_is_no_verdict_while_somebody_is_silent() -> None:
    watch = Watch()
    watch.root_is_gone()
    assert watch.finds_nothing(certain=False) == []
    assert watch.standby.stage == "watching"
    watch.after(0.2)
    assert watch.closest_answers() == [LookForRecord()], "and it looks again"


@pytest.mark.parametrize(("answered", "on_record", "clock", "term"), [(0, 100, 50, 101), (700, 100, 50, 701), (0, 100, 5000, 5000)])
def test_rule_6_its_term_is_later_than_any_that_it_has_heard_of(answered: int, on_record: int, clock: int, term: int) -> None:
    watch = Watch()
    watch.root_answers()
    watch.closest_answers(answered)
    watch.after(0.2)
    watch.closest_answers(answered)
    (sound,) = watch.finds("a", term=on_record, clock=clock)
    assert isinstance(sound, Sound)
    assert sound.term == term


def test_rule_6_who_was_told_of_a_later_term_comes_back_with_one_after_it() -> None:
    watch = Watch()
    watch.root_is_gone()
    watch.finds("a")
    watch.hears("a", "refused", promised=9000, reason="term 9000 is promised")
    watch.after(0.2)
    watch.closest_answers()
    (sound,) = watch.finds("a")
    assert isinstance(sound, Sound)
    assert sound.term == 9001


def test_rule_6_a_few_who_have_promised_a_later_term_would_not_serve_its_root_so_it_asks_for_one_after_that() -> None:
    """To a root that is gone, and whose clock was ahead."""
    watch = Watch()
    watch.root_is_gone()
    watch.finds("a", "b", "c")
    watch.hears("a", "refused", promised=9000, reason="term 9000 is promised")
    watch.hears("b", "granted")
    assert watch.hears("c", "granted") == []
    assert (watch.standby.stage, watch.standby.reason) == ("watching", "term 9000 was promised to another root: asking for a later one")
    watch.after(0.2)
    watch.closest_answers()
    (sound,) = watch.finds("a", "b", "c")
    assert isinstance(sound, Sound)
    assert sound.term == 9001
    watch.hears("b", "granted")
    (order,) = watch.hears("c", "granted")
    assert isinstance(order, TakeOver)
    assert order.term == 9001


def test_rule_5_a_term_that_was_heard_of_is_no_root_that_was_seen() -> None:
    """What that root has committed nobody here can say; who holds it may only be away. To begin anew would be to write over that."""
    watch = Watch()
    watch.closest_answers(9000)
    watch.after(0.2)
    watch.closest_answers(9000)
    assert watch.finds_nothing(certain=True) == []
    assert watch.standby.reason.startswith("a root of term 9000 was here, and nobody here has its record: start who holds it")
    watch.standby.superseded(9001)
    watch.closest_answers(9001)
    watch.after(0.2)
    watch.closest_answers(9001)
    assert watch.finds_nothing(certain=True) == []
    assert "term 9001" in watch.standby.reason


def test_a_root_that_is_superseded_watches_the_one_after_it_and_comes_later_than_that() -> None:
    watch = Watch()
    watch.standby.roots_it()
    assert watch.after(10.0) == []
    watch.standby.superseded(9000)
    assert watch.after(0.0) == [AskForRoot()]
    later = replace(ROOT, incarnation=9000)
    watch.root_answers(later)
    assert watch.standby.reason == f"the root at {later.address} lives"
    watch.closest_answers()
    watch.after(0.2)
    watch.closest_answers()
    (sound,) = watch.finds("a")
    assert isinstance(sound, Sound)
    assert sound.term == 9001


def test_whatever_happens_it_takes_over_at_most_once_and_only_with_half_of_the_voices() -> None:
    taken = 0
    for seed in range(200):
        chance, watch = random.Random(seed), Watch()
        granted: set[str] = set()
        for _ in range(80):
            watch.after(chance.choice((0.0, 0.05, 0.2, 0.5)))
            what = chance.choice(("root", "closest", "closest", "closest", "finds", "nothing", "hears", "hears", "hears"))
            before = watch.standby.stage
            if what == "root" and chance.random() < 0.4:
                watch.root_answers()
            elif what == "closest":
                watch.closest_answers(chance.randrange(9000))
            elif what == "finds":
                watch.finds("a", "b", "c", clock=chance.randrange(9000))
            elif what == "nothing" and chance.random() < 0.2:
                watch.finds_nothing(certain=False)
            elif what == "hears":
                name, answer = chance.choice("abc"), chance.choice(("granted", "granted", "refused"))
                granted = granted | {name} if answer == "granted" and before == "sounding" else granted - {name}
                watch.hears(name, answer, promised=chance.randrange(9000))
            if watch.standby.stage != "sounding" and watch.standby.stage != "taking":
                granted = set()
            if watch.standby.stage == "taking" and before != "taking":
                assert len(granted) >= 2, f"seed {seed}: with {granted} alone"
            assert watch.standby.stage == "taking" or watch.standby.next_deadline() is not None, f"seed {seed}: nothing will ever happen"
        count = sum(isinstance(order, TakeOver) for order in watch.orders)
        assert count <= 1, f"seed {seed}"
        taken += count
    assert taken > 50, "the chances are wrong: it hardly ever takes over"
