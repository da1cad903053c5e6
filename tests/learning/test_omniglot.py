"""Few-shot Omniglot: what is read, who gets which characters, what an episode holds, and one sentence for each fault."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmrec_agent.learning.learner import Job, LearnerError
from fmrec_agent.learning.loading import load_learner, load_method, load_task
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.task import SourceTask, TargetTask
from fmrec_agent.learning.tasks.omniglot_data import ARCHIVE_BYTES_MAX, PICTURE_BYTES_MAX, PICTURE_SIDE_MAX, Omniglot
from fmrec_agent.learning.tasks.omniglot_jitter import jittered

PUBLISHED = Path(__file__).resolve().parents[2] / "../shared/data/omniglot-small"
CHARACTERS, DRAWINGS = 9, 6


def picture(character: int, drawing: int) -> bytes:
    """105 x 105, a black stroke whose column tells the character and whose row tells the drawing."""
    pixels = np.full((105, 105), 255, dtype=np.uint8)
    pixels[8 * drawing : 8 * drawing + 30, 8 * character : 8 * character + 20] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as file:
        for character in range(CHARACTERS):
            for drawing in range(DRAWINGS):
                name = f"images/Alphabet/character{character:02}/{character:04}_{drawing:02}.png"
                file.writestr(name, picture(character, drawing))
    return path


def options(data: Path, **task: object) -> LearningOptions:
    small = {"ways": 3, "shots": 2, "queries": 3, "channels": 4, "held_out": 3, "sources": 2}
    return LearningOptions.model_validate({"task": {"name": "omniglot", "data": str(data), **small, **task}})


def test_ink_is_one_and_the_same_character_of_two_places_counts_once(archive: Path) -> None:
    (archive.parent / "copy.zip").write_bytes(archive.read_bytes())
    omniglot = Omniglot(str(archive.parent))
    assert omniglot.names == tuple(f"Alphabet/character{character:02}" for character in range(CHARACTERS))
    drawings = omniglot.drawings("Alphabet/character00")
    assert drawings.shape == (DRAWINGS, 28, 28)
    assert (drawings.min(), drawings.max()) == (0, 1)
    # 105 is not a multiple of 28, so an edge is as much as half a pixel off, of 20.
    assert drawings.mean() == pytest.approx(30 * 20 / 105**2, rel=0.025)
    assert drawings[0, 2, 2] == 1
    assert drawings[0, 20, 20] == 0


def test_an_archive_that_was_listed_is_no_open_file(archive: Path) -> None:
    """Agents are forked from one process that has listed it: they would share a file's position, and read at each other's."""
    omniglot = Omniglot(str(archive))
    expected = Omniglot(str(archive)).drawings(omniglot.names[3])
    archive.write_bytes(b"")
    assert np.array_equal(omniglot.drawings(omniglot.names[3]), expected)


def test_an_unpacked_folder_is_read_as_well(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "unpacked")
    packed, unpacked = Omniglot(str(archive)), Omniglot(str(tmp_path / "unpacked"))
    assert packed.names == unpacked.names
    assert np.array_equal(packed.drawings(packed.names[3]), unpacked.drawings(packed.names[3]))


def test_jitter_bends_what_sources_draw_and_nothing_else(archive: Path) -> None:
    drawn: dict[float, list[torch.Tensor]] = {}
    for jitter in (0.0, 1.0):
        source, target = (load_task(options(archive, jitter=jitter), role=role, index=0) for role in ("source", "target"))
        assert isinstance(source, SourceTask)
        assert isinstance(target, TargetTask)
        (support, classes), (query, _) = source.draw(np.random.default_rng(0))
        assert classes.tolist() == [0, 0, 1, 1, 2, 2]
        drawn[jitter] = [support, query, target.draw_adaptation(np.random.default_rng(0))[0]]
    assert [a.shape for a in drawn[0.0]] == [a.shape for a in drawn[1.0]]
    assert [torch.equal(a, b) for a, b in zip(drawn[0.0], drawn[1.0], strict=True)] == [False, False, True]


def test_a_target_adapts_on_its_support_and_copies_that_are_bent_anew(archive: Path) -> None:
    target = load_task(options(archive, jitter=1.0, copies=2), role="target", index=0)
    plain = load_task(options(archive, jitter=1.0), role="target", index=0)
    assert isinstance(target, TargetTask)
    assert isinstance(plain, TargetTask)
    generator = np.random.default_rng(0)
    (inputs, classes), (later, _) = target.draw_adaptation(generator), target.draw_adaptation(generator)
    support, named = plain.draw_adaptation(generator)
    assert classes.tolist() == 3 * named.tolist()
    pictures, again = inputs.reshape(3, *support.shape), later.reshape(3, *support.shape)
    assert torch.equal(pictures[0], support)
    assert torch.equal(again[0], support)
    different = [pictures[0], pictures[1], pictures[2], again[1], again[2]]
    assert not any(torch.equal(a, b) for a, b in combinations(different, 2))
    assert torch.equal(target.draw_adaptation(np.random.default_rng(0))[0], inputs), "a replay draws the same"
    model = target.initial_parameters(0)
    assert target.evaluate(model) == plain.evaluate(model), "the queries are as they were"


def test_copies_without_jitter_are_refused(archive: Path) -> None:
    with pytest.raises(ValueError, match=r"set learning.task.jitter above 0 \(1, say\), or learning.task.copies to 0"):
        options(archive, copies=2)


def test_jitter_moves_a_dot_by_few_pixels_and_each_picture_by_its_own_map() -> None:
    """The middle goes where A p + b = 0: at most 2 sqrt(2) pixels, by at most exp(0.15) (1 + 0.15); a map of strength 0 is none."""
    pictures = torch.zeros(100, 1, 28, 28, dtype=torch.float64)
    pictures[:, :, 13:15, 13:15] = 1
    torch.testing.assert_close(jittered(pictures, 0.0, np.random.default_rng(0)), pictures)
    bent = jittered(pictures, 1.0, np.random.default_rng(0))[:, 0]
    places = torch.arange(28, dtype=torch.float64) - 13.5
    ink = bent.sum((1, 2))
    moved = torch.hypot((bent.sum(1) * places).sum(1) / ink, (bent.sum(2) * places).sum(1) / ink)
    assert moved.max() < 2 * 2**0.5 * np.exp(0.15) * 1.15 + 0.5
    assert len(moved.round(decimals=6).unique()) == 100
    assert torch.equal(jittered(pictures, 1.0, np.random.default_rng(0))[:, 0], bent)


def test_an_episode_has_its_ways_and_no_drawing_twice(archive: Path) -> None:
    task = load_task(options(archive, meta_batch=4), role="source", index=0)
    assert isinstance(task, SourceTask)
    (inputs, classes), (others, of_others) = task.draw(np.random.default_rng(0))
    assert (inputs.shape, others.shape) == ((4, 6, 1, 28, 28), (4, 9, 1, 28, 28))
    assert classes[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert of_others[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    seen = {tuple(row.flatten().tolist()) for row in torch.cat([inputs[0], others[0]])}
    assert len(seen) == 15
    assert not torch.equal(inputs[0], inputs[1])


def test_nobody_shares_a_character(archive: Path) -> None:
    """Sources have 3 of the 6 characters each, in 8 positions; a target's are upright, and of the 3 held out."""
    tasks = [load_task(options(archive), role="source", index=index) for index in range(2)]
    target = load_task(options(archive), role="target", index=0)
    assert [task.label.split()[0] for task in tasks] == ["3", "3"]
    assert isinstance(target, TargetTask)
    generator = np.random.default_rng(0)
    batches = [task.draw(generator)[0][0] for task in tasks if isinstance(task, SourceTask) for _ in range(40)]
    own = [{tuple(row.flatten().tolist()) for batch in part for row in batch} for part in (batches[:40], batches[40:])]
    test = {tuple(row.flatten().tolist()) for row in target.draw_adaptation(generator)[0]}
    assert not own[0] & own[1]
    assert not test & (own[0] | own[1])
    assert len(test) == 6


