"""The trainer: a thread of its own, snapshots where they are due, stops between iterations, and goes on bit for bit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fmrec_agent.learning.learner import Contribution, Job, LearnerError, LearnerFailed
from fmrec_agent.trainer import Snapshot, Trainer, opened_state
from fmrec_agent.turns import Turns
from tests.agent.counting import Counting, Numpys

JOB = Job("train", 4, seed=1)
THETA = {"w": np.arange(3.0)}
DIGEST = b"theta's"
Made = Callable[..., "asyncio.Future[tuple[Trainer, Counting]]"]


@pytest.fixture
async def made() -> AsyncIterator[Callable[..., object]]:
    """made(every, learner) -> (trainer, learner); its thread ends with the test."""
    trainers: list[Trainer] = []

    async def made(every: int = 3, learner: Counting | None = None) -> tuple[Trainer, Counting]:
        trainer, learner = Trainer(every), learner or Counting()
        await trainer.load(lambda: learner)
        trainers.append(trainer)
        return trainer, learner

    yield made
    for trainer in trainers:
        trainer.close()


async def test_everything_of_the_learner_runs_in_one_thread_that_is_not_the_loops(made: Made) -> None:
    trainer = Trainer(3)
    await trainer.load(Counting)
    learner = trainer.learner
    assert isinstance(learner, Counting)
    await trainer.initial_parameters(5)
    await trainer.run(JOB, THETA, DIGEST, lambda snapshot: None)
    trainer.close()
    assert len(learner.threads) == 1, "built, trained and copied in one thread"
    assert threading.get_ident() not in learner.threads


async def test_it_gives_way_to_others_from_the_second_iteration_on(made: Made) -> None:
    """A life that takes another's place is waited for: building, restoring and its first iteration do not."""
    seen: list[int] = []
    trainer, _ = await made(3, Counting(before_step=lambda done: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))))
    await trainer.run(JOB, THETA, DIGEST, None)
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert seen == [usual, *[min(19, usual + 10)] * (len(seen) - 1)]
    assert len(seen) > 1


async def test_the_loop_turns_while_it_trains(made: Made) -> None:
    gate = threading.Event()

    def hold(done: int) -> None:
        assert gate.wait(3), "nobody opened the gate"

    trainer, _ = await made(3, Counting(before_step=hold))
    running = asyncio.create_task(trainer.run(JOB, THETA, DIGEST, None))
    await asyncio.sleep(0)  # the loop is here while the thread waits: only it can open the gate
    gate.set()
    assert await asyncio.wait_for(running, 10) is not None


async def test_a_file_that_was_being_read_when_an_error_came_is_closed_in_the_training_thread(tmp_path: Path) -> None:
    """The thread may have descriptors of its own: closed by the loop's thread, the file's number would be another file's."""
    (tmp_path / "lots.csv").write_text("one\ntwo\n")
    closed_in: list[int] = []

    def rows() -> Iterator[str]:
        with (tmp_path / "lots.csv").open() as file:
            try:
                yield from file
            finally:
                closed_in.append(threading.get_ident())

    def broken() -> Counting:
        reading = rows()
        for row in reading:
            raise LearnerError(f"{row} is no lot")
        return Counting()

    trainer = Trainer(3)
    with pytest.raises(LearnerError) as raised:
        await trainer.load(broken)
    assert raised.value.__traceback__ is not None, "and it is held while we look"
    assert len(closed_in) == 1
    assert closed_in != [threading.get_ident()]
    trainer.close()


async def test_an_error_that_is_its_own_cause_is_raised_as_any_other(made: Made) -> None:
    def wrong(done: int) -> None:
        error = LearnerError("the loss diverged")
        raise error from error

    trainer, _ = await made(3, Counting(before_step=wrong))
    with pytest.raises(LearnerError, match="the loss diverged"):
        await asyncio.wait_for(trainer.run(JOB, THETA, DIGEST, None), 5)


