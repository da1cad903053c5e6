"""The agent's settings: the example file, what differs between agents of one start, and what excludes what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fmrec_agent.learning.options import METHODS
from fmrec_agent.settings import FIRST_PORT, PORTS_END, AgentSettings
from protocol.aio.settings import SettingsError, load, show

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "agent.toml"


def settings(*overrides: str) -> AgentSettings:
    return load(AgentSettings, None, overrides, {})


def test_the_example_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    assert load(AgentSettings, EXAMPLE, [], {}) == AgentSettings()
    written = set(re.findall(r"^(?:# )?(\w+) = ", EXAMPLE.read_text(), re.MULTILINE))
    learning = type(AgentSettings().learning).model_fields
    task = type(AgentSettings().learning.task).model_fields
    missing = (AgentSettings.model_fields.keys() | learning.keys() | task.keys()) - written - {"overlay", "learning", "task"}
    assert not missing, f"configs/agent.toml lacks {sorted(missing)}"
    shown = tmp_path / "shown.toml"
    shown.write_text(show(AgentSettings()))
    assert load(AgentSettings, shown, [], {}) == AgentSettings()


@pytest.mark.parametrize("learner", METHODS)
def test_the_example_serves_every_method(learner: str) -> None:
    chosen = f"learning.learner={learner}"
    assert load(AgentSettings, EXAMPLE, [chosen], {}) == settings(chosen)


@pytest.mark.parametrize("learner", METHODS)
def test_what_is_shown_of_a_method_can_be_read_back(learner: str, tmp_path: Path) -> None:
    chosen = settings(f"learning.learner={learner}")
    (tmp_path / "shown.toml").write_text(show(chosen))
    assert load(AgentSettings, tmp_path / "shown.toml", [], {}) == chosen


def test_one_agent_has_the_name_itself_and_several_are_numbered() -> None:
    assert settings().name_of(0) == "agent"
    assert [settings("count=3", "name=lot").name_of(index) for index in range(3)] == ["lot-0", "lot-1", "lot-2"]


def test_the_first_are_sources_and_the_rest_targets() -> None:
    some = settings("count=4", "sources=3")
    assert [some.role_of(index) for index in range(4)] == ["source", "source", "source", "target"]
    assert settings("count=2").role_of(1) == "source"
    assert settings("role=target").role_of(0) == "target"


def test_ports_stay_below_those_of_outgoing_connections_unless_one_is_given() -> None:
    free = settings("count=2").ports_of(1)
    assert (free.start, free.stop) == (FIRST_PORT + 1, PORTS_END)
    assert list(settings("port=40000", "count=2").ports_of(1)) == [40001]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["role=source", "sources=1"], "role (source) and sources (1) exclude each other: sources gives both roles"),
        (["sources=2"], "sources (2) cannot exceed count (1)"),
        (["count=1025"], "--set: count is 1025, but should be less than or equal to 1024"),
        (["port=65535", "count=2"], "port (65535) leaves no room for 2 agents below 65536, one port each"),
        (["count=2", f"name={'n' * 64}"], f"name ({'n' * 64}) is too long: with the agent's number it has more than 64 characters"),
        (["host=0.0.0.0"], '--set: host is "0.0.0.0", but should name one address that peers can dial: they are told it'),
        (["host="], '--set: host is "", but should have at least 1 character'),
        (
            ["join=127.0.0.1:7700,192.0.2.5:7700"],
            "host (127.0.0.1) can be dialled from this machine alone, and join names 192.0.2.5:7700: "
            "set host, or the HOST of --listen, to an address of this machine that peers there can dial",
        ),
        (["task=sinusoid"], "task (sinusoid) must be learning.task.name (parking): set both to the same"),
        (["learning.task.hiden=4"], "--set: learning.task.hiden is no setting; the nearest is learning.task.hidden"),
        (
            ["learning.task.shots=4"],
            "--set: learning.task.shots belongs to another kind of learning.task than the one that learning.task.name says",
        ),
        (
            ["learning.learner=fedavg", "learning.inner_rate=0.1"],
            "learning: inner_rate is an option of maml, fomaml, reptile, per-fedavg, lin, admm, not of fedavg: "
            "leave it out, or choose another learner",
        ),
        (["record_store_bytes_max=1"], "record_store_bytes_max (1) must hold one record, overlay.record_bytes_max (1073741824)"),
        (
            ["name=../etc"],
            '--set: name is "../etc", but should be at most 64 letters, digits, dots, dashes or underscores, a letter or digit first',
        ),
    ],
)
def test_what_does_not_go_together_is_said_in_a_sentence(overrides: list[str], told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        settings(*overrides)
    assert raised.value.problems == (told,)


def test_another_task_and_a_learner_of_ones_own() -> None:
    assert settings("task=sinusoid", "learning.task.name=sinusoid").learning.task.name == "sinusoid"
    assert settings("task=mine", "learning.learner=my.module:Learner").task == "mine"
