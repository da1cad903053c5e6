"""Settings: which source wins, how a mistake is told, and that --show-config prints what can be loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from protocol.aio.settings import (
    Addresses,
    OverlaySettings,
    Settings,
    SettingsError,
    StateDir,
    dialable,
    load,
    nearest,
    out_of_reach,
    parse_address,
    show,
)
from protocol.identifiers import Address
from protocol.parameters import PRESETS, OverlayParameters


class Leaf(Settings):
    rounds: int = Field(default=60, ge=1)
    adapt: bool = True
    rate: float = 0.02
    mode: Literal["exact", "drop"] = "exact"


class House(Settings):
    name: str = "main"
    port: int | Literal["auto"] = "auto"
    join: Addresses = ("127.0.0.1:7700",)
    state_dir: StateDir | None = None
    overlay: OverlaySettings = OverlaySettings()
    tree: dict[str, Leaf] = {"main": Leaf()}  # noqa: RUF012  pydantic copies defaults


def problems(*overrides: str, file: Path | None = None, **environment: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as raised:
        load(House, file, overrides, environment)
    return raised.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "house.toml"
    path.write_text('name = "file"\nport = 1\n[tree.main]\nrounds = 1\nrate = 0.1\n[overlay]\npreset = "lan"\nreplicas = 4\n')
    return path


def test_a_later_source_wins_key_by_key(file: Path) -> None:
    environment = {"FMREC_PORT": "2", "FMREC_TREE__MAIN__ROUNDS": "2", "PATH": "/bin", "MY_FMREC_NAME": "no"}
    house = load(House, file, ["tree.main.rounds=3", "overlay.preset=wan", "tree.main.rounds=4"], environment)
    assert (house.name, house.port) == ("file", 2)
    assert house.tree == {"main": Leaf(rounds=4, rate=0.1)}
    assert (house.overlay.preset, house.overlay.parameters().replicas) == ("wan", 4)
    assert load(House, None, [], {}) == House()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        House().name = "other"  # type: ignore[misc]


def test_values_are_toml_and_else_the_string_that_was_typed(tmp_path: Path) -> None:
    house = load(House, None, ["name=7", "join=a.example:1, [::1]:2", f"state_dir={tmp_path}", "tree.main.adapt=false"], {})
    assert (house.name, house.join, house.state_dir) == ("7", ("a.example:1", "[::1]:2"), tmp_path)
    assert not house.tree["main"].adapt
    house = load(House, None, ['name="a=b"', "port=1_000", "tree={one = {rate = 1}}"], {})
    assert house == House(name="a=b", port=1000, tree={"one": Leaf(rate=1)})


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("prot=1", "--set: prot is no setting; the nearest is port"),
        ("tree.main.round=1", "--set: tree.main.round is no setting; the nearest is tree.main.rounds"),
        ("rounds=1", "--set: rounds is no setting; the nearest is tree.main.rounds"),
        ("overlay.replica=1", "--set: overlay.replica is no setting; the nearest is overlay.replicas"),
        ("port=many", '--set: port is "many", but should be a whole number or "auto"'),
        ('state_dir="a\\u0000b"', '--set: state_dir is "a\\u0000b", but should be a path, and none has the character NUL'),
        ("tree.main.rounds=0", "--set: tree.main.rounds is 0, but should be greater than or equal to 1"),
        ("tree.main.rounds=1.5", "--set: tree.main.rounds is 1.5, but should be a whole number"),
        ("tree.main.adapt=yes", '--set: tree.main.adapt is "yes", but should be true or false'),
        ("tree.main.rate=nan", "--set: tree.main.rate is nan, but should be a finite number"),
        ("tree.main.mode=exakt", '--set: tree.main.mode is "exakt", but should be "exact" or "drop"'),
        ("join=here", '--set: join is "here", but should be HOST:PORT, such as "127.0.0.1:7700"'),
        ("overlay=lan", '--set: overlay is "lan", but should be a table of settings'),
        ("overlay.replicas=99", "overlay: replicas (99) cannot exceed leaf_set_size (12)"),
        ("overlay.delay_max_s=-1", "overlay: delay_max_s must be above 0 and finite, not -1.0"),
        ("port", '--set: "port" should be key=value, such as overlay.preset=lan'),
        ("--port port=1.5", '--port: port is 1.5, but should be a whole number or "auto"'),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key_its_place_and_what_is_wanted(override: str, told: str) -> None:
    assert problems(override) == (told,)


def test_a_mistake_in_a_variable_or_a_file_names_it(tmp_path: Path) -> None:
    assert problems(FMREC_TREE__MAIN__RUONDS="3") == (
        "variable FMREC_TREE__MAIN__RUONDS: tree.main.ruonds is no setting; the nearest is tree.main.rounds",
    )
    path = tmp_path / "bad.toml"
    path.write_text("nmae = 1\n[tree.main]\nrounds = '3'\n")
    assert problems(file=path) == (
        f"{path}: nmae is no setting; the nearest is name",
        f'{path}: tree.main.rounds is "3", but should be a whole number',
    ), "all mistakes at once; TOML has types, so that a string is no number"


def test_a_file_that_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    assert problems(file=tmp_path / "none.toml") == (f"{tmp_path / 'none.toml'}: there is no such file of settings",)
    assert problems(file=tmp_path)[0].startswith(f"{tmp_path}: cannot be read: ")
    (tmp_path / "torn.toml").write_text("a = ")
    assert problems(file=tmp_path / "torn.toml")[0].startswith(f"{tmp_path / 'torn.toml'}: is not TOML: ")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert problems(file=tmp_path / "binary.toml")[0].startswith(f"{tmp_path / 'binary.toml'}: is not TOML: ")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_overlay_is_the_preset_with_its_overrides(preset: Literal["loopback", "lan", "wan"]) -> None:
    assert OverlaySettings(preset=preset).parameters() == PRESETS[preset]()
    changed = OverlaySettings(preset=preset, heartbeat_misses=7).parameters()
    assert isinstance(changed, OverlayParameters)
    assert (changed.heartbeat_misses, changed.replicas) == (7, PRESETS[preset]().replicas)


def test_what_is_shown_loads_to_the_same(tmp_path: Path) -> None:
    overrides = ["name='q\"\\\n'", "overlay.preset=lan", "overlay.replicas=4", f"state_dir={tmp_path}", 'tree={"a b"={}}']
    house = load(House, None, overrides, {})
    shown = tmp_path / "shown.toml"
    for settings in (house, House()):
        shown.write_text(show(settings))
        assert load(House, shown, [], {}) == settings
    assert "# state_dir is not set" in show(House())
    assert "# heartbeat_interval_s = 0.75" in show(house), "what the preset says is shown too"


def test_the_nearest_key_is_sought_in_all_tables() -> None:
    known = ["port", "tree", "tree.main", "tree.main.rounds", "overlay.replicas"]
    assert nearest("replicsa", known) == "overlay.replicas"
    assert nearest("tree.mian.rounds", known) == "tree.main.rounds"


def test_addresses() -> None:
    assert parse_address("localhost:7700") == Address("localhost", 7700)
    assert parse_address("[fe80::1]:7700") == Address("fe80::1", 7700)
    for wrong in ("", "localhost", ":1", "a:", "a:0", "a:65536", "a:x", "fe80::1:7700", "a:²"):
        with pytest.raises(ValueError, match="should be HOST:PORT"):
            parse_address(wrong)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "::ffff:0.0.0.0", "0", "0.0", "0x0"])
def test_an_address_that_stands_for_any_is_none_to_be_told(host: str) -> None:
    with pytest.raises(ValueError, match="should name one address that peers can dial"):
        dialable(host)


@pytest.mark.parametrize(
    ("host", "seed", "beyond"),
    [
        ("127.0.0.1", "192.0.2.5", True),
        ("127.0.1.1", "192.0.2.5", True),
        ("localhost", "192.0.2.5", True),
        ("LOCALHOST", "192.0.2.5", True),
        ("127.1", "192.0.2.5", True),
        ("::1", "192.0.2.5", True),
        ("::ffff:127.0.0.1", "192.0.2.5", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("::1", "localhost", False),
        ("127.0.0.1", "0.0.0.0", False),
        ("127.0.0.1", "manager.example", False),
        ("host.example", "192.0.2.5", False),
        ("10.0.0.7", "192.0.2.5", False),
        ("10.0.0.7", "127.0.0.1", False),
    ],
)
def test_a_seed_on_another_machine_cannot_dial_loopback(host: str, seed: str, beyond: bool) -> None:
    """What a name stands for is not looked up."""
    near = Address("127.0.0.1", 7700)
    assert out_of_reach(dialable(host), (near, Address(seed, 7700))) == (Address(seed, 7700) if beyond else None)
