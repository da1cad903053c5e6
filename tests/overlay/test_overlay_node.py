"""The overlay node: the machines composed, what each peer may say, and what nothing that a peer says may do (P7)."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError, UnknownTree
from protocol.identifiers import Address, NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.node import OverlayNode
from protocol.overlay.terms import LEAP_HEARD_MAX
from protocol.wire import messages as m
from protocol.wire.codec import encode
from protocol.wire.electing import RootQuery
from tests.overlay.scene import ME, P, Pool, answer_dials, facts, member, node_id, of, peer, record, sent

A, B = peer(0x90), peer(0x70)
TREE = node_id(0x10)
SEED = Address("seed", 1)


def node_with(*neighbours: Peer) -> OverlayNode:
    """Active, with these in its leaf set."""
    node = OverlayNode(ME, P, Random(1))
    node.handle(ev.Started(), 0.0)
    for neighbour in neighbours:
        for message in (m.LeafProbe((ME,)), m.LeafProbeReply((ME,))):
            node.handle(ev.MessageReceived(neighbour, message), 0.0)
    return node


def said(node: OverlayNode, by: Peer, message: m.Message, now: float = 1.0) -> list[fx.Effect]:
    effects = node.handle(ev.MessageReceived(by, message), now)
    node.check_invariants()
    return effects


def test_a_killed_neighbour_is_out_of_ring_tree_and_replicas_after_one_refused_dial() -> None:
    """DESIGN 6: a killed process is known in milliseconds; everything that depended on it moves on in the same call."""
    next_closest = peer(0x78)
    node = node_with(next_closest, B)
    node.handle(ev.JoinTree(TREE, member(ME)), 0.1)
    said(node, B, m.TreeWelcome(TREE, (TREE, B.id)), 0.2)
    pushes = of(fx.Push, node.handle(ev.Replicate(record(ME, 1)), 0.3))
    assert {push.peer for push in pushes} == {next_closest, B}
    effects = answer_dials(node, node.handle(ev.PeerLost(B, "connection reset"), 1.0), 1.001, alive=False)
    assert "peer_died" in facts(effects)
    assert not of(fx.PeerDied, effects), "effects between machines stay inside"
    assert B.id not in node.pastry.leaf_set
    assert node.scribe.trees[TREE].parent is None
    assert sent(effects, m.TreeJoin) == [(next_closest, m.TreeJoin(TREE))]
    assert of(fx.CancelTransfer, effects) == [fx.CancelTransfer(push.transfer) for push in pushes if push.peer == B]


def test_who_is_joining_is_remembered_while_it_matters_and_until_it_acts_as_one_who_has_joined() -> None:
    """It is no hop of another's JOIN; strangers who say so, and who will never be one, take no room."""
    near = peer(0x84)
    node = node_with(*(peer(0x80 + step) for step in (1, 2, 3, 5, 6, 7)), *(peer(0x80 - step) for step in (1, 2, 3, 5, 6, 7)))
    for stranger in range(500):
        said(node, replace(peer(0x20), id=NodeId((0x20 << 120) + stranger)), m.LeafProbe((), (), False, False))
    said(node, near, m.LeafProbe((), (), False, False))
    assert len(node.pastry._inactive) <= 2, "the one that has the place of them all in the table, and the neighbour"
    assert near.id in node.pastry._inactive
    said(node, near, m.RowRequest(0))
    assert near.id not in node.pastry._inactive


def test_a_lost_connection_with_someone_who_does_not_matter_is_no_suspicion() -> None:
    assert node_with(A).handle(ev.PeerLost(peer(0x33), "reset"), 1.0) == []


def test_a_neighbour_that_answers_its_trial_gets_what_was_held_for_it() -> None:
    node = node_with(A, B)
    dials = node.handle(ev.PeerLost(A, "reset"), 1.0)
    assert node.handle(ev.RouteMessage(A.id, b"x"), 1.0) == []
    effects = answer_dials(node, dials, 1.1)
    assert [to for to, message in sent(effects, m.Route)] == [A]


def test_who_was_found_again_after_a_partition_is_brought_into_the_ring() -> None:
    """Rule 6 of the detector and rule 3 of Pastry together: re-dialled, found, probed, in. Its next life too."""
    for incarnation in (1, 2):
        node = node_with(A, B)
        answer_dials(node, node.handle(ev.PeerLost(A, "reset"), 1.0), 1.0, alive=False)
        back = replace(A, incarnation=incarnation)
        effects = node.handle(ev.DialEnded(A, back), 9.0)
        assert back in [to for to, _ in sent(effects, m.LeafProbe)]
        said(node, back, m.LeafProbeReply((ME,)), 9.1)
        assert node.pastry.leaf_set.get(A.id) == back


