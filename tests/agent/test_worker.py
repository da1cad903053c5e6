"""The worker between a real manager's node and a small learner: orders in, contributions out."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import numpy as np
import pytest

from fmrec_agent.learning.learner import Job, LearnerError, Tensors
from protocol.identifiers import Peer
from protocol.knowledge import open_record
from protocol.overlay.effects import Durable, MulticastReceived, Quit
from protocol.overlay.events import MessageReceived
from protocol.wire.electing import TermRequest
from protocol.wire.messages import RecoveryMode, RoundOpen
from tests.agent.counting import Counting, Gate, Unsealable
from tests.agent.ring import TREE, Agent, Manager, Ring, free_port, until


def brought(manager: Manager) -> list[tuple[str, int, int]]:
    return [(inside.phase, record.round, record.version) for record, inside in manager.brought]


async def test_an_order_comes_down_the_tree_and_a_contribution_goes_to_the_manager(ring: Ring) -> None:
    manager = await ring.manager()
    a, b = [await ring.agent(name) for name in "ab"]
    agents, durable_then = {agent.identifier: agent for agent in (a, b)}, []
    manager.on_brought = lambda record: durable_then.append(agents[record.owner].dispatcher.durable_version)
    a.join("a")
    b.join("b")
    await until(lambda: manager.joined() == {"a", "b"})
    manager.multicast(manager.order("train", 0))
    await until(lambda: len(manager.brought) == 2)
    record, inside = manager.brought[0]
    assert (record.complete, inside.phase, record.round, record.iteration, inside.samples) == (True, "train", 0, 10, 10)
    assert set(inside.tensors) == {"contribution", "state"}
    np.testing.assert_array_equal(a.learner.theta["w"], np.full(3, 0.5))
    assert durable_then == [manager.brought[0][0].version, manager.brought[1][0].version], "rule 4: durable before it is brought"
    # Snapshots after iterations 4 and 8, and the end.
    assert record.version == 3


async def test_theta_0_is_made_by_who_is_asked_and_by_nobody_else(ring: Ring) -> None:
    manager = await ring.manager()
    a, b = [await ring.agent(name) for name in "ab"]
    for agent in (a, b):
        agent.worker.ordered(manager.order("init", 0, asked=b.identifier), manager.me)
    await until(lambda: manager.brought)
    await until(lambda: a.worker.doing == b.worker.doing == "waiting for orders")
    ((record, inside),) = manager.brought
    assert (record.owner, inside.phase) == (b.identifier, "init")
    np.testing.assert_array_equal(inside.tensors["theta"]["w"], np.full(3, 1.0))


async def test_a_target_does_not_train_and_a_source_does_not_adapt(ring: Ring) -> None:
    manager = await ring.manager()
    source, target = await ring.agent("a"), await ring.agent("t", role="target")
    for agent in (source, target):
        agent.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: manager.brought)
    await until(lambda: source.worker.doing == "waiting for orders")
    for agent in (source, target):
        agent.worker.ordered(manager.order("adapt", 1), manager.me)
    await until(lambda: len(manager.brought) == 2)
    assert (source.learner.jobs, target.learner.jobs) == ([Job("train", 0, 1)], [Job("adapt", 1, 1)])
    for agent in (source, target):
        agent.worker.ordered(manager.order("done", 1), manager.me)
    await until(lambda: source.worker.doing == target.worker.doing == "done")


async def test_who_is_not_chosen_rests(ring: Ring) -> None:
    """Rule 6. An order for all comes after, so that resting is seen to be over."""
    manager = await ring.manager()
    a, b = [await ring.agent(name) for name in "ab"]
    for agent in (a, b):
        agent.worker.ordered(replace(manager.order("train", 0), chosen=(b.identifier,)), manager.me)
    await until(lambda: manager.brought)
    await until(lambda: a.worker.doing == b.worker.doing == "waiting for orders")
    for agent in (a, b):
        agent.worker.ordered(manager.order("train", 1), manager.me)
    await until(lambda: len(manager.brought) == 3)
    assert (a.learner.jobs, b.learner.jobs) == ([Job("train", 1, 1)], [Job("train", 0, 1), Job("train", 1, 1)])


async def test_a_contribution_that_is_refused_is_not_brought_again(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    manager = await ring.manager()
    a = await ring.agent("a")
    manager.refuses = "round 0 has a contribution of it already, by replica"
    with caplog.at_level(logging.WARNING):
        a.worker.ordered(manager.order("train", 0), manager.me)
        await until(lambda: manager.brought)
        await until(lambda: a.worker.doing == "waiting for orders")
    assert "the manager refused version 3: round 0 has a contribution of it already" in caplog.text
    manager.refuses = None
    a.worker.ordered(manager.order("train", 1), manager.me)
    await until(lambda: len(manager.brought) == 2)
    assert [number for _, number, _ in brought(manager)] == [0, 1]


async def test_while_the_manager_is_away_a_contribution_is_brought_again_and_again(ring: Ring) -> None:
    """Rule 5. The manager dies after its order, and a later one listens at the same place."""
    manager = await ring.manager()
    a = await ring.agent("a")
    port = free_port()
    order = replace(manager.order("train", 0), holder=Peer(TREE, "127.0.0.1", port, 2))
    a.store.put(*await a.driver.fetch(manager.me, TREE, TREE, 1))
    a.worker.ordered(order, manager.me)
    await until(lambda: a.worker.doing.startswith("bringing"))
    later = Manager(TREE, incarnation=2)
    await later.listen(port)
    ring.hosts.append(later)
    await until(lambda: later.brought)
    assert brought(later) == [("train", 0, 3)]
    assert a.learner.jobs == [Job("train", 0, 1)]


async def test_a_newer_order_stops_the_job_under_way(ring: Ring) -> None:
    manager = await ring.manager()
    gate = Gate(3)
    a = await ring.agent("a", learner=Counting(before_step=gate))
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(gate.reached.is_set)
    a.worker.ordered(manager.order("train", 1), manager.me)
    gate.open.set()
    await until(lambda: manager.brought)
    assert [job.round for job in a.learner.jobs] == [0, 1]
    assert a.learner.steps == 4 + 10, "round 0 ended with the iteration that was under way"
    assert [number for _, number, _ in brought(manager)] == [1]


async def test_the_same_order_again_interrupts_the_job_and_goes_on_with_it(ring: Ring) -> None:
    """A manager that was restarted announces the round that it finds; nobody's work is lost by that."""
    manager = await ring.manager()
    gate = Gate(3)
    a = await ring.agent("a", learner=Counting(before_step=gate))
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(gate.reached.is_set)
    a.worker.ordered(manager.order("train", 0), manager.me)
    gate.open.set()
    await until(lambda: manager.brought)
    assert (len(a.learner.jobs), a.learner.steps) == (1, 10)