def test_the_model_judges_by_the_batch_and_ignores_what_it_does_not_know(archive: Path) -> None:
    task = load_task(options(archive), role="target", index=0)
    assert isinstance(task, TargetTask)
    theta = task.initial_parameters(0)
    loss, metrics = task.evaluate({**theta, "rate/head.bias": torch.ones(3)})
    assert task.evaluate(theta) == (loss, metrics)
    assert 0 <= metrics["accuracy_percent"] <= 100
    assert theta["head.weight"].shape == (3, 16)
    batch = task.draw_adaptation(np.random.default_rng())
    assert float(task.loss(theta, batch)) == pytest.approx(float(task.loss(theta, (2 * batch[0], batch[1]))), rel=1e-3)


@pytest.mark.parametrize("method", ["maml", "fomaml", "reptile"])
def test_episodes_together_are_episodes_one_by_one(archive: Path, method: str) -> None:
    """Each has the batch normalization of its own drawings, in the inner step and behind it."""
    chosen = options(archive, meta_batch=3).model_copy(update={"iterations_per_round": 1, "dtype": "float64", "local_steps": 1})
    task = load_task(chosen, role="source", index=0)
    assert isinstance(task, SourceTask)
    theta = load_method(method)(chosen, task, name="a").initial_parameters(0)

    def found(at_once: int) -> dict[str, np.ndarray]:
        learner = load_method(method)(chosen.model_copy(update={"tasks_at_once": at_once}), task, name="a")
        for _ in range(learner.begin(Job("train", 0, 0), theta)):
            learner.step()
        return dict(learner.finish().tensors)

    one_by_one = found(1)
    for at_once in (2, 3):
        together = found(at_once)
        for key, value in one_by_one.items():
            assert np.any(value)
            np.testing.assert_allclose(together[key], value, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("task", "role", "index", "message"),
    [
        ({"held_out": 9}, "target", 0, r"has 9 characters, and learning.task.held_out takes 9 for targets: set it lower"),
        ({"ways": 4}, "target", 0, r"learning.task.held_out is 3, but an episode has 4 characters \(learning.task.ways\): raise it"),
        ({}, "source", 2, r"there is no share number 2 of the characters: learning.task.sources is 2"),
        ({"sources": 6, "ways": 9}, "source", 0, r"source number 0 has 1 of 6 characters, too few for episodes of 9"),
        ({"queries": 5}, "source", 0, r"an episode needs 7 \(learning.task.shots \+ learning.task.queries\): set these lower"),
    ],
)
def test_too_little_data_is_said(archive: Path, task: dict[str, int], role: str, index: int, message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        load_learner(options(archive, **task), name="a", role=role, index=index)  # type: ignore[arg-type]


def test_what_is_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match=r"no file or folder .*nowhere .*: set learning.task.data to Omniglot's folder or zip file"):
        Omniglot(str(tmp_path / "nowhere"))
    with pytest.raises(LearnerError, match=r"holds no picture <alphabet>/<character>/<file>.png"):
        Omniglot(str(tmp_path))
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(LearnerError, match=r"torn.zip is not a zip file that can be read"):
        Omniglot(str(tmp_path))
    (tmp_path / "torn.zip").unlink()
    (tmp_path / "A" / "c").mkdir(parents=True)
    (tmp_path / "A" / "c" / "1.png").write_bytes(b"no picture")
    with pytest.raises(LearnerError, match=r"1.png is not a PNG picture \(.*\): fetch the data again, or take that file away"):
        Omniglot(str(tmp_path)).drawings("A/c")