def test_a_datagram_for_our_own_id_is_delivered_here() -> None:
    node = node_with(A, B)
    assert node.handle(ev.RouteMessage(ME.id, b"x"), 1.0) == [fx.Delivered(ME.id, b"x", 0)]
    assert of(fx.Delivered, said(node, A, m.Route(ME.id, m.Datagram(b"y"), 2))) == [fx.Delivered(ME.id, b"y", 2)]


def test_we_find_our_own_record_though_the_look_up_ends_at_ourselves() -> None:
    """After a restart the node closest to its id is itself: it asks its leaf set, and its answer to itself takes no wire."""
    node = node_with(A)
    effects = node.handle(ev.Retrieve(1, ME.id, TREE), 1.0)
    [(to, query)] = sent(effects, m.HoldingsQuery)
    assert to == A
    [fetch] = of(fx.Fetch, said(node, A, m.HoldingsReply(query.request, record(ME, 5))))
    effects = node.handle(ev.FetchEnded(fetch.transfer, fetch.record), 1.2)
    assert [(end.request, end.record) for end in of(fx.RetrievalEnded, effects)] == [(1, record(ME, 5))]


NOT_FOR_CONTROL = [
    m.BulkPush(record(A, 1), "replica"),
    m.BulkFetch(A.id, TREE, 1),
    m.BulkAccept(record(A, 1), 20),
    m.BulkWant(((0, 1),)),
    m.BulkStored(),
    m.BulkRefuse("no"),
    m.StatusRequest(),
    m.StopRequest(),
    m.Hello(1, "c", "control", A),
    m.Refusal("busy", "no"),
]


@pytest.mark.parametrize("message", NOT_FOR_CONTROL, ids=lambda message: type(message).__name__)
def test_what_does_not_belong_on_a_control_connection_drops_it(message: m.Message) -> None:
    node = node_with()
    with pytest.raises(RemoteProtocolError, match=type(message).__name__):
        node.handle(ev.MessageReceived(A, message), 1.0)
    assert node.detector.lives() == [], "and nothing else happens"


@pytest.mark.parametrize("route", [m.Route(ME.id, m.Heartbeat()), m.Route(ME.id, m.Datagram(b"x"), -1)], ids=["body", "hops"])  # type: ignore[arg-type]
def test_an_envelope_that_nobody_can_have_sealed_drops_the_connection_that_brought_it(route: m.Route) -> None:
    """At once, not when it is released: then another peer's event would be blamed."""
    with pytest.raises(RemoteProtocolError, match="not routed"):
        said(node_with(A), A, route)


def test_the_application_is_told_of_its_own_mistakes_and_nothing_changes() -> None:
    node = node_with(A)
    for event in (
        ev.LeaveTree(TREE),
        ev.ReportProgress(TREE, m.Progress()),
        ev.SendMulticast(TREE, m.RoundOpen("train", 1, 1, "exact", ME)),
    ):
        with pytest.raises(UnknownTree):
            node.handle(event, 1.0)
    with pytest.raises(LocalProtocolError):
        node.handle(ev.CreateTree(TREE), 1.0)
    assert node.scribe.trees == {}


def test_the_root_closes_its_tree_for_itself_too() -> None:
    """The manager's node holds copies as any other, and nobody sends it the order that it sends."""
    root = OverlayNode(replace(ME, id=TREE), P, Random(1))
    root.handle(ev.Started(), 0.0)
    root.handle(ev.CreateTree(TREE), 0.0)
    for held in (record(A, 3), record(root.self_peer, 9)):
        root.handle(ev.RecordHeld(held), 0.1)
    effects = root.handle(ev.SendMulticast(TREE, m.RoundOpen("done", 4, 4, "exact", root.self_peer)), 0.2)
    assert of(fx.Discard, effects) == [fx.Discard(record(A, 3))]
    assert root.replication.held() == (record(root.self_peer, 9),)
    root.handle(ev.SendMulticast(TREE, m.RoundOpen("init", 0, 0, "exact", root.self_peer)), 0.3)
    assert "record_adopted" in facts(root.handle(ev.RecordHeld(record(A, 3)), 0.4)), "a new run opens it again"