async def test_what_the_factory_raises_is_raised_by_load() -> None:
    def broken() -> Counting:
        raise LearnerError("there is no folder data")

    trainer = Trainer(3)
    with pytest.raises(LearnerError, match="there is no folder data"):
        await trainer.load(broken)
    trainer.close()


async def test_initial_parameters_come_from_the_seed(made: Made) -> None:
    trainer, _ = await made()
    np.testing.assert_array_equal((await trainer.initial_parameters(9))["w"], np.full(3, 9.0))


async def test_a_job_done(made: Made) -> None:
    trainer, learner = await made()
    done = await trainer.run(JOB, THETA, DIGEST, None)
    assert done is not None
    contribution, last = done
    assert (contribution.samples, learner.jobs, learner.steps) == (10, [JOB], 10)
    assert (last.phase, last.round, last.done, last.total, last.iteration) == ("train", 4, 10, 10, 10)
    assert last.loss == contribution.loss
    assert not trainer.holds("train", 4, DIGEST), "a job at its end is not to be gone on with"


async def test_snapshots_come_at_multiples_over_the_agents_whole_life_and_not_at_the_end(made: Made) -> None:
    """The end has its own record, with the contribution in it."""
    trainer, _ = await made(5)
    taken: list[Snapshot] = []
    await trainer.run(JOB, THETA, DIGEST, taken.append)
    assert [(snapshot.round, snapshot.done, snapshot.iteration) for snapshot in taken] == [(4, 5, 5)]
    trainer.learner.iterations = 7  # type: ignore[attr-defined]
    await trainer.run(Job("train", 5, 1), THETA, DIGEST, taken.append)
    assert [(s.round, s.done, s.iteration) for s in taken[1:]] == [(5, 5, 15)]
    assert trainer.iteration == 17


async def test_a_snapshot_is_a_copy(made: Made) -> None:
    trainer, _ = await made(3)
    taken: list[Snapshot] = []
    await trainer.run(JOB, THETA, DIGEST, taken.append)
    assert len({snapshot.tensors["w"].tobytes() for snapshot in taken}) == len(taken) == 3
    assert trainer.pause_s > 0


async def _stopped(trainer: Trainer, learner: Counting, after: int) -> Snapshot:
    """The job, stopped from the loop during its `after`-th iteration; what a checkpoint right then would hold."""
    loop = asyncio.get_running_loop()
    reached, gate = asyncio.Event(), threading.Event()

    def at(done: int) -> None:
        if done == after - 1:
            loop.call_soon_threadsafe(reached.set)
            assert gate.wait(10)

    learner.before_step = at
    running = asyncio.create_task(trainer.run(JOB, THETA, DIGEST, None))
    await asyncio.wait_for(reached.wait(), 10)
    trainer.stop()
    gate.set()
    assert await asyncio.wait_for(running, 10) is None
    learner.before_step = lambda done: None
    return trainer._snapshot()


async def test_it_stops_between_two_iterations_and_holds_the_job(made: Made) -> None:
    trainer, learner = await made(3)
    last = await _stopped(trainer, learner, after=4)
    assert (learner.steps, trainer.done, last.done) == (4, 4, 4)
    assert trainer.holds("train", 4, DIGEST)
    assert not trainer.holds("train", 5, DIGEST)
    assert not trainer.holds("adapt", 4, DIGEST)
    assert not trainer.holds("train", 4, b"another theta's"), "the round was announced anew, from another theta"


async def _finished(trainer: Trainer, theta: dict[str, np.ndarray] | None) -> Contribution:
    done = await trainer.run(JOB, theta, DIGEST, None)
    assert done is not None
    return done[0]


async def test_stopped_it_goes_on_where_it_was(made: Made) -> None:
    whole = await _finished((await made(3))[0], THETA)
    trainer, learner = await made(3)
    await _stopped(trainer, learner, after=4)
    again = await _finished(trainer, None)
    assert again.tensors["w"].tobytes() == whole.tensors["w"].tobytes()
    assert learner.jobs == [JOB], "it is not begun twice"