def inflates_to_nothing(data: bytearray) -> None:
    data[data.index(b"1.png") + len("1.png")] = 0xFF


def encrypted(data: bytearray) -> None:
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1


def of_an_unknown_compression(data: bytearray) -> None:
    data[8] = data[data.index(b"PK\1\2") + 10] = 99


@pytest.mark.parametrize("spoilt", [inflates_to_nothing, encrypted, of_an_unknown_compression])
def test_a_spoilt_archive_is_said(tmp_path: Path, spoilt: Callable[[bytearray], None]) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("A/c/1.png", picture(0, 0))
    data = bytearray(path.read_bytes())
    spoilt(data)
    path.write_bytes(data)
    with pytest.raises(LearnerError, match=r"A/c/1.png in .*images.zip is not a PNG picture \(.*\): fetch the data again"):
        Omniglot(str(path)).drawings("A/c")


def test_what_is_too_large_is_said_and_not_read(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    (tmp_path / "A" / "c").mkdir(parents=True)
    (tmp_path / "A" / "c" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(LearnerError, match=r"1.png is not a PNG picture \(.*decompression bomb"):
        Omniglot(str(tmp_path)).drawings("A/c")
    wide = io.BytesIO()
    Image.new("1", (PICTURE_SIDE_MAX + 1, 1)).save(wide, "PNG")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("B/wide/1.png", wide.getvalue())
        archive.writestr("B/long/1.png", bytes(PICTURE_BYTES_MAX + 1))
    with pytest.raises(LearnerError, match=rf"B/wide/1.png .* \({PICTURE_SIDE_MAX + 1} x 1 pixels, more than {PICTURE_SIDE_MAX} a side\)"):
        Omniglot(str(tmp_path)).drawings("B/wide")
    with pytest.raises(LearnerError, match=rf"B/long/1.png .* \({PICTURE_BYTES_MAX + 1} bytes, more than {PICTURE_BYTES_MAX}\)"):
        Omniglot(str(tmp_path)).drawings("B/long")
    with (tmp_path / "images.zip").open("wb") as file:
        file.truncate(ARCHIVE_BYTES_MAX + 1)
    with pytest.raises(LearnerError, match=rf"images.zip is not a zip file .* \(it is longer than {ARCHIVE_BYTES_MAX} bytes\)"):
        Omniglot(str(tmp_path))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"Omniglot's small sets are not at {PUBLISHED}")
def test_the_small_sets_have_242_characters_of_20_drawings() -> None:
    omniglot = Omniglot(str(PUBLISHED))
    assert len(omniglot.names) == 242
    assert omniglot.drawings("Greek/character01").shape == (20, 28, 28)