def test_a_newer_life_of_ourselves_makes_us_quit_and_says_where_it_is() -> None:
    later = replace(ME, incarnation=2, port=7)
    for message in (m.Superseded(later), m.Route(ME.id, m.JoinRequest(later))):
        [quits] = of(fx.Quit, said(node_with(A), A, message))
        assert str(later.address) in quits.reason
    assert of(fx.Quit, said(node_with(A), later, m.Heartbeat()))
    assert of(fx.Quit, node_with(A).handle(ev.SeedAnswered(SEED, later), 1.0))


NOBODY_ELSE = {
    "ourselves": ME,
    "an older life": replace(ME, incarnation=0),
    "another": replace(A, incarnation=9),
    "a life of no clock": replace(ME, incarnation=ME.incarnation + LEAP_HEARD_MAX + 1),
}


@pytest.mark.parametrize("by", NOBODY_ELSE.values(), ids=NOBODY_ELSE)
def test_nobody_else_can_make_us_quit(by: Peer) -> None:
    assert not of(fx.Quit, said(node_with(A), A, m.Superseded(by)))


def test_the_older_life_of_a_joiner_is_told_to_leave() -> None:
    """Two processes with one name: the ring keeps the later one, and says so to the earlier."""
    node, later = node_with(A, B), replace(A, incarnation=2, port=7)
    effects = said(node, B, m.Route(A.id, m.JoinRequest(later)))
    assert (A, m.Superseded(later)) in sent(effects, m.Superseded)
    assert A.id not in node.pastry.leaf_set, "and the later one comes in when it has been heard"


def test_after_leave_nothing_follows_from_anything() -> None:
    node = node_with(A, B)
    goodbyes = sent(node.handle(ev.Leave(), 1.0), m.Goodbye)
    assert [to for to, _ in goodbyes] == [A, B]
    assert node.next_deadline() is None
    for event in (ev.TimerFired(), ev.MessageReceived(A, m.Ping()), ev.RouteMessage(ME.id, b"x"), ev.Leave()):
        assert node.handle(event, 2.0) == []


def test_a_goodbye_said_twice_is_a_goodbye() -> None:
    node = node_with(A, B)
    assert "peer_left" in facts(said(node, A, m.Goodbye()))
    said(node, A, m.Goodbye())
    assert A.id not in node.pastry.leaf_set
    assert A not in node.detector.lives()
    assert node.detector.recently_dead(1.0) == ()


def test_a_node_that_slept_says_so_probes_everyone_and_kills_nobody() -> None:
    """SIGSTOP for a minute: every deadline is long over, and nobody but us was at fault."""
    node = node_with(A, B)
    node.next_deadline()
    effects = node.handle(ev.TimerFired(), 60.0)
    assert facts(effects) == ["slept"]
    assert {to for to, _ in sent(effects, m.LeafProbe)} == {A, B}
    assert not node.detector.is_suspect(A.id)
    assert {other.id for other in node.pastry.leaf_set} == {A.id, B.id}


def timers_until(node: OverlayNode, kind: type) -> tuple[float, list[fx.Effect]]:
    """Fire each timer at its time, until such an effect follows; when, and what followed."""
    while True:
        now = node.next_deadline()
        if of(kind, effects := node.handle(ev.TimerFired(), now)):
            return now, effects


def test_a_hop_that_does_not_acknowledge_is_dialled_and_what_waits_for_it_goes_on_when_it_says_hello() -> None:
    """Forwarding's rules 2 and 3 and the detector's 4 together."""
    node = node_with(A, B)
    assert [to for to, _ in sent(node.handle(ev.RouteMessage(A.id, b"x"), 0.1), m.Route)] == [A]
    now, effects = timers_until(node, fx.Dial)
    assert now == pytest.approx(0.1 + P.delay_max_s)
    assert of(fx.Dial, effects) == [fx.Dial(A)]
    assert [to for to, _ in sent(answer_dials(node, effects, now + 0.01), m.Route)] == [A]


def test_each_message_of_a_hop_is_acknowledged_and_delivered() -> None:
    effects = said(node_with(A, B), A, m.Route(ME.id, m.Datagram(b"y"), 2, 5))
    assert sent(effects, m.RouteAck) == [(A, m.RouteAck(5))]
    assert of(fx.Delivered, effects) == [fx.Delivered(ME.id, b"y", 2)]


