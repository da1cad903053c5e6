"""The command line `fmrec-agent`: what it hands on, what it prints, its exit codes, and mistakes told in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmrec_agent.cli import main
from fmrec_agent.settings import AgentSettings
from protocol.aio.process import UserError
from protocol.aio.settings import load
from protocol.identifiers import Address

DOCUMENT = {"name": "agent-3", "ring": {"leaf_set": ["agent-1", "agent-2"], "suspects": []}, "records": [{"owner": "a\x1b[2J", "round": 4}]}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FMREC_CLUSTER", "FMREC_COUNT", "FMREC_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[AgentSettings]:
    """The settings that were launched with, by a launcher that says 0."""
    seen: list[AgentSettings] = []
    monkeypatch.setitem(sys.modules, "fmrec_agent.launcher", SimpleNamespace(launch=lambda settings: seen.append(settings) or 0))
    return seen


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The questions that were asked, of an agent that listens on 7710 alone."""
    seen: list[tuple[Any, ...]] = []

    async def request_status(address: Address, cluster: str, timeout_s: float) -> dict[str, Any]:
        if address.port != 7710:
            raise UserError(f"nobody listens at {address}: is the agent running?")
        seen.append((address, cluster))
        return DOCUMENT

    client = SimpleNamespace(request_status=request_status, request_stop=request_status)
    monkeypatch.setitem(sys.modules, "protocol.aio.status_client", client)
    return seen


def test_start_launches_with_file_variables_and_options_merged(
    launched: list[AgentSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "agent.toml").write_text('name = "file"\ncount = 2\ncheckpoint_every = 7\n')
    monkeypatch.setenv("FMREC_COUNT", "3")
    where = ["--join", "a:1", "--join", "[::1]:2", "--listen", "[::1]:auto", "--state-dir", "st"]
    assert main(["start", "agent.toml", "--count", "4", *where, "--restart", "on-failure", "--set", "sources=2", "--set", "count=9"]) == 0
    (settings,) = launched
    assert settings == AgentSettings(
        name="file", count=4, checkpoint_every=7, join=("a:1", "[::1]:2"), host="::1", state_dir=Path("st"), restart="on-failure", sources=2
    )


def test_a_name_is_a_string_whatever_it_looks_like(launched: list[AgentSettings]) -> None:
    assert main(["start", "--name", "7", "--listen", "10.0.0.7:7720"]) == 0
    assert (launched[0].name, launched[0].host, launched[0].port) == ("7", "10.0.0.7", 7720)


def test_the_launchers_code_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fmrec_agent.launcher", SimpleNamespace(launch=lambda settings: 1))
    assert main(["start"]) == 1


def test_show_config_prints_settings_that_load_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["start", "--count", "5", "--set", "overlay.preset=lan", "--show-config"]) == 0
    (tmp_path / "shown.toml").write_text(capsys.readouterr().out)
    assert load(AgentSettings, tmp_path / "shown.toml", [], {}) == load(AgentSettings, None, ["count=5", "overlay.preset=lan"], {})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["start", "--set", "cuont=3"], "error: --set: cuont is no setting; the nearest is count\n"),
        (["start", "--count", "0"], "error: --count: count is 0, but should be greater than or equal to 1\n"),
        (["start", "--listen", "7710"], "error: --listen is 7710, but should be HOST:PORT, such as 127.0.0.1:7710 or 127.0.0.1:auto.\n"),
        (["start", "none.toml"], "error: none.toml: there is no such file of settings\n"),
        (["status", "--at", "here"], 'error: --at is "here", but should be HOST:PORT, such as "127.0.0.1:7700"\n'),
        (["start", "--set", "a=1", "--set", "b=2"], "error: --set: a is no setting"),
        (["leave"], "error: Missing option '--at'"),
        (["strat"], "error: No such command 'strat'"),
    ],
)
def test_a_mistake_of_the_user_is_a_sentence_and_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(told)
    assert not said.out
    assert all(line.startswith("error: ") for line in said.err.splitlines())


def test_status_as_text_and_as_json(asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--at", "127.0.0.1:7710", "--cluster", "lab"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name: agent-3", "ring:", "  leaf_set: agent-1, agent-2", "  suspects: -", "records:", "  0:",
        "    owner: a\N{REPLACEMENT CHARACTER}[2J", "    round: 4",
    ]  # fmt: skip
    assert main(["status", "--at", "127.0.0.1:7710", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == DOCUMENT
    assert asked == [(Address("127.0.0.1", 7710), "lab"), (Address("127.0.0.1", 7710), "fmrec")]


def test_leave_asks_the_agent(asked: list[tuple[Any, ...]]) -> None:
    assert main(["leave", "--at", "127.0.0.1:7710"]) == 0
    assert asked == [(Address("127.0.0.1", 7710), "fmrec")]


@pytest.mark.usefixtures("asked")
def test_an_agent_that_is_not_there_is_a_sentence_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--at", "127.0.0.1:7711"]) == 1
    assert capsys.readouterr().err == "error: nobody listens at 127.0.0.1:7711: is the agent running?\n"


def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(settings: AgentSettings) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "fmrec_agent.launcher", SimpleNamespace(launch=launch))
    assert main(["start"]) == 130


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(settings: AgentSettings) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(sys.modules, "fmrec_agent.launcher", SimpleNamespace(launch=launch))
    with pytest.raises(ZeroDivisionError):
        main(["start"])


def test_no_command_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "start" in capsys.readouterr().out
    assert main(["start", "--help"]) == 0
    assert "fmrec-agent start --count 8" in capsys.readouterr().out


def test_help_waits_for_nothing_heavy() -> None:
    """--help answers within 0.4 s: what takes long to import is not imported for it."""
    heavy = {"torch", "numpy", "pydantic", "rich", "asyncio"}
    code = f"import sys, fmrec_agent.cli as c; c.main(['--help']); print(*{heavy} & set(sys.modules), file=sys.stderr)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=root)
    assert done.stderr.strip() == ""
