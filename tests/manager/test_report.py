"""What is told of a tree: by a manager that began the run, and by one that resumed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmrec_manager.orders import Announce
from fmrec_manager.report import Facts, last_word, tree_document
from fmrec_manager.settings import TreeSettings
from protocol.wire.values import Progress, SubtreeDigest
from tests.manager.stage import SOURCES, Stage, named, resumed, stage


def told(play: Stage, **progress: Progress) -> dict[str, object]:
    known = {named(name): one for name, one in progress.items()}
    settings = TreeSettings(rounds=100)
    return tree_document(Facts(play.root, settings, b"", SubtreeDigest(), known, play.now, None, 0.0))


@pytest.mark.parametrize("first", [0, 50])
def test_the_time_that_is_left_is_told_by_the_rounds_that_this_manager_did(first: int) -> None:
    play = stage(rounds=100)
    if first:
        play.took(play.root.start(play.now))
        play.joins(*SOURCES)
        play.located(resumed(first, *SOURCES))
    else:
        play.begins(*SOURCES)
    assert told(play)["time_left_s"] is None, "nothing is known yet"
    for number in (first, first + 1):
        play.after(3.0)
        play.closes(number, *SOURCES)
    document = told(play)
    assert (document["round"], document["first_round"], document["elapsed_s"]) == (first + 2, first, 6.0)
    assert document["time_left_s"] == 3.0 * (100 - first - 2)


def test_the_progress_of_who_hangs_below_another_is_not_known() -> None:
    play = stage()
    play.begins(*SOURCES)
    members = told(play, a=Progress(0, 7, 0.5, 3))["members"]
    assert isinstance(members, list)
    assert [(one["round"], one["iteration"], one["replicas"]) for one in members] == [(0, 7, 3), (None, None, None), (None, None, None)]


def test_the_last_word_of_a_run_that_is_stopped_says_where_its_theta_is() -> None:
    play, folder = stage("exact"), Path("kept here")
    assert last_word(play.root, folder) == "", "there is none yet"
    play.begins(*SOURCES)
    where = "stops in round 0 of 2; theta and round state are kept by"
    assert last_word(play.root, None) == f"{where} replicas on its agents"
    assert last_word(play.root, folder) == f"{where} replicas on its agents and kept here"
    play.goes(*SOURCES, cause="left")
    assert last_word(play.root, folder) == f"{where} kept here"
    assert last_word(play.root, None) == f"{where} nobody: name a --state-dir next time"
    play.took(play.root.superseded("is rooted elsewhere", 7))
    assert last_word(play.root, folder) == "", "another manager has it"


def test_a_first_theta_that_is_not_durable_is_kept_by_nobody_yet() -> None:
    play = stage("exact")
    play.took(play.root.start(0.0))
    play.located()
    play.joins(*SOURCES)
    play.located()
    play.uploads(next(name for name in SOURCES if named(name) == play.last(Announce).asked), 0, "init")
    assert (play.root.stage, play.root.version) == ("committing", 1)
    assert last_word(play.root, None) == ""
    play.is_durable()
    assert "kept by replicas on its agents" in last_word(play.root, None)
