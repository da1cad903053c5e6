"""The command line `fmrec-manager`: what it hands on, what it prints, its exit codes, and mistakes told in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fmrec_manager.cli
from fmrec_manager.cli import main
from fmrec_manager.settings import ManagerSettings, TreeSettings
from protocol.aio.process import UserError
from protocol.aio.settings import load
from protocol.identifiers import Address

DOCUMENT: dict[str, Any] = {
    "cluster": "fmrec",
    "manager": {"address": "127.0.0.1:7700", "pid": 1, "uptime_s": 1.0, "device": "cpu"},
    "trees": {},
}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FMREC_CLUSTER", "FMREC_TREE__MAIN__ROUNDS", "FMREC_LISTEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ManagerSettings]:
    """The settings that were served with, by a daemon that says 0."""
    seen: list[ManagerSettings] = []
    monkeypatch.setitem(sys.modules, "fmrec_manager.daemon", SimpleNamespace(serve=lambda settings: seen.append(settings) or 0))
    return seen


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the manager answers, one after the other; after the last it is gone. Waiting between two questions takes no time."""
    left: list[dict[str, Any]] = []

    async def request(address: Address, cluster: str, timeout_s: float) -> dict[str, Any]:
        if not left:
            raise UserError(f"nobody listens at {address}: is the manager running?")
        return left.pop(0)

    monkeypatch.setitem(sys.modules, "protocol.aio.status_client", SimpleNamespace(request_status=request, request_stop=request))
    monkeypatch.setattr(fmrec_manager.cli, "WATCH_INTERVAL_S", 0.0)
    return left


def test_serve_gets_file_variables_and_options_merged(
    served: list[ManagerSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "manager.toml").write_text("[tree.main]\nrounds = 1\nseed = 4\n")
    monkeypatch.setenv("FMREC_TREE__MAIN__ROUNDS", "10")
    options = ["--listen", "10.0.0.7:7800", "--state-dir", "st", "--join", "a:1", "--set", "tree.main.recovery=drop"]
    assert main(["serve", "manager.toml", *options]) == 0
    tree = TreeSettings(rounds=10, seed=4, recovery="drop")
    assert served == [ManagerSettings(listen="10.0.0.7:7800", state_dir=Path("st"), join=("a:1",), tree={"main": tree})]


def test_a_standby_is_told_where_the_ring_is(served: list[ManagerSettings], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--standby", "--join", "a:1"]) == 0
    assert served == [ManagerSettings(standby=True, join=("a:1",))]
    assert main(["serve", "--standby"]) == 2
    assert capsys.readouterr().err.startswith("error: a standby must be told where the ring is")


def test_show_config_prints_settings_that_load_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--set", "tree.main.rounds=3", "--show-config"]) == 0
    (tmp_path / "shown.toml").write_text(capsys.readouterr().out)
    assert load(ManagerSettings, tmp_path / "shown.toml", [], {}) == ManagerSettings(tree={"main": TreeSettings(rounds=3)})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "--set", "tree.main.round=3"], "error: --set: tree.main.round is no setting; the nearest is tree.main.rounds\n"),
        (["serve", "--listen", "x"], 'error: --listen: listen is "x", but should be HOST:PORT, such as "127.0.0.1:7700"\n'),
        (["serve", "--set", "overlay.preset=wan"], "error: tree.main.round_deadline_s (30.0) must exceed the 47 s"),
        (["stop", "--at", "x"], 'error: --at is "x", but should be HOST:PORT'),
        (["status", "--format", "xml"], "error: Invalid value for '--format'"),
    ],
)
def test_a_mistake_of_the_user_is_a_sentence_and_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(told)
    assert not said.out


def test_status_as_text_and_as_json(answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    answers += [DOCUMENT, DOCUMENT]
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "FMRec fmrec   manager 127.0.0.1:7700   pid 1   cpu   up 1 s\n"
    assert main(["status", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == DOCUMENT


def test_watch_asks_until_the_manager_is_gone(answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    answers += [DOCUMENT] * 3
    assert main(["status", "--watch", "--format", "json"]) == 1
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == [DOCUMENT] * 3
    assert said.err == "error: nobody listens at 127.0.0.1:7700: is the manager running?\n"
    answers += [DOCUMENT]
    assert main(["status", "--watch"]) == 1


def test_an_agent_asked_by_mistake_is_told_apart(answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    answers.append({"name": "agent-3"})
    assert main(["status", "--at", "127.0.0.1:7710"]) == 1
    assert capsys.readouterr().err.startswith("error: 127.0.0.1:7710 answers, but it is no manager")


def test_stop(answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    answers.append(DOCUMENT)
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == "the manager at 127.0.0.1:7700 stops\n"


def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(settings: ManagerSettings) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "fmrec_manager.daemon", SimpleNamespace(serve=serve))
    assert main(["serve"]) == 130


def test_help_waits_for_nothing_heavy() -> None:
    """--help answers within 0.4 s: what takes long to import is not imported for it."""
    heavy = {"torch", "numpy", "pydantic", "rich", "asyncio"}
    code = f"import sys, fmrec_manager.cli as c; c.main(['--help']); print(*{heavy} & set(sys.modules), file=sys.stderr)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=root)
    assert done.stderr.strip() == ""
