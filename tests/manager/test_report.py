"""What is told of a tree: by a manager that began the run, and by one that resumed it."""

from __future__ import annotations

import pytest

from fmrec_manager.report import Facts, tree_document
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
