"""The manager's settings: the example file, the trees, and deadlines that nest (promise P8)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fmrec_manager.settings import ManagerSettings, TreeSettings
from protocol.aio.settings import SettingsError, load
from protocol.identifiers import Address

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "manager.toml"


def settings(*overrides: str) -> ManagerSettings:
    return load(ManagerSettings, None, overrides, {})


def test_the_example_holds_every_setting_with_its_default() -> None:
    assert load(ManagerSettings, EXAMPLE, [], {}) == ManagerSettings()
    written = set(re.findall(r"^(?:# )?(\w+) = ", EXAMPLE.read_text(), re.MULTILINE))
    missing = (ManagerSettings.model_fields.keys() | TreeSettings.model_fields.keys()) - written - {"overlay", "tree"}
    assert not missing, f"configs/manager.toml lacks {sorted(missing)}"


def test_what_the_example_says_of_the_overlay_is_so() -> None:
    """The commented fields of the preset, taken at their word."""
    fields = r"^# (\w+_s|replicas|write_quorum|leaf_set_size|heartbeat_misses) = ([\d.]+)"
    said = dict(re.findall(fields, EXAMPLE.read_text(), re.MULTILINE))
    given = settings(*(f"overlay.{key}={value}" for key, value in said.items()))
    assert len(said) == 9
    assert given.overlay.parameters() == ManagerSettings().overlay.parameters()


def test_a_source_that_names_trees_replaces_the_default_one() -> None:
    assert settings().tree == {"main": TreeSettings()}
    assert settings("tree.parking.rounds=3").tree == {"parking": TreeSettings(rounds=3)}
    assert settings("listen=[::1]:7800").address == Address("::1", 7800)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["overlay.preset=wan"], "tree.main.round_deadline_s (30.0) must exceed the 47 s that noticing"),
        (["tree.main.round_deadline_s=1"], "tree.main.round_deadline_s (1.0) must exceed the 2.65 s that noticing"),
        (["tree.main.exact_wait_s=2"], "tree.main.exact_wait_s (2.0) must exceed the 2.65 s that noticing"),
        (["tree.main.recovery=hope"], '--set: tree.main.recovery is "hope", but should be "substitute", "exact" or "drop"'),
        (["tree.main.quorum=0"], "--set: tree.main.quorum is 0, but should be greater than 0"),
        (["tree={}"], "--set: tree is {}, but should have at least 1 item"),
        (["tree.a/b.rounds=1"], '--set: tree.a/b is "a/b", but should be at most 64 letters'),
        (["standby=true"], "a standby must be told where the ring is: name the manager, and an agent or two, with --join HOST:PORT"),
        (["tree.main.deadline_factor=0.5"], "--set: tree.main.deadline_factor is 0.5, but should be greater than or equal to 1"),
        (["tree.main.trim=0.5"], "--set: tree.main.trim is 0.5, but should be less than 0.5"),
        (["tree.main.selection=best"], '--set: tree.main.selection is "best", but should be "all", "fraction", "samples" or "nufm"'),
        (
            ["tree.main.aggregation=krum", "tree.main.byzantine=2", "tree.main.sources_min=6"],
            "tree.main: aggregation krum with byzantine = 2 and krum_selected = 1 needs 7 contributions a round: set sources_min to 7",
        ),
        (
            ["tree.main.aggregation=krum", "tree.main.krum_selected=8", "tree.main.sources_min=8"],
            "tree.main: aggregation krum with byzantine = 1 and krum_selected = 8 needs 9 contributions a round: set sources_min to 9",
        ),
        (["listen=7700"], '--set: listen is "7700", but should be HOST:PORT'),
        (["listen=0.0.0.0:7700"], '--set: listen is "0.0.0.0:7700", but should name one address that peers can dial: they are told it'),
        (["listen=[::]:7700"], '--set: listen is "[::]:7700", but should name one address that peers can dial'),
        (
            ["join=127.0.0.1:7710,192.0.2.5:7710"],
            "listen (127.0.0.1:7700) can be dialled from this machine alone, and join names 192.0.2.5:7710: "
            "set --listen to an address of this machine that peers there can dial",
        ),
    ],
)
def test_a_mistake_is_one_sentence(overrides: list[str], told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        settings(*overrides)
    (problem,) = raised.value.problems
    assert problem.startswith(told)


def test_wan_is_patient_enough_with_longer_rounds() -> None:
    assert settings("overlay.preset=wan", "tree.main.round_deadline_s=60").tree["main"].round_deadline_s == 60