async def test_an_order_that_is_superseded_while_its_theta_is_fetched_is_not_begun(ring: Ring) -> None:
    """The stop comes before there is a job to stop: it must count all the same."""
    manager = await ring.manager()
    a = await ring.agent("a")
    absent = manager.theta(0, keep=False)
    a.worker.ordered(RoundOpen("train", 0, 1, "exact", manager.me, absent), manager.me)
    await until(lambda: a.worker.doing == "fetching theta of round 0")
    # The holder waits for a version that it does not have yet.
    await until(lambda: manager.store._waiting)
    a.worker.ordered(RoundOpen("train", 1, 1, "exact", manager.me, manager.theta(1, keep=False)), manager.me)
    manager.theta(0)
    await until(lambda: a.store.get(TREE, TREE))
    manager.theta(1)
    await until(lambda: manager.brought)
    assert [job.round for job in a.learner.jobs] == [1]


async def test_a_theta_of_the_same_version_from_an_earlier_life_is_not_taken(ring: Ring) -> None:
    """The manager died before version 1 was durable, and its next life made another version 1."""
    manager = await ring.manager()
    a = await ring.agent("a")
    stale = manager.theta(0, version=1, incarnation=1)
    got = await a.driver.fetch(manager.me, TREE, TREE, 1)
    assert a.store.put(*got)
    wanted = manager.theta(0, version=1, incarnation=2)
    assert wanted.digest != stale.digest
    a.worker.ordered(RoundOpen("train", 0, 1, "exact", manager.me, wanted), manager.me)
    await until(lambda: manager.brought)
    np.testing.assert_array_equal(a.learner.theta["w"], np.full(3, 1.0))


