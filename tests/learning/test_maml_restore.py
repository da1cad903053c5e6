"""P5: a learner restored after any iteration goes on bit for bit, in a new object and in another process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmrec_agent.learning.learner import Contribution, Job, Learner, LearnerError, Role, Tensors
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.options import LearningOptions

ROOT = Path(__file__).resolve().parents[2]
PARKING = {"iterations_per_round": 5, "batch": 16, "adapt_iterations": 12, "adapt_batch": 16, "task": {"days": 1}}
SINUSOID = {"iterations_per_round": 5, "adapt_iterations": 12, "task": {"name": "sinusoid", "meta_batch": 3}}
ITERATIONS: dict[Role, int] = {"source": 5, "target": 12}
JOBS: dict[Role, Job] = {"source": Job("train", 3, 7), "target": Job("adapt", 3, 7)}


def made(options: dict[str, object], role: Role, name: str = "agent") -> Learner:
    return load_learner(LearningOptions.model_validate(options), name=name, role=role, index=1)


def digest(tensors: Tensors, rest: bytes) -> str:
    total = hashlib.sha256(rest)
    for key, value in tensors.items():
        total.update(f"{key} {value.dtype} {value.shape}".encode() + value.tobytes())
    return total.hexdigest()


def outcome(contribution: Contribution) -> str:
    return digest(contribution.tensors, repr((contribution.loss, contribution.samples, contribution.metrics)).encode())


def finished(learner: Learner, steps: int) -> tuple[str, str]:
    """The job's outcome and the state after it."""
    for _ in range(steps):
        learner.step()
    return outcome(learner.finish()), digest(*learner.state())


@pytest.mark.parametrize("extra", [{}, {"first_order": True}, {"adapt_optimizer": "sgd"}], ids=["maml", "fomaml", "sgd"])
@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("options", [PARKING, SINUSOID], ids=["parking", "sinusoid"])
def test_restored_after_any_iteration_it_ends_alike(options: dict[str, object], role: Role, extra: dict[str, object]) -> None:
    learner = made({**options, **extra}, role)
    assert learner.begin(JOBS[role], learner.initial_parameters(7)) == ITERATIONS[role]
    states = [learner.state()]
    for _ in range(ITERATIONS[role]):
        learner.step()
        states.append(learner.state())
    expected = outcome(learner.finish()), digest(*learner.state())
    assert digest(*states[-1]) == expected[1], "finish() changes nothing that state() holds"
    for done, (tensors, position) in enumerate(states):
        other = made({**options, **extra}, role)
        other.restore(tensors, position)
        assert digest(*other.state()) == digest(tensors, position)
        assert finished(other, ITERATIONS[role] - done) == expected, f"restored after iteration {done}"


def test_the_next_job_is_the_same_for_a_life_that_lost_its_record() -> None:
    """In round 4 the undisturbed agent, the restored one and one that knows nothing draw the same batches; and not round 3's again."""
    first, second, ignorant = made(PARKING, "source"), made(PARKING, "source"), made(PARKING, "source")
    theta = first.initial_parameters(7)
    first.begin(Job("train", 3, 7), theta)
    third_round = finished(first, 5)
    second.restore(*first.state())
    rounds = []
    for learner in (first, second, ignorant):
        learner.begin(Job("train", 4, 7), theta)
        rounds.append(finished(learner, 5))
    assert rounds[0] == rounds[1] == rounds[2]
    assert rounds[0][0] != third_round[0]


def test_a_learner_without_a_job_restores_too() -> None:
    learner, other = made(PARKING, "source"), made(PARKING, "source")
    other.restore(*learner.state())
    assert other.state() == learner.state()


def test_agents_draw_differently_and_runs_do_too() -> None:
    outcomes = set()
    for name, seed in (("a", 7), ("b", 7), ("a", 8)):
        learner = made(PARKING, "source", name)
        learner.begin(Job("train", 0, seed), learner.initial_parameters(7))
        outcomes.add(finished(learner, 5)[0])
    assert len(outcomes) == 3


def test_another_run_gets_another_stream_in_a_process_that_served_one() -> None:
    learner, fresh = made(PARKING, "source"), made(PARKING, "source")
    theta = learner.initial_parameters(7)
    learner.begin(Job("train", 0, 7), theta)
    learner.begin(Job("train", 0, 8), theta)
    fresh.begin(Job("train", 0, 8), theta)
    assert finished(learner, 5) == finished(fresh, 5)