def test_a_suspect_that_a_helper_finds_refutes_by_dialling_the_doubter() -> None:
    """Three nodes: ME doubts A and asks B; B gets A's hello, tells A who doubts it; A dials ME, and is heard."""
    doubter, helper, suspect = node_with(A, B), OverlayNode(B, P, Random(2)), OverlayNode(A, P, Random(3))
    doubter.handle(ev.PeerLost(A, "reset"), 0.1)
    now, effects = 0.0, []
    while not sent(effects, m.IndirectProbe):
        now, effects = timers_until(doubter, fx.Send)
    assert now == pytest.approx(0.1 + P.delay_max_s)
    [(whom, question)] = sent(effects, m.IndirectProbe)
    assert (whom, question) == (B, m.IndirectProbe(A))
    [dial] = of(fx.Dial, helper.handle(ev.MessageReceived(ME, question), 0.40))
    effects = helper.handle(ev.DialEnded(dial.peer, dial.peer), 0.41)
    assert sent(effects, m.IndirectAnswer) == [(ME, m.IndirectAnswer(A, "answered"))]
    [(told, word)] = sent(effects, m.Suspected)
    assert told == A
    [refutes] = of(fx.Dial, suspect.handle(ev.MessageReceived(B, word), 0.42))
    assert refutes.peer == ME
    assert (ME, m.Heartbeat()) in sent(suspect.handle(ev.DialEnded(ME, ME), 0.43), m.Heartbeat)
    assert "peer_cleared" in facts(said(doubter, A, m.Heartbeat(), 0.44))


def test_a_heartbeat_does_not_stand_for_the_next_one() -> None:
    """Our left neighbour hears us in each interval, in a ring where nobody says anything else."""
    node, beats, now = node_with(A, B), [], 0.0
    for neighbour in (A, B):
        said(node, neighbour, m.LeafProbeReply((ME,)), 0.0)
    while now < 10 * P.heartbeat_interval_s:
        now = node.next_deadline()
        for neighbour in (A, B):
            said(node, neighbour, m.Heartbeat(), now)
        beats += [now for to, _ in sent(node.handle(ev.TimerFired(), now), object) if to == B]
    assert max(after - before for before, after in pairwise(beats)) <= P.heartbeat_interval_s + 1e-9


def test_a_timer_that_rings_too_early_does_nothing() -> None:
    node = node_with(A)
    assert node.handle(ev.TimerFired(), 0.01) == []


UNASKED = [
    m.Pong(),
    m.RouteAck(1),
    m.IndirectAnswer(B, "refused"),
    m.JoinReply((A,), (B,)),
    m.TreeWelcome(TREE, ()),
    m.TreePulse(TREE, ()),
    m.LookUpReply(9, (m.Holding(ME, record(A, 1)),)),
    m.HoldingsReply(9, record(A, 1)),
    m.TreeLeave(TREE),
    m.TreeRefusal(TREE, "no"),
]


@pytest.mark.parametrize("message", UNASKED, ids=lambda message: type(message).__name__)
def test_an_answer_to_what_nobody_asked_starts_nothing(message: m.Message) -> None:
    effects = said(node_with(A, B), A, message)
    assert not of(fx.Fetch, effects) + of(fx.Dial, effects)
    assert [to for to, _ in sent(effects, object)] in ([], [A]), "at most the sender is told"


# --- whatever comes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_no_sequence_of_well_typed_messages_and_events_breaks_a_node(seed: int) -> None:
    """P7, P8: half of it honest answers, half of it anything at all, timers early and late.

    Nothing but a typed error, which names whose mistake it is; every invariant after every event; every message that follows can
    be put on the wire; and after each timer the next one lies ahead.
    """
    rng = Random(seed)
    me = Peer(NodeId(rng.getrandbits(128)), "10.0.0.1", 9999, 2)
    pool, node = Pool(rng, me, wild=seed % 4 == 0), OverlayNode(me, P, Random(seed))
    open_ends: deque[fx.Effect] = deque(maxlen=40)
    node.handle(ev.Started((SEED,) if seed % 2 else ()), 0.0)
    now = 0.0
    for _ in range(500):
        now += rng.choice([0, 0, 0.001, 0.01, 0.1, 0.2]) * rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 1, 10])
        while (due := node.next_deadline()) is not None and due <= now and rng.random() < 0.8:
            late = max(due, now - rng.choice([0, 0.1, 1]))
            step(node, ev.TimerFired(), late, open_ends)
            ahead = node.next_deadline()
            assert ahead is None or ahead > late, "the timer would ring for ever"
        answer = pool.answer(open_ends.popleft()) if open_ends and rng.random() < 0.7 else None
        step(node, answer or pool.event(), now, open_ends)
    bounded(node)