async def test_theta_comes_from_the_root_where_the_parent_has_another(ring: Ring) -> None:
    manager = await ring.manager()
    a, parent = [await ring.agent(name) for name in "ap"]
    manager.theta(0, version=1, incarnation=1)
    parent.store.put(*await parent.driver.fetch(manager.me, TREE, TREE, 1))
    wanted = manager.theta(0, version=1, incarnation=2)
    a.worker.ordered(RoundOpen("train", 0, 1, "exact", manager.me, wanted), parent.me)
    await until(lambda: manager.brought)
    np.testing.assert_array_equal(a.learner.theta["w"], np.full(3, 1.0))


async def test_what_is_finished_is_brought_again_and_not_done_again(ring: Ring) -> None:
    manager = await ring.manager()
    a = await ring.agent("a")
    for times in (1, 2):
        a.worker.ordered(manager.order("train", 0), manager.me)
        await until(lambda: len(manager.brought) == times)  # noqa: B023
    first, second = (record for record, _ in manager.brought)
    assert first == second
    assert len(a.learner.jobs) == 1


async def test_a_round_that_is_announced_anew_from_another_theta_is_done_anew(ring: Ring) -> None:
    """A manager that lost its last versions goes on from an older one: rounds have the numbers that they had, and are other rounds."""
    manager = await ring.manager()
    a = await ring.agent("a")
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: manager.brought)
    other = manager.theta(0, version=2, incarnation=2)
    a.worker.ordered(RoundOpen("train", 0, 1, "exact", manager.me, other, None, b"another"), manager.me)
    await until(lambda: len(manager.brought) == 2)
    assert a.learner.jobs == [Job("train", 0, 1)] * 2
    np.testing.assert_array_equal(a.learner.theta["w"], np.full(3, 1.0))
    first, second = (inside.tensors["contribution"]["w"] for _, inside in manager.brought)
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("how", ["announced again", "restored"])
async def test_what_is_finished_is_not_brought_before_it_is_durable_either(ring: Ring, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 4, where the order is given again meanwhile, and where a later life has found the record with somebody."""
    manager = await ring.manager()
    a, _ = [await ring.agent(name) for name in "ab"]
    word, before = a, 0
    if how == "restored":
        a.worker.ordered(manager.order("train", 0), manager.me)
        await until(lambda: manager.brought)
        held = a.store.get(a.identifier, TREE)
        assert held is not None
        await ring.kill(a)
        word, before = await ring.agent("a", incarnation=2), 1
    told: list[Durable] = []
    on_durable = word.dispatcher.on_durable
    monkeypatch.setattr(word.dispatcher, "on_durable", told.append)  # the quorum's word is late
    if how == "restored":
        word.store.put(*held)
        await word.worker.restore(held[0], open_record(*held))
    word.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: word.worker.doing.startswith("making version 3 durable"))
    word.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: "version 3 is not durable" in word.worker.doing)
    assert len(manager.brought) == before
    await until(lambda: any(effect.record.version == 3 for effect in told))
    for effect in told:
        on_durable(effect)
    await until(lambda: len(manager.brought) == before + 1)
    assert word.learner.jobs == [Job("train", 0, 1)] * (1 - before)


async def test_the_same_theta_in_another_record_is_the_same_round(ring: Ring) -> None:
    """A manager that takes the place of another seals the theta that it has found anew."""
    manager = await ring.manager()
    a = await ring.agent("a")
    order = manager.order("train", 0)
    a.worker.ordered(order, manager.me)
    await until(lambda: manager.brought)
    a.worker.ordered(replace(order, theta=manager.theta(0, version=2)), manager.me)
    await until(lambda: len(manager.brought) == 2)
    assert a.learner.jobs == [Job("train", 0, 1)]


async def test_what_is_restored_for_another_theta_is_not_gone_on_with(ring: Ring) -> None:
    """Killed in the middle of round 0, and before its next life is told, round 0 is announced from another theta."""
    manager = await ring.manager()
    gate = Gate(6)
    a, _ = await ring.agent("a", learner=Counting(before_step=gate)), await ring.agent("b")
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(gate.reached.is_set)
    assert await a.dispatcher.durable(1, 10)
    await ring.kill(a)
    gate.open.set()
    heir = await restored(ring)
    other = manager.theta(0, version=2, incarnation=2)
    heir.worker.ordered(RoundOpen("train", 0, 1, "exact", manager.me, other, None, b"another"), manager.me)
    await until(lambda: manager.brought)
    assert (heir.learner.jobs, heir.learner.steps) == ([Job("train", 0, 1)], 10)


async def test_orders_that_were_missed_are_said_and_the_newest_counts(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    manager = await ring.manager()
    a = await ring.agent("a")
    with caplog.at_level(logging.INFO):
        a.worker.ordered(manager.order("train", 3), manager.me, gap=True)
        await until(lambda: manager.brought)
    assert a.worker.gaps == 1
    assert "orders before this one, train of round 3, were missed" in caplog.text


async def test_an_agent_that_has_promised_a_later_term_serves_the_earlier_root_no_more(ring: Ring) -> None:
    """The first manager hung and wakes: it is told so at its first word, no contribution is brought to it, its records are not kept."""
    manager = await ring.manager()
    a, _, _ = [await ring.agent(name) for name in "abc"]
    a.join("a")
    await until(lambda: manager.joined() == {"a"})
    manager.multicast(manager.order("train", 0))
    await until(lambda: manager.brought)
    successor = Peer(TREE, "127.0.0.1", free_port(), 2)
    a.driver.dispatch(MessageReceived(successor, TermRequest(1, TREE, 2, 1)))
    manager.multicast(manager.order("train", 1))
    await until(lambda: [e for e in manager.effects if isinstance(e, Quit) and e.by == successor])
    assert not [e for e in a.effects if isinstance(e, MulticastReceived) and e.body.round == 1]
    a.worker.ordered(manager.order("train", 2), manager.me)
    await until(lambda: a.worker.doing == "waiting for the orders of a later root than gave round 2")
    manager.theta(7)
    held = manager.store.get(TREE, TREE)
    assert held is not None
    pushed = await manager.connections.bulk.push(manager.me, a.me, *held, "replica")
    assert (pushed.outcome, len(manager.brought)) == ("refused", 1)
    assert "a later life of" in pushed.reason


async def test_a_later_life_brings_what_the_last_one_had_finished(ring: Ring) -> None:
    manager = await ring.manager()
    a, _ = [await ring.agent(name) for name in "ab"]
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: manager.brought)
    await ring.kill(a)
    heir = await restored(ring)
    heir.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: len(manager.brought) == 2)
    assert manager.brought[0][0] == manager.brought[1][0]
    assert heir.learner.jobs == []


async def test_a_later_life_goes_on_from_the_last_checkpoint_bit_for_bit(ring: Ring) -> None:
    """P5 through all parts: killed in iteration 7 of 10, checkpoint at 4; the neighbours have it."""
    manager = await ring.manager()
    undisturbed, _ = [await ring.agent(name) for name in "ub"]
    undisturbed.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: manager.brought)
    gate = Gate(6)
    a = await ring.agent("a", learner=Counting(before_step=gate))
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(gate.reached.is_set)
    assert await a.dispatcher.durable(1, 10)
    await ring.kill(a)
    gate.open.set()
    heir = await restored(ring)
    heir.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: len(manager.brought) == 2)
    (_, whole), (record, again) = manager.brought
    assert again.tensors["contribution"]["w"].tobytes() == whole.tensors["contribution"]["w"].tobytes()
    assert (heir.learner.jobs, heir.learner.steps, record.iteration, record.incarnation) == ([], 6, 10, 2)


async def restored(ring: Ring) -> Agent:
    """The second life of agent a, restored as its daemon does it."""
    heir = await ring.agent("a", incarnation=2)
    found = await asyncio.wait_for(heir.retriever.newest(heir.identifier, TREE), 10)
    assert found is not None
    await heir.worker.restore(*found)
    return heir


async def test_in_mode_drop_nothing_is_replicated(ring: Ring) -> None:
    manager = await ring.manager()
    a, b = [await ring.agent(name) for name in "ab"]
    a.worker.ordered(manager.order("train", 0, "drop"), manager.me)
    await until(lambda: manager.brought)
    assert brought(manager) == [("train", 0, 1)], "no snapshots either"
    assert b.store.get(a.identifier, TREE) is None


@pytest.mark.parametrize("mode", ["exact", "substitute"])
async def test_what_was_finished_in_mode_drop_is_replicated_where_a_later_order_wants_that(ring: Ring, mode: RecoveryMode) -> None:
    """The manager is started again with another `recovery`, and announces the same round."""
    manager = await ring.manager()
    a, b = [await ring.agent(name) for name in "ab"]
    a.worker.ordered(manager.order("train", 0, "drop"), manager.me)
    await until(lambda: manager.brought)
    for times in (2, 3):
        a.worker.ordered(manager.order("train", 0, mode), manager.me)
        await until(lambda: len(manager.brought) == times)  # noqa: B023
    assert len({record for record, _ in manager.brought}) == 1
    assert a.dispatcher.durable_version == 1
    held = b.store.get(a.identifier, TREE)
    assert held is not None
    assert held[0] == manager.brought[0][0]
    assert a.learner.jobs == [Job("train", 0, 1)]
    assert a.high_water.durable == 1


async def test_what_was_finished_after_the_end_is_replicated_where_the_tree_goes_on(ring: Ring) -> None:
    """Its last iteration was under way when the tree was done; then a manager that knows nothing of that announces the round again."""
    manager = await ring.manager()
    gate = Gate(9)
    a, _ = await ring.agent("a", learner=Counting(before_step=gate)), await ring.agent("b")
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(gate.reached.is_set)
    a.worker.ordered(manager.order("done", 1), manager.me)
    gate.open.set()
    await until(lambda: a.worker.doing == "done")
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: manager.brought)
    assert brought(manager) == [("train", 0, 3)]
    assert a.dispatcher.durable_version == 3


async def test_a_learner_that_cannot_go_on_ends_the_worker(ring: Ring) -> None:
    """An agent that lives and does nothing would be waited for; its process ends, and says why."""

    def wrong(done: int) -> None:
        raise LearnerError("tensor w is float32, and this task's model wants float64")

    manager = await ring.manager()
    a = await ring.agent("a", learner=Counting(before_step=wrong))
    a.worker.ordered(manager.order("train", 0), manager.me)
    assert a.working is not None
    with pytest.raises(LearnerError, match="wants float64"):
        await asyncio.wait_for(asyncio.shield(a.working), 10)


async def test_a_theta_that_cannot_be_sealed_is_told_in_a_sentence(ring: Ring) -> None:
    manager = await ring.manager()
    a = await ring.agent("a", learner=Unsealable())
    a.worker.ordered(manager.order("init", 0, asked=a.identifier), manager.me)
    assert a.working is not None
    with pytest.raises(LearnerError, match=r"theta_0 that it makes cannot be made a record: .* 'w' of object has no form in safetensors"):
        await asyncio.wait_for(asyncio.shield(a.working), 10)


class Unkept(Counting):
    def state(self) -> tuple[Tensors, bytes]:
        tensors, extra = super().state()
        return (tensors if self.steps == self.iterations else {"w": np.array([object()])}), extra


async def test_a_snapshot_that_cannot_be_sealed_is_said(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    manager = await ring.manager()
    a = await ring.agent("a", learner=Unkept())
    with caplog.at_level(logging.ERROR):
        a.worker.ordered(manager.order("train", 0), manager.me)
        await until(lambda: manager.brought)
        await until(lambda: "a snapshot cannot be kept: a record of these tensors cannot be made" in caplog.text)