def test_state_is_a_copy_and_read_only_bytes_will_do() -> None:
    learner = made(PARKING, "target")
    learner.begin(JOBS["target"], learner.initial_parameters(7))
    learner.step()
    tensors, position = learner.state()
    before = digest(tensors, position)
    learner.step()
    assert digest(tensors, position) == before
    frozen = {key: np.frombuffer(b"x" + value.tobytes(), value.dtype, offset=1).reshape(value.shape) for key, value in tensors.items()}
    other = made(PARKING, "target")
    other.restore(frozen, position)
    other.step()
    assert digest(*other.state()) == digest(*learner.state())


def test_a_loss_that_is_not_finite_survives_the_state() -> None:
    learner, other = made(PARKING, "source"), made(PARKING, "source")
    theta = {key: np.full_like(value, np.nan) for key, value in learner.initial_parameters(7).items()}
    learner.begin(JOBS["source"], theta)
    assert np.isnan(learner.step())
    other.restore(*learner.state())
    assert finished(other, 4) == finished(learner, 4)


CHILD = """
import sys, json, numpy as np, torch
torch.set_num_threads(1)
sys.path[:0] = [{root!r}, {here!r}]
from test_maml_restore import PARKING, JOBS, digest, finished, made
learner = made(PARKING, "target")
theta = learner.initial_parameters(7)
learner.restore(dict(np.load("tensors.npz")), open("position", "rb").read())
print(json.dumps([digest(theta, b""), *finished(learner, 7)]))
"""


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_another_process_goes_on_bit_for_bit(tmp_path: Path, hash_seed: str) -> None:
    learner = made(PARKING, "target")
    theta = learner.initial_parameters(7)
    learner.begin(JOBS["target"], theta)
    for _ in range(5):
        learner.step()
    tensors, position = learner.state()
    np.savez(tmp_path / "tensors.npz", **tensors)
    (tmp_path / "position").write_bytes(position)
    code = CHILD.format(root=str(ROOT), here=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [digest(theta, b""), *finished(learner, 7)]


def test_initial_parameters_are_equal_across_agents_and_roles() -> None:
    for options in (PARKING, SINUSOID):
        thetas = [made(options, role, name).initial_parameters(seed=11) for name, role in (("a", "source"), ("b", "target"))]
        assert digest(thetas[0], b"") == digest(thetas[1], b"")
        assert digest(thetas[0], b"") != digest(made(options, "source").initial_parameters(seed=12), b"")


def test_a_state_may_be_restored_on_another_device() -> None:
    learner, other = made({**PARKING, "device": "auto"}, "source"), made({**PARKING, "device": "cpu"}, "source")
    learner.begin(JOBS["source"], learner.initial_parameters(7))
    other.restore(*learner.state())
    assert digest(*other.state()) == digest(*learner.state())


def test_a_state_of_something_else_is_refused_and_changes_nothing() -> None:
    source, target = made(PARKING, "source"), made(PARKING, "target")
    source.begin(JOBS["source"], source.initial_parameters(7))
    target.begin(JOBS["target"], target.initial_parameters(7))
    tensors, position = source.state()
    before = digest(*target.state())
    cases: list[tuple[Learner, Tensors, bytes, str]] = [
        (target, tensors, position, "cannot restore a train state: the roles were exchanged"),
        (source, tensors, b"\x80\x04}.", "its JSON is unreadable"),
        (source, tensors, position.replace(b'"maml"', b'"reptile"'), "runs maml and cannot restore a state of reptile"),
        (source, tensors, position.replace(b'"iteration":0', b'"iteration":-1'), "iteration is unreadable"),
        (source, tensors, position.replace(b'"iteration":0', b'"iteration":6'), "a state after 6 iterations of a job of 5"),
        (made({**PARKING, "inner_rate": 0.2}, "source"), tensors, position, "made under other options of maml or of its task: set them"),
        (made({**PARKING, "iterations_per_round": 4}, "source"), tensors, position, "made under other options of maml or of its task"),
        (made({**PARKING, "task": {"days": 3}}, "source"), tensors, position, "made under other options of maml or of its task"),
        (source, {**tensors, "dual/x": np.zeros(1)}, position, "tensor 'dual/x'"),
        (source, {"theta/x": np.zeros(1)}, position, "theta/decoder.bias is missing"),
        (made({**PARKING, "task": {"hidden": 3}}, "source"), tensors, position, "give every agent of a tree the same task options"),
    ]
    for learner, given, extra, message in cases:
        with pytest.raises(LearnerError, match=message):
            learner.restore(given, extra)
    assert digest(*target.state()) == before
    assert digest(*source.state()) == digest(tensors, position)
