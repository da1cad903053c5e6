"""Terms: what an elector promises, what it refuses, and how a root and a standby ask. Each test names the rule of terms.py."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from protocol.errors import RemoteProtocolError
from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.node import OverlayNode
from protocol.overlay.promise import Promise, TreePromise
from protocol.overlay.terms import LEAP_MAX, QUESTIONS_MAX, REASON_MAX, Terms
from protocol.wire.electing import RootQuery, RootReply, TermReply, TermRequest
from protocol.wire.messages import LeafProbe, LeafProbeReply, Multicast, RoundOpen, Route, Superseded
from tests.overlay.scene import ME, P, facts, member, node_id, of, peer, sent

TREE = node_id(0x10)
A, B = peer(0x90), peer(0x70)


def root(term: int) -> Peer:
    return Peer(TREE, "root", 7000 + term, term)


class Elector:
    """ME, and what its failure detector says as the test dictates it."""

    def __init__(self) -> None:
        self.lives: dict[NodeId, Peer] = {}
        self.heard: set[NodeId] = set()
        self.terms = Terms(ME, P, self.lives.get, lambda identifier, now: identifier in self.heard)

    def asked(self, term: int, version: int = 1, *, by: Peer | None = None, sounding: bool = False) -> TermReply:
        (sent_,) = self.terms.term_requested(by or root(term), TermRequest(5, TREE, term, version, sounding), 0.0)
        self.terms.check_invariants()
        assert isinstance(sent_, fx.Send)
        assert isinstance(sent_.message, TermReply)
        return sent_.message


def test_rule_2_a_promise_is_kept_against_earlier_terms_and_gives_way_to_later_ones() -> None:
    elector = Elector()
    assert elector.asked(3) == TermReply(5, True, 3, 0, 0)
    assert elector.asked(2) == TermReply(5, False, 3, 1, 3, "term 3 is promised")
    assert elector.asked(3, 2).granted, "the root itself asks for each version"
    assert elector.asked(4, 2).granted
    assert not elector.asked(3, 3).granted
    assert elector.terms.promised(TREE) == 4


def test_rule_2_a_later_root_hears_of_the_newest_version_that_was_agreed_to() -> None:
    elector = Elector()
    assert elector.asked(1, 7) == TermReply(5, True, 1, 0, 0)
    assert elector.asked(2, 0) == TermReply(5, True, 2, 7, 1), "it has found version 5, say, and may not go on from it"
    assert elector.asked(3, 0) == TermReply(5, True, 3, 7, 1), "the one before has promised only, and written nothing"
    assert elector.asked(3, 7) == TermReply(5, True, 3, 7, 1)
    assert elector.asked(2, 9) == TermReply(5, False, 3, 7, 3, "term 3 is promised"), "that of the later term, of the same number"


def test_rule_8_who_may_have_forgotten_says_so_until_two_versions_that_it_agreed_to_were_committed() -> None:
    """The first may have been carried by who was asked before this life began."""
    elector = Elector()

    def remembers(*questions: tuple[int, int]) -> list[bool]:
        return [elector.asked(*question).remembers for question in questions]

    assert remembers((2, 0), (2, 7), (2, 7), (2, 8), (2, 7), (2, 8)) == [False] * 6
    assert remembers((3, 0), (3, 9), (3, 10)) == [False] * 3, "another root: was 8 committed?"
    assert remembers((3, 11), (3, 11), (4, 0), (4, 12)) == [True] * 4
    assert not elector.asked(3, 12).granted


def test_rule_8_what_was_promised_before_a_life_began_is_not_settled_by_what_was_carried_before_that() -> None:
    """Five electors. Root 2 has its half (a, c, e), and hangs; then e forgets, and root 1 goes on with what a and b have granted before."""
    electors = {name: Elector() for name in "abcde"}

    def asks(term: int, version: int, names: str) -> dict[str, TermReply]:
        return {name: electors[name].asked(term, version) for name in names}

    for version in (0, 1, 2, 3):
        asks(1, version, "abcde")
    assert all(reply.granted and reply.remembers for reply in {**asks(1, 4, "ab"), **asks(2, 0, "ace")}.values())
    electors["e"] = Elector()
    assert all(reply.granted for reply in asks(1, 4, "de").values()), "version 4 is carried, by a, b, d and the e that has forgotten"
    fifth = asks(1, 5, "abcde")
    assert [name for name, reply in fifth.items() if not reply.granted] == ["a", "c"]
    assert not fifth["e"].remembers, "its voice would make three of five against root 2's half"


def test_rule_2_of_two_roots_of_one_term_the_first_has_it() -> None:
    """Two standbys that have found the same record, and whose clocks are behind its term."""
    elector = Elector()
    twin = replace(root(3), port=7999)
    assert elector.asked(3).granted
    assert elector.asked(3, by=twin) == TermReply(5, False, 3, 1, 3, "term 3 is promised")
    assert elector.asked(3, 2).granted
    assert elector.asked(4, by=replace(twin, incarnation=4)).granted


def test_rule_2_what_was_agreed_to_is_not_taken_back_by_a_question_that_was_overtaken() -> None:
    """It was asked again on a connection that then broke, and read after the next one."""
    elector = Elector()
    for version in (6, 7, 6):
        assert elector.asked(1, version).granted
    assert elector.asked(2, 0) == TermReply(5, True, 2, 7, 1)


def test_rule_2_a_root_asks_for_its_own_term_alone() -> None:
    elector = Elector()
    for impostor in (A, root(2)):
        with pytest.raises(RemoteProtocolError, match="which it does not root"):
            elector.asked(3, by=impostor)
    assert elector.terms.promised(TREE) == 0


def test_rule_7_promises_of_strange_trees_without_end_do_not_take_the_place_of_those_of_our_own() -> None:
    """Anybody may say that it roots a tree: 1,024 of them must not keep the root of ours from being promised anything."""
    ours = {TREE}
    terms = Terms(ME, replace(P, trees_max=3), {}.get, lambda identifier, now: False, ours.__contains__)

    def granted(tree: NodeId, term: int) -> bool:
        (reply,) = terms.term_requested(Peer(tree, "root", 1, term), TermRequest(1, tree, term, 1), 0.0)
        return bool(reply.message.granted)  # type: ignore[union-attr]

    assert granted(TREE, 5)
    assert all(granted(node_id(number), 4) for number in range(0x20, 0x40))
    assert not granted(TREE, 4), "it was not forgotten"
    assert granted(TREE, 6)
    assert granted(node_id(0x20), 1), "the longest ago goes first"
    ours |= {node_id(0x20), node_id(0x3F)}
    assert not granted(node_id(0x50), 4), "no promise of a tree that we are in is ever forgotten"
    assert granted(TREE, 7)


def test_rule_7_a_term_of_no_clock_is_refused_and_later_roots_are_not_locked_out() -> None:
    elector = Elector()
    now_ms = 1_800_000_000_000
    elector.terms = Terms(replace(ME, incarnation=now_ms), P, {}.get, lambda identifier, now: False)
    for sounding in (False, True):
        with pytest.raises(RemoteProtocolError, match="is of no clock"):
            elector.asked((1 << 62) - 2, by=root((1 << 62) - 2), sounding=sounding)
    assert elector.asked(now_ms).granted
    ahead = now_ms + LEAP_MAX
    assert elector.asked(ahead).granted, "a clock that was wrong by a century"
    assert elector.asked(ahead + 1).granted, "whoever takes its place has heard of that term"
    unset = Elector()
    assert unset.asked(now_ms).granted, "it is ours that begins with 1970"


def test_an_elector_with_a_disk_answers_when_its_promise_is_kept_and_keeps_it_in_its_next_life() -> None:
    terms = Terms(ME, P, {}.get, lambda identifier, now: False, kept=())
    (kept,) = terms.term_requested(root(4), TermRequest(5, TREE, 4, 7), 0.0)
    assert isinstance(kept, fx.KeepPromises)
    assert kept.promises == (TreePromise(TREE, Promise(4, 7, 4, root(4))),)
    assert kept.answer == fx.Send(root(4), TermReply(5, True, 4, 0, 0))
    (refused,) = terms.term_requested(root(3), TermRequest(6, TREE, 3, 8), 0.0)
    assert isinstance(refused, fx.Send), "nothing new was promised"
    elector = Elector()
    elector.terms = Terms(replace(ME, incarnation=ME.incarnation + 1), P, {}.get, lambda identifier, now: False, kept=kept.promises)
    assert elector.terms.promised(TREE) == 4
    (answer,) = elector.terms.term_requested(root(3), TermRequest(7, TREE, 3, 8), 0.0)
    assert answer == fx.Send(root(3), TermReply(7, False, 4, 7, 4, "term 4 is promised"))
    (answer,) = elector.terms.term_requested(root(9), TermRequest(8, TREE, 9, 0), 0.0)
    assert answer.answer.message == TermReply(8, True, 9, 7, 4), "and tells the next root of the version that it agreed to"  # type: ignore[union-attr]


def test_without_a_disk_the_next_life_is_silent_until_it_is_in_the_ring() -> None:
    """The last one may have promised a later term; in the ring, the later root is heard."""
    elector, joined = Elector(), False
    elector.terms = Terms(ME, P, elector.lives.get, lambda identifier, now: False, in_ring=lambda: joined)
    question = TermRequest(5, TREE, 3, 7)
    assert elector.terms.term_requested(root(3), question, 0.0) == []
    assert elector.terms.promised(TREE) == 0
    joined = True
    elector.lives[TREE] = root(4)
    assert elector.asked(3, 7) == TermReply(5, False, 0, 0, 0, f"a later root lives at {root(4).address}")
    assert elector.asked(4, 7).granted


@pytest.mark.parametrize("remembers", [True, False])
def test_with_a_disk_too_who_remembers_nothing_is_silent_until_it_is_in_the_ring(remembers: bool) -> None:
    """Its file may have been lost, or was torn."""
    kept = [TreePromise(TREE, Promise(3, 6, 3, root(3)))] if remembers else []
    joined = False
    terms = Terms(ME, P, lambda identifier: None, lambda identifier, now: False, in_ring=lambda: joined, kept=kept)
    question = TermRequest(6, TREE, 4, 7)
    assert bool(terms.term_requested(root(4), question, 0.0)) == remembers
    joined = True
    assert terms.term_requested(root(4), question, 0.0)
    joined = False
    assert terms.term_requested(root(4), question, 0.0), "it has a promise on its disk by now"


def test_the_last_word_of_a_life_that_is_over_is_not_taken_for_its_next_ones() -> None:
    terms = Elector().terms
    later = replace(A, incarnation=A.incarnation + 1)
    terms.ask(7, TermRequest(7, TREE, 3, 7), (later,))
    assert terms.replied(A, TermReply(7, True, 3, 6, 3)) == []
    (word,) = terms.replied(later, TermReply(7, False, 9, 6, 3, "term 9 is promised"))
    assert isinstance(word, fx.ElectorAnswered)
    assert word.answer == "refused"


def test_a_question_is_withdrawn_when_the_next_one_about_its_tree_is_put() -> None:
    """Nobody is asked for a version of the past, and so no new life agrees to one."""
    terms = Elector().terms
    terms.ask(7, TermRequest(7, TREE, 3, 7), (A, B))
    terms.ask(8, TermRequest(8, TREE, 3, 8), (B,))
    terms.ask(1, TermRequest(1, node_id(0x20), 3, 1), (A,))
    assert terms.dial_ended(A, replace(A, incarnation=A.incarnation + 1), refused=False) == [
        fx.Send(replace(A, incarnation=A.incarnation + 1), TermRequest(1, node_id(0x20), 3, 1))
    ]
    assert terms.replied(A, TermReply(7, True, 3, 6, 3)) == []
    assert terms.replied(B, TermReply(8, True, 3, 6, 3))


def test_rule_5_who_ends_each_connection_is_asked_with_the_next_question() -> None:
    """It does not understand ours, perhaps: without this it was asked again at the pace of the network."""
    terms = Elector().terms
    question = TermRequest(7, TREE, 3, 7)
    terms.ask(7, question, (A,))
    assert terms.lost(A) == [fx.Dial(A)]
    assert terms.dial_ended(A, A, refused=False) == [fx.Send(A, question)]
    assert terms.lost(A) == []
    terms.ask(8, replace(question, request=8), (A,))
    assert terms.lost(A) == [fx.Dial(A)]
    (gone,) = terms.dial_ended(A, None, refused=True)
    assert isinstance(gone, fx.ElectorAnswered)
    assert (gone.request, gone.answer) == (8, "gone")


def test_rule_3_an_earlier_life_than_the_one_promised_or_heard_is_of_the_past() -> None:
    elector = Elector()
    assert not elector.terms.is_of_the_past(root(3))
    elector.asked(4)
    assert elector.terms.is_of_the_past(root(3))
    assert not elector.terms.is_of_the_past(root(4))
    elector.lives[A.id] = replace(A, incarnation=9)
    assert elector.terms.is_of_the_past(A)


def test_rule_4_who_hears_the_root_says_no_to_a_standby_and_promises_nothing_in_any_case() -> None:
    elector = Elector()
    elector.lives[TREE] = root(3)
    elector.heard.add(TREE)
    assert elector.asked(4, by=A, sounding=True) == TermReply(5, False, 0, 0, 0, "the root at root:7003 is heard")
    elector.heard.clear()
    assert elector.asked(4, by=A, sounding=True) == TermReply(5, True, 0, 0, 0)
    assert elector.terms.promised(TREE) == 0
    assert elector.asked(3).granted, "the root that all thought dead"


def test_rule_4_a_standby_is_too_late_where_the_term_or_a_later_one_is_taken() -> None:
    elector = Elector()
    elector.asked(4)
    assert elector.asked(4, by=A, sounding=True).reason == "term 4 is promised"
    elector.lives[TREE] = root(6)
    assert elector.asked(5, by=A, sounding=True).reason == "a later root lives at root:7006"


# --- asking ------------------------------------------------------------------------------------------------------------


def asking() -> tuple[OverlayNode, list[fx.Effect]]:
    """The root of the tree, active, with A and B as neighbours; both are asked about version 3."""
    node = OverlayNode(root(1), P, Random(1))
    node.handle(ev.Started(), 0.0)
    for other in (A, B):
        for message in (LeafProbe((root(1),)), LeafProbeReply((root(1),))):
            node.handle(ev.MessageReceived(other, message), 0.0)
    return node, node.handle(ev.AskElectors(3, TREE, 1, 3, (A, B)), 1.0)


def test_rule_5_each_answer_comes_back_once() -> None:
    node, effects = asking()
    question = TermRequest(3, TREE, 1, 3)
    assert sent(effects, TermRequest) == [(A, question), (B, question)]
    answers = node.handle(ev.MessageReceived(A, TermReply(3, True, 1, 2, 1)), 1.1)
    assert of(fx.ElectorAnswered, answers) == [fx.ElectorAnswered(3, A.id, "granted", 1, 2, 1)]
    assert node.handle(ev.MessageReceived(A, TermReply(3, True, 1, 2, 1)), 1.1) == []
    refused = node.handle(ev.MessageReceived(B, TermReply(3, False, 2, 3, 2, "term 2 is promised")), 1.2)
    assert of(fx.ElectorAnswered, refused) == [fx.ElectorAnswered(3, B.id, "refused", 2, 3, 2, "term 2 is promised")]


def test_rule_5_an_answer_to_nothing_and_from_nobody_asked_is_nothing() -> None:
    node, _ = asking()
    assert not of(fx.ElectorAnswered, node.handle(ev.MessageReceived(A, TermReply(9, True, 1, 2, 1)), 1.1))
    assert not of(fx.ElectorAnswered, node.handle(ev.MessageReceived(peer(0x33), TermReply(3, True, 1, 2, 1)), 1.1))


def test_rule_5_who_refuses_a_fresh_dial_is_gone_and_who_is_silent_is_not() -> None:
    node, _ = asking()
    dialled = of(fx.Dial, node.handle(ev.PeerLost(A, "connection reset"), 1.1))
    assert fx.Dial(A) in dialled
    gone = node.handle(ev.DialEnded(A, None, refused=True), 1.2)
    assert [(e.elector, e.answer) for e in of(fx.ElectorAnswered, gone)] == [(A.id, "gone")]
    node.handle(ev.PeerLost(B, "no route"), 1.1)
    assert not of(fx.ElectorAnswered, node.handle(ev.DialEnded(B, None, reason="no answer"), 1.6))


def test_rule_5_the_next_life_of_an_elector_is_asked_in_its_place() -> None:
    node, _ = asking()
    node.handle(ev.PeerLost(A, "connection reset"), 1.1)
    again = replace(A, incarnation=A.incarnation + 1)
    effects = node.handle(ev.DialEnded(A, again), 1.2)
    assert (again, TermRequest(3, TREE, 1, 3)) in sent(effects, TermRequest)
    answers = node.handle(ev.MessageReceived(again, TermReply(3, True, 1, 0, 0)), 1.3)
    assert [e.answer for e in of(fx.ElectorAnswered, answers)] == ["granted"]


def test_old_questions_are_forgotten() -> None:
    terms = Elector().terms
    for number in range(QUESTIONS_MAX + 5):
        terms.ask(number, TermRequest(number, node_id(number), 1, number), (A,))
        terms.check_invariants()
    assert terms.replied(A, TermReply(0, True, 1, 0, 0)) == []
    assert terms.replied(A, TermReply(QUESTIONS_MAX, True, 1, 0, 0))


# --- who roots the tree ---------------------------------------------------------------------------------------------------


def test_rule_6_the_root_answers_for_itself() -> None:
    node, asked = asking()
    effects = node.handle(ev.MessageReceived(A, Route(TREE, RootQuery(2, TREE, A))), 1.0)
    (version,) = {message.version for _, message in sent(asked, TermRequest)}
    assert sent(effects, RootReply) == [(A, RootReply(2, True, 1, version))], "with the version that it has put to its electors"


def test_rule_6_where_there_is_no_root_the_closest_says_so_with_the_latest_term_that_it_knows() -> None:
    node = OverlayNode(ME, P, Random(1))
    node.handle(ev.Started(), 0.0)
    node.handle(ev.MessageReceived(root(7), TermRequest(1, TREE, 7, 2)), 0.1)
    node.handle(ev.PeerLost(root(7), "connection reset"), 0.2)
    node.handle(ev.DialEnded(root(7), None, refused=True), 0.2)
    effects = node.handle(ev.AskRoot(4, TREE), 0.3)
    assert of(fx.RootAnswered, effects) == [fx.RootAnswered(4, ME, False, 7, 2)], "alone in its ring it is the closest itself"


def test_rule_3_orders_of_a_root_whose_successor_is_promised_are_refused() -> None:
    node = OverlayNode(ME, P, Random(1))
    node.handle(ev.Started(), 0.0)
    node.handle(ev.JoinTree(TREE, member(ME)), 0.1)
    node.handle(ev.MessageReceived(root(4), TermRequest(1, TREE, 4, 2)), 0.2)
    order = Multicast(TREE, (3, 9), RoundOpen("train", 5, 1, "exact", root(3)))
    effects = node.handle(ev.MessageReceived(A, order), 0.3)
    assert "order_refused" in facts(effects)
    assert not of(fx.MulticastReceived, effects)


def test_rule_3_a_root_that_speaks_after_its_successor_was_promised_is_told_and_heard_no_further_though_that_one_is_dead() -> None:
    """It was stopped, another took its place, committed, and was killed; it wakes, and nobody brings it anything. Without a word to it the
    run stood still for ever, for all who watched for a root were told that one lives."""
    node = OverlayNode(ME, P, Random(1))
    node.handle(ev.Started(), 0.0)
    successor = root(4)
    node.handle(ev.MessageReceived(successor, TermRequest(1, TREE, 4, 2)), 0.2)
    node.handle(ev.PeerLost(successor, "connection reset"), 0.3)
    node.handle(ev.DialEnded(successor, None, refused=True), 0.3)
    for message in (LeafProbe((), ()), TermRequest(2, TREE, 3, 0)):
        effects = node.handle(ev.MessageReceived(root(3), message), 0.4)
        assert effects == [fx.Send(root(3), Superseded(successor))]
    assert node.detector.life_of(TREE) is None
    assert not sent(node.handle(ev.MessageReceived(root(5), LeafProbe((), ())), 0.5), Superseded)
    assert node.detector.life_of(TREE) == root(5)


def test_scribe_rule_9_who_has_an_order_of_a_later_root_says_so_to_an_earlier_one() -> None:
    """It has promised nothing, or has forgotten it, and would take all orders of the earlier root for old ones."""
    node = OverlayNode(ME, P, Random(1))
    node.handle(ev.Started(), 0.0)
    node.handle(ev.JoinTree(TREE, member(ME)), 0.1)
    tree = node.scribe.trees[TREE]
    forged = Multicast(TREE, (9, 1), RoundOpen("train", 5, 1, "exact", root(8)), resumes=True)
    tree.multicasts.take(forged)
    assert not sent(node.handle(ev.MessageReceived(root(3), LeafProbe((), ())), 0.2), Superseded), "nobody's: its giver is another"
    tree.multicasts.take(Multicast(TREE, (9, 2), RoundOpen("train", 5, 1, "exact", root(9)), (9, 1)))
    assert node.handle(ev.MessageReceived(root(3), LeafProbe((), ())), 0.3) == [fx.Send(root(3), Superseded(root(9)))]
    assert not sent(node.handle(ev.MessageReceived(root(9), LeafProbe((), ())), 0.4), Superseded)


# --- what peers may not say (P7) ---------------------------------------------------------------------------------------------


def test_nobody_but_the_root_says_that_it_is_the_root_and_only_when_asked() -> None:
    node, _ = asking()
    assert not of(fx.RootAnswered, node.handle(ev.MessageReceived(A, RootReply(7, True, 1)), 1.0)), "nobody was asked"
    node = OverlayNode(ME, P, Random(1))
    node.handle(ev.Started(), 0.0)
    for lie, by in ((RootReply(4, True, 1), A), (RootReply(4, False, 1), root(1))):
        node.terms.ask_root(4, TREE)
        with pytest.raises(RemoteProtocolError, match="tree 10"):
            node.handle(ev.MessageReceived(by, lie), 1.0)
    assert of(fx.RootAnswered, node.handle(ev.MessageReceived(root(1), RootReply(4, True, 1)), 1.0))
    assert not of(fx.RootAnswered, node.handle(ev.MessageReceived(root(1), RootReply(4, True, 1)), 1.0)), "once"


@pytest.mark.parametrize("lie", [TermReply(3, True, 1, 2, 9), TermReply(3, True, 1, 1 << 62, 1), TermReply(3, False, -1, 0, 0)])
def test_an_elector_does_not_say_what_cannot_be(lie: TermReply) -> None:
    """That it has agreed to a later term than the one that it agrees to now; or numbers that nobody can count on from."""
    node, _ = asking()
    with pytest.raises(RemoteProtocolError):
        node.handle(ev.MessageReceived(A, lie), 1.1)


def test_a_root_of_no_possible_term_is_not_promised() -> None:
    elector = Elector()
    with pytest.raises(RemoteProtocolError, match="cannot be"):
        elector.asked(1 << 62, by=root(1 << 62))
    assert elector.terms.promised(TREE) == 0


def test_a_reason_without_end_is_cut() -> None:
    node, _ = asking()
    (answer,) = of(fx.ElectorAnswered, node.handle(ev.MessageReceived(A, TermReply(3, False, 2, 3, 2, "x" * 9999)), 1.1))
    assert len(answer.reason) == REASON_MAX