async def test_restored_in_another_process_it_goes_on_bit_for_bit(made: Made) -> None:
    """P5: a checkpoint holds everything that the next iteration reads. The new learner has drawn nothing yet."""
    whole = await _finished((await made(3))[0], THETA)
    trainer, learner = await made(3)
    last = await _stopped(trainer, learner, after=4)
    done, total, extra = opened_state(last.sealed_state())
    assert (done, total, last.theta) == (4, 10, DIGEST)
    heir, fresh = await made(3)
    await heir.restore(Snapshot(last.phase, last.round, last.theta, done, total, last.iteration, last.loss, last.tensors, extra))
    assert heir.holds("train", 4, DIGEST)
    assert heir.iteration == 4
    again = await _finished(heir, None)
    assert again.tensors["w"].tobytes() == whole.tensors["w"].tobytes()
    assert (fresh.steps, heir.iteration) == (6, 10), "only what was left is done"


class Told(Turns):
    """Turns that say what is done with them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.told: list[str] = []

    def go_on(self) -> bool:
        self.told.append("go on")
        return super().go_on()

    def end(self) -> None:
        if self._mine is not None:
            self.told.append("end")
        super().end()


@pytest.mark.parametrize("how", ["done", "stopped", "failed"])
async def test_iterations_but_the_first_of_a_life_are_done_in_a_turn_which_is_given_back(how: str) -> None:
    turns = Told()
    trainer = Trainer(3, turns=turns)

    def before_step(done: int) -> None:
        if done == 5 and how == "stopped":
            trainer.stop()
        if done == 5 and how == "failed":
            raise LearnerError("on purpose")

    await trainer.load(lambda: Counting(before_step=before_step))
    with pytest.raises(LearnerError, match="on purpose") if how == "failed" else contextlib.nullcontext():
        await trainer.run(JOB, THETA, DIGEST, None)
    trainer.close()
    asked = turns.told.count("go on")
    assert asked == {"done": 9, "stopped": 6, "failed": 5}[how], "each after the first"
    assert turns.told[-1] == "end"
    assert Turns.go_on(turns), "nobody has it"


async def test_a_state_of_another_learner_is_refused(made: Made) -> None:
    trainer, _ = await made()
    with pytest.raises(LearnerError, match="no state of Counting"):
        await trainer.restore(Snapshot("train", 1, DIGEST, 2, 10, 2, None, {}, b"?"))
    assert trainer.phase is None, "and nothing is held"


async def test_what_the_learner_raises_in_a_job_is_raised_by_run(made: Made) -> None:
    def wrong(done: int) -> None:
        if done == 2:
            raise LearnerError("the loss diverged")

    trainer, _ = await made(3, Counting(before_step=wrong))
    with pytest.raises(LearnerError, match="the loss diverged"):
        await trainer.run(JOB, THETA, DIGEST, None)


async def test_what_a_learner_says_in_numpys_numbers_is_pythons_to_the_last_bit(made: Made) -> None:
    """A message or a record carries no np.float64, though it is a float."""
    trainer, _ = await made(3, Numpys())
    done = await trainer.run(JOB, THETA, DIGEST, None)
    assert done is not None
    contribution, last = done
    figures = [last.loss, last.total, contribution.loss, contribution.samples, contribution.metrics["rmse_pp"]]
    assert [type(figure) for figure in figures] == [float, int, float, int, float]
    assert figures[1:] == [10, 0.1, 10, float(np.float32(0.1))]
    assert opened_state(last.sealed_state())[:2] == (10, 10)


@pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("begin", None, r"what begin\(\) returned is None, and should be an int"),
        ("begin", float("nan"), r"what begin\(\) returned is nan, and should be an int"),
        ("begin", 2.5, r"what begin\(\) returned is 2.5, and should be an int"),
        ("step", "low", r"what step\(\) returned is 'low', and should be a float"),
        ("loss", None, r"the loss of its contribution is None, and should be a float"),
        ("samples", 10.5, r"the samples of its contribution is 10.5, and should be an int"),
        ("metrics", {"rmse_pp": [1, 2]}, r"the metric rmse_pp of its contribution is \[1, 2\], and should be a float"),
    ],
)
async def test_what_is_no_number_is_told_in_a_sentence(made: Made, what: str, value: object, said: str) -> None:
    trainer, learner = await made()
    if what in ("begin", "step"):
        setattr(learner, what, lambda *arguments: value)
    else:
        facts = {"loss": 0.5, "samples": 10, what: value}
        learner.finish = lambda: Contribution(THETA, **facts)  # type: ignore[arg-type, method-assign]
    with pytest.raises(LearnerError, match=f"^{said}$"):
        await trainer.run(JOB, THETA, DIGEST, None)


@pytest.mark.parametrize("method", ["initial_parameters", "begin", "step", "finish", "state", "restore"])
async def test_whatever_a_method_raises_is_one_sentence_and_its_traceback_is_for_debug(
    made: Made, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The line is the learner's own, not that of the library in which it came out."""

    def wrong(*arguments: object) -> None:
        json.loads("{")

    trainer, learner = await made()
    setattr(learner, method, wrong)
    line = wrong.__code__.co_firstlineno + 1
    cause = rf"JSONDecodeError: .*, raised in {__file__}, line {line}"
    said = rf"^{method}\(\) of learner tests.agent.counting:Counting failed \({cause}\): mend it$"
    alone = {
        "initial_parameters": lambda: trainer.initial_parameters(1),
        "restore": lambda: trainer.restore(Snapshot("train", 1, DIGEST, 2, 10, 2, None, {}, b"?")),
    }
    with caplog.at_level(logging.DEBUG, "fmrec.learner"), pytest.raises(LearnerFailed, match=said) as raised:
        await alone.get(method, lambda: trainer.run(JOB, THETA, DIGEST, None))()
    assert isinstance(raised.value.__cause__, json.JSONDecodeError)
    assert [record.levelname for record in caplog.records if record.exc_info] == ["DEBUG"]
    assert "json/decoder.py" in caplog.text


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, r"returned None: return \(arrays by name, anything else as bytes\)"),
        (({}, b"", 1), r"returned \({}, b'', 1\): return \(arrays"),
        (({}, "text"), r"returned a str beside its arrays: encode it as bytes"),
        (({}, None), r"returned a NoneType beside its arrays: encode it as bytes"),
        (([], b""), r"returned a list where numpy arrays by name should be: return a dict of them"),
        (({"w": [1.0]}, b""), r"returned 'w' as a list: return numpy arrays, by names that are strings"),
        (({1: np.zeros(1)}, b""), r"returned 1 as a ndarray: return numpy arrays, by names that are strings"),
    ],
)
async def test_a_state_that_no_later_life_could_restore_is_told_at_the_first_snapshot(made: Made, state: object, said: str) -> None:
    trainer, learner = await made(3)
    learner.state = lambda: state  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(LearnerError, match=rf"^state\(\) of learner tests.agent.counting:Counting {said}"):
        await trainer.run(JOB, THETA, DIGEST, None)
    assert learner.steps == 3


@pytest.mark.parametrize(
    ("contribution", "said"),
    [
        (None, r"returned None: return a Contribution"),
        (Contribution({"w": [1.0]}, 0.5, 10), r"returned 'w' as a list: return numpy arrays"),  # type: ignore[dict-item]
    ],
)
async def test_what_is_no_contribution_is_told_in_a_sentence(made: Made, contribution: Contribution, said: str) -> None:
    trainer, learner = await made()
    learner.finish = lambda: contribution  # type: ignore[method-assign]
    with pytest.raises(LearnerError, match=rf"^finish\(\) of learner tests.agent.counting:Counting {said}"):
        await trainer.run(JOB, THETA, DIGEST, None)