def step(node: OverlayNode, event: ev.Event, now: float, open_ends: deque[fx.Effect]) -> None:
    try:
        effects = node.handle(event, now)
    except RemoteProtocolError:
        assert isinstance(event, ev.MessageReceived), f"{event} is nobody's message: whose connection would be dropped?"
        effects = []
    except LocalProtocolError:
        assert not isinstance(event, ev.MessageReceived), f"{event} is not our mistake"
        effects = []
    node.check_invariants()
    for effect in effects:
        if isinstance(effect, fx.Send):
            encode(effect.message)
            assert effect.peer.id != node.self_peer.id, "what goes to ourselves takes no wire"
        assert not isinstance(effect, fx.PeerDied | fx.PeerCleared | fx.LeafSetChanged | fx.Suspect | fx.RouteBody | fx.DeliverBody)
    open_ends.extend(effects)


def bounded(node: OverlayNode) -> None:
    assert len(node.pastry.leaf_set) <= P.leaf_set_size
    assert len(node.detector.lives()) <= P.remembered_lives_max
    assert len(node.detector.recently_dead(0.0)) <= 16
    assert len(node.scribe.trees) <= P.trees_max


def test_the_same_events_give_the_same_effects() -> None:
    """DESIGN 4: a run is a seed."""

    def run() -> list[fx.Effect]:
        rng = Random(5)
        pool, node, seen = Pool(rng, ME), OverlayNode(ME, P, Random(5)), list[fx.Effect]()
        node.handle(ev.Started(), 0.0)
        for tick in range(400):
            try:
                seen += node.handle(pool.event(), tick * 0.05)
            except (RemoteProtocolError, LocalProtocolError):
                continue
        return seen

    assert run() == run()


def test_what_waking_up_brought_is_not_lost_with_an_event_that_cannot_be() -> None:
    """The late event is an order that makes no sense, and raises: the probes of the wake-up go with the next one."""
    node = node_with(A, B)
    node.next_deadline()
    with pytest.raises(UnknownTree):
        node.handle(ev.LeaveTree(node_id(0x55)), 60.0)
    effects = node.handle(ev.MessageReceived(A, m.Heartbeat()), 60.1)
    assert "slept" in facts(effects)
    assert {to for to, _ in sent(effects, m.LeafProbe)} == {A, B}
    assert "slept" not in facts(node.handle(ev.MessageReceived(A, m.Heartbeat()), 60.2)), "once"


def test_only_what_a_peer_said_itself_is_when_it_was_heard() -> None:
    """Another's word for it, and the end of a dial that it did not answer, are none of its own."""
    node = node_with(A, B)
    said(node, A, m.Heartbeat(), now=1.0)
    for message in (m.IndirectAnswer(A, "answered"), m.LeafProbeReply((A, ME)), m.IndirectProbe(A)):
        said(node, B, message, now=2.0)
    node.handle(ev.DialEnded(A, None, False, "no hello"), 2.5)
    assert node.detector.heard_at(A.id) == 1.0
    said(node, A, m.Ping(), now=3.0)
    assert node.detector.heard_at(A.id) == 3.0


def test_a_peer_whose_first_message_is_refused_has_begun_another_life_all_the_same() -> None:
    """Its copies died with the one before, whatever it says."""
    node = node_with(A, B)
    mine = record(ME, 1)
    for push in of(fx.Push, node.handle(ev.Replicate(mine), 0.5)):
        node.handle(ev.PushEnded(push.transfer, "stored"), 0.5)
    assert A.id in node.replication.holders(mine.key)
    with pytest.raises(RemoteProtocolError):
        node.handle(ev.MessageReceived(replace(A, incarnation=2), m.Route(A.id, m.Datagram(b""), -1, 0)), 1.0)
    assert "peer_died" in facts(said(node, B, m.Ping(), 1.1)), "told with what comes next"
    assert A.id not in node.replication.holders(mine.key)


def test_a_question_that_a_stranger_puts_in_our_name_stops_nobody() -> None:
    """It waits at a node that is not in the ring yet, and is answered in the middle of another event: to ourselves."""
    node = OverlayNode(ME, P, Random(1))
    node.handle(ev.Started((), (SEED,)), 0.0)
    node.handle(ev.MessageReceived(A, m.Route(ME.id, RootQuery(0, ME.id, ME), 1, 1)), 0.1)
    node.handle(ev.AskRoot(0, TREE), 0.1)
    effects = node.handle(ev.SeedFailed(SEED, "refused"), 0.2)
    assert "own_message_dropped" in facts(effects)
    node.check_invariants()
