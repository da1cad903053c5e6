"""The manager's display: what a user reads at 80 columns, in a log and on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fmrec_manager.display import WIDTH, Display, lines, text

NAMES = [f"agent-{index}" for index in range(8)]


def member(name: str, state: str = "alive", reason: str = "") -> dict[str, Any]:
    return {
        "name": name, "id": "0f" * 16, "address": "192.168.100.100:17710", "pid": 4194303, "role": "source", "state": state,
        "reason": reason, "incarnation": 1, "round": 12, "iteration": 10, "replicas": 3,
    }  # fmt: skip


def recovery(agent: str, **changes: Any) -> dict[str, Any]:
    return {
        "agent": agent, "cause": "connection reset", "noticed_unix_s": 1.75e9, "locate_ms": 12.34, "transfer_ms": 8.0,
        "total_ms": 1250.0, "bytes": 1_234_567, "version": 9, "iterations_behind": 1, "holder": "agent-7",
        "outcome": "restored", **changes,
    }  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    """A manager in the middle of round 12: seven agents live, one has just been found dead."""
    tree = {
        "tree_id": "ab" * 16, "task": "parking", "phase": "train", "reason": "", "round": 12, "rounds": 60, "first_round": 0,
        "loss": 0.041237, "losses": [1 / (1 + number) for number in range(12)], "recovery": "exact", "theta_digest": "c0ffee" * 6,
        "members": [*(member(name) for name in NAMES[:7]), member(NAMES[7], "dead", "connection refused by 192.168.100.100:17717")],
        "counts": {"alive": 7, "suspect": 0, "dead": 1, "left": 0}, "replicas": 24,
        "recoveries": [recovery("agent-3"), recovery("agent-7", noticed_unix_s=1.76e9, cause="silent", holder="agent-12345")],
        "elapsed_s": 42.4, "time_left_s": 168.0, "results": {}, **changes,
    }  # fmt: skip
    manager = {"address": "127.0.0.1:7700", "pid": 4711, "uptime_s": 83.0, "device": "cpu"}
    return {"cluster": "fmrec", "manager": manager, "trees": {"main": tree}}


RESULTS = {
    f"agent-{index}": {"loss": 0.00123, "rmse_pp": 3.0 + index, "persistence_rmse_pp": 5.0, "iterations": 400} for index in range(2)
}


def test_a_reader_finds_what_matters() -> None:
    page = text(document())
    for words in (
        "round 12 of 60", "training", "0.04124", "7 alive", "0 suspect", "1 dead", "replicas    24", "recoveries  2",
        "about 2 min 48 s left", "agent-3", "connec", "12.3 ms", "8 ms", "1.25 s", "1.23 MB", "agent-12345", "restored", "4194303",
    ):  # fmt: skip
        assert words in page


def test_who_has_had_no_job_yet_is_in_no_round() -> None:
    page = text(document(members=[{**member(NAMES[0]), "round": -1, "iteration": 0}]))
    (row,) = [line.split() for line in page.splitlines() if line.strip().startswith(NAMES[0])]
    assert row[-3:-1] == ["-", "0"]
    assert "hang at the root" not in page, "that is known"


def test_what_a_manager_that_resumed_cannot_know_is_said() -> None:
    unknown = {"round": None, "iteration": None, "replicas": None}
    page = text(document(first_round=9, members=[member(NAMES[0]), {**member(NAMES[1]), **unknown}]))
    assert "2 since this manager resumed at round 9" in page
    assert "members, with the progress of those that hang at the root itself" in page
    for words in ("resumed", "hang at the root"):
        assert words not in text(document())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"results": RESULTS},
        {"phase": "halted", "reason": "a long reason " * 20},
        {"loss": None, "losses": [], "theta_digest": None, "time_left_s": None, "members": [], "recoveries": [], "phase": "waiting"},
        {"members": [member("n" * 64, "suspect", "silent " * 40)], "recoveries": [recovery("n" * 64, outcome="lost " * 20)]},
    ],
)
def test_nothing_is_wider_than_the_terminal(changes: dict[str, Any]) -> None:
    assert max(map(len, text(document(**changes)).splitlines())) <= WIDTH


def test_the_results_end_with_their_means() -> None:
    page = text(document(phase="done", results=RESULTS))
    last = page.splitlines()[-1].split()
    assert last == ["mean", "0.001230", "3.500", "5.000", "400.0"]


def test_a_log_gets_a_line_only_when_something_happened() -> None:
    first = document()
    assert lines(None, first)[0] == (
        "main: training, round 12/60, loss 0.04124, 7 alive, 0 suspect, 1 dead, 24 replicas, 2 recoveries, about 2 min 48 s left"
    )
    assert lines(None, first)[1] == (
        "main: recovery of agent-3 (connection reset): restored, located in 12.3 ms, 1.23 MB from agent-7 in 8 ms, "
        "1.25 s in all, 1 iteration behind"
    )
    assert lines(first, document(elapsed_s=43.4, time_left_s=167.0, losses=[1.0], replicas=25)) == []
    news = lines(first, document(round=13, results=RESULTS, recoveries=[*first["trees"]["main"]["recoveries"], recovery("agent-1")]))
    assert [line.split(":")[1].split(",")[0].strip() for line in news] == [
        "training", "recovery of agent-1 (connection reset)", "result of agent-0", "result of agent-1",
    ]  # fmt: skip


def test_a_recovery_under_way_has_dashes_for_what_is_not_known() -> None:
    unknown = dict.fromkeys(("locate_ms", "transfer_ms", "total_ms", "bytes", "iterations_behind", "holder"))
    started = document(recoveries=[recovery("agent-3", outcome="looking", **unknown)])
    assert lines(None, started)[1].endswith("looking, located in -, - from - in -, - in all, - behind")
    ended = document(recoveries=[recovery("agent-3")])
    assert "restored" in lines(started, ended)[0]


def test_names_from_peers_can_neither_mark_up_nor_move_the_cursor() -> None:
    """P7: a peer's words are shown, not obeyed."""
    evil = "\x1b[2J[bold]x\r\n"
    page = text(document(members=[member(evil, "dead", evil)], reason=evil))
    assert "[bold]x" in page
    assert not {"\x1b", "\r"} & set(page)
    assert not any({"\x1b", "\r", "\n"} & set(line) for line in lines(None, document(reason=evil)))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_redrawn_and_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with Display(stream) as display:
            display.update(document())
            display.update(document(round=13))
    assert "\x1b[" in terminal.getvalue()
    assert "connection refused" in terminal.getvalue(), "who is not well is named, with the reason"
    assert "\x1b[" not in pipe.getvalue()
    assert [line.split(",")[1] for line in pipe.getvalue().splitlines() if "round" in line] == [" round 12/60", " round 13/60"]


def test_a_standby_says_what_it_watches_until_it_roots_it() -> None:
    watched = {"main": {"stage": "watching", "reason": "the root at 127.0.0.1:7700 lives", "root": "127.0.0.1:7700", "term": 5}}
    watching = {**document(), "trees": {}, "standby": watched}
    assert lines(None, watching) == ["main: standby, the root at 127.0.0.1:7700 lives"]
    assert lines(watching, watching) == []
    assert "main: standby, the root at 127.0.0.1:7700 lives" in text(watching)
    assert "standby" not in text({**document(), "standby": watched}), "it roots the tree now"
