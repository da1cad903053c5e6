"""Loading by name, and the options: what is unknown is refused with the nearest known, and nothing imports torch too early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from fmrec_agent.learning.learner import Job, Learner, LearnerError, Role
from fmrec_agent.learning.loading import LEARNERS, load_learner, load_method
from fmrec_agent.learning.options import METHOD_KEYS, METHODS, LearningOptions, ParkingOptions, SinusoidOptions

ROOT = Path(__file__).resolve().parents[2]


def load(learner: str, role: Role = "source", index: int = 0, **options: object) -> Learner:
    return load_learner(LearningOptions.model_validate({"learner": learner, **options}), name="agent", role=role, index=index)


def gradient(learner: Learner) -> bytes:
    learner.begin(Job("train", 0, 0), learner.initial_parameters(0))
    for _ in range(10):
        learner.step()
    return b"".join(value.tobytes() for value in learner.finish().tensors.values())


def test_fomaml_is_maml_with_first_order() -> None:
    assert gradient(load("fomaml")) == gradient(load("maml", first_order=True)) != gradient(load("maml"))


def test_every_method_has_its_options_and_every_option_a_method() -> None:
    assert LEARNERS.keys() == METHODS.keys()
    keys = {key for own in METHODS.values() for key in own}
    assert METHOD_KEYS <= keys <= LearningOptions.model_fields.keys()
    for name, own in METHODS.items():
        chosen = LearningOptions(learner=name)
        assert own.items() <= dict(chosen).items()
        assert dict(chosen).keys().isdisjoint(METHOD_KEYS - own.keys())
        assert LearningOptions.model_validate_json(chosen.model_dump_json()) == chosen
        assert load_method(name).method == name


def test_a_role_makes_a_learner_of_that_role() -> None:
    assert (load("maml").role, load("maml", "target").role) == ("source", "target")


OWN = """
from fmrec_agent.learning.loading import load_task
from fmrec_agent.learning.methods.maml import MAML

def doubled(options, *, name, role, index):
    return MAML(options.model_copy(update={"iterations_per_round": 20}), load_task(options, role=role, index=index), name=name)
"""


def test_a_learner_of_ones_own_is_loaded_from_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_learner_of_this_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    learner = load("own_learner_of_this_test:doubled")
    assert learner.begin(Job("train", 0, 0), learner.initial_parameters(0)) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mamal", "there is no learner 'mamal': did you mean 'maml'"),
        ("FOMAML", "there is no learner 'FOMAML': did you mean "),
        (":x", "there is no learner ':x'"),
        ("no_such_module:Thing", r"learner 'no_such_module:Thing' cannot be imported \(No module named 'no_such_module'\): install it"),
        ("fmrec_agent.learning.loading:load_taks", "has no 'load_taks': did you mean 'load_task'"),
        ("builtins:dict", "builtins:dict made a dict, not a Learner"),
    ],
)
def test_a_learner_that_is_not_there_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def own(:", r"cannot be imported \(SyntaxError: .*\): mend its module"),
        ("raise ValueError('a mistake')", r"cannot be imported \(ValueError: a mistake, raised in .*_learner.py, line 1\): mend"),
        ("raise SystemExit('enough')", r"cannot be imported \(SystemExit: enough, raised in .*_learner.py, line 1\): mend"),
        ("def own(*_, **__):\n    raise SystemExit", r"cannot be made \(SystemExit, raised in .*, line 2\): mend it"),
        ("own = 3", r"is a int: name a Learner class, or a function that makes a Learner"),
        ("def own(options): ...", r"cannot be made \(TypeError: .*'name'.*\): mend it; it is called as \(options, name="),
        ("def own(*_, **__):\n    open('no.csv')", r"cannot be made \(FileNotFoundError: .*'no.csv', raised in .*, line 2\): mend it"),
    ],
)
def test_a_mistake_in_a_learner_of_ones_own_is_one_sentence(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spoilt_learner.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spoilt_learner", raising=False)
    with pytest.raises(LearnerError, match=f"learner 'spoilt_learner:own' {message}"):
        load("spoilt_learner:own")


def test_an_index_past_the_lots_is_refused() -> None:
    with pytest.raises(LearnerError, match="there is no source lot number 2"):
        load("maml", index=2, task={"sources": 2})


def test_the_tasks_options_follow_its_name() -> None:
    assert LearningOptions().task == ParkingOptions()
    assert LearningOptions.model_validate({"task": {"days": 6}}).task == ParkingOptions(days=6)
    assert LearningOptions.model_validate({"task": {"name": "sinusoid", "shots": 5}}).task == SinusoidOptions(shots=5)
    restored = LearningOptions.model_validate_json(LearningOptions(task=SinusoidOptions(meta_batch=3)).model_dump_json())
    assert restored.task == SinusoidOptions(meta_batch=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"inner_rte": 0.1},
        {"inner_rate": 0},
        {"inner_rate": float("nan")},
        {"inner_steps": 0},
        {"task": {"name": "parking", "shots": 5}},
        {"task": {"name": "sinusoid", "days": 3}},
        {"task": {"days": 2}},
        {"task": {"name": "omniglot"}},
        {"learner": "fedavg", "inner_rate": 0.1},
        {"rho": 1.0},
        {"learner": "fomaml", "first_order": True},
        {"learner": "meta-sgd", "rate_min": 0.2},
        {"tasks_at_once": 0},
        {"gradient_norm_max": -1.0},
        {"inner_steps": 2, "step_losses": [1.0]},
        {"inner_steps": 2, "step_losses": [0.0, 0.0]},
        {"inner_steps": 2, "step_losses": [2.0, -1.0]},
        {"learner": "reptile", "step_losses": [1.0]},
        {"learner": "maml", "log_rates": True},
        {"task": {"model": "linear", "decoder": "all"}},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LearningOptions.model_validate(wrong)


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        LearningOptions().inner_rate = 1.0


def test_settings_are_checked_without_torch() -> None:
    code = "import sys, fmrec_agent.learning.options, fmrec_agent.learning.loading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0
