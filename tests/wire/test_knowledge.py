"""A record holds what it was given, is the same bytes for the same knowledge, and shows every change (P2)."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from protocol.aio.opening import OPENED_IN_PLACE_BYTES_MAX, opened
from protocol.chunks import bind, content_of, verify
from protocol.errors import LocalProtocolError, RecordInvalid
from protocol.identifiers import agent_id, tree_id
from protocol.knowledge import Array, Knowledge, from_upper_half, open_record, seal, upper_half
from protocol.tensors import laid_out


def knowledge() -> Knowledge:
    random = np.random.default_rng(1)
    return Knowledge(
        owner=agent_id("c", "a"),
        tree=tree_id("t", "parking"),
        version=7,
        incarnation=3,
        phase="train",
        round=2,
        iteration=50,
        complete=True,
        loss=0.1 + 0.2,
        samples=120,
        metrics={"rmse_pp": 4.5, "mae_pp": 3.0},
        state=bytes(range(256)),
        tensors={
            "theta": {"w": random.normal(size=(3, 4)).astype("f4"), "b": random.normal(size=4), "none": np.zeros((0, 2), "f4")},
            "state": {"scalar": np.array(3.5), "step": np.array([2**40]), "mask": np.array([True]), "turned": np.ones((3, 4)).cumsum(0).T},
        },
    )


def test_what_was_sealed_is_opened() -> None:
    given = knowledge()
    summary, data = seal(given)
    assert (summary.owner, summary.version, summary.round, summary.iteration, summary.complete) == (given.owner, 7, 2, 50, True)
    found = open_record(summary, data)
    for name in (field.name for field in fields(Knowledge) if field.name != "tensors"):
        assert getattr(found, name) == getattr(given, name), name
    assert {group: sorted(arrays) for group, arrays in given.tensors.items()} == {g: list(arrays) for g, arrays in found.tensors.items()}
    for group, arrays in given.tensors.items():
        for name, array in arrays.items():
            assert found.tensors[group][name].dtype == array.dtype
            np.testing.assert_array_equal(found.tensors[group][name], array, err_msg=name)


@pytest.mark.parametrize("compress", [False, True])
def test_checked_bytes_are_opened_without_being_checked_again(compress: bool) -> None:
    """A store's have been, chunk by chunk; what names them still has to."""
    summary, data = seal(knowledge(), compress=compress)
    found = open_record(summary, data, checked=True)
    np.testing.assert_array_equal(found.tensors["theta"]["w"], knowledge().tensors["theta"]["w"])
    if not compress:
        flipped = bytearray(data)
        flipped[-1] ^= 1  # of the last tensor of the last group
        assert list(open_record(summary, flipped, checked=True).tensors) == ["state", "theta"], "nobody looks again"
    with pytest.raises(RecordInvalid, match="digest"):
        open_record(replace(summary, digest=bytes(32)), data, checked=True)
    with pytest.raises(RecordInvalid, match="bytes, not the"):
        open_record(summary, data[:-1], checked=True)


async def test_a_large_record_of_which_no_tensors_are_wanted_waits_for_no_thread() -> None:
    noise = np.random.default_rng(1).normal(size=OPENED_IN_PLACE_BYTES_MAX)
    large = replace(knowledge(), tensors={"state": {"w": noise}})
    sealed, squeezed = seal(large), seal(large, compress=True)
    with pytest.raises(StopIteration) as ended:
        opened(*sealed, ()).send(None)
    assert (ended.value.value.iteration, ended.value.value.tensors) == (large.iteration, {})
    at_length = seal(replace(large, state=bytes(OPENED_IN_PLACE_BYTES_MAX)))
    for record, groups in ((sealed, {"state"}), (sealed, None), (squeezed, ()), (at_length, ())):
        task = asyncio.ensure_future(opened(*record, groups))
        await asyncio.sleep(0)
        assert not task.done(), "the loop does not do it itself"
        assert (await task).iteration == large.iteration


def test_a_received_buffer_opens_like_sealed_bytes() -> None:
    summary, data = seal(knowledge())
    assert open_record(summary, memoryview(bytearray(data))).state == knowledge().state


def test_equal_knowledge_gives_equal_bytes() -> None:
    given = knowledge()
    turned = replace(
        given,
        metrics=dict(reversed(given.metrics.items())),
        tensors={group: dict(reversed(arrays.items())) for group, arrays in reversed(given.tensors.items())},
    )
    assert seal(turned)[1] == seal(given)[1]


def test_another_process_seals_the_same_bytes() -> None:
    """Hash seeds and allocators differ between processes; a record must not (P5)."""
    code = "import sys; sys.path[:0] = ['.', 'tests/wire']; from test_knowledge import *; print(seal(knowledge())[0].digest.hex())"
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True, timeout=60).stdout
    assert said.strip() == seal(knowledge())[0].digest.hex()


def test_the_smallest_record() -> None:
    bare = Knowledge(agent_id("c", "a"), tree_id("t", "u"), 1, 1, "init", 0, 0, False)
    found = open_record(*seal(bare))
    assert (found.loss, found.tensors, found.metrics) == (None, {}, {})


def test_a_flipped_bit_is_noticed_wherever_it_is() -> None:
    summary, data = seal(knowledge())
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(RecordInvalid, match="does not have its digest"):
            verify(summary, changed)


@pytest.mark.parametrize("length", [0, 1, 20, 300, -1])
def test_a_truncated_record_is_noticed(length: int) -> None:
    summary, data = seal(knowledge())
    with pytest.raises(RecordInvalid, match="bytes, not the"):
        verify(summary, data[:length])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("at", range(0, 900, 9))
def test_who_lies_with_right_digests_is_refused_when_the_record_is_opened(at: int, compress: bool) -> None:
    """The digests are the sender's word too: the bytes under them may still be anything."""
    summary, data = seal(knowledge())
    content = bytes(content_of(summary, data, 1 << 20))
    for changed in (content[:at], content[:at] + b"\xff" + content[at + 1 :]):
        digest, lied = bind([[changed]], compress=compress)
        lie = replace(summary, digest=digest, record_bytes=len(lied))
        verify(lie, lied)
        with contextlib.suppress(RecordInvalid):  # a byte of a figure or of a tensor makes another record, but one of the same name
            assert open_record(lie, lied).owner == summary.owner


def test_a_summary_that_says_more_than_the_record() -> None:
    summary, data = seal(knowledge())
    with pytest.raises(RecordInvalid, match="another one inside: version 7"):
        open_record(replace(summary, version=8), data)


@pytest.mark.parametrize("tensors", [{"theta": {"w": np.array([object()])}}, {"a/b": {}}, {"": {}}])
def test_what_has_no_form_as_bytes_is_our_error(tensors: dict[str, dict[str, np.ndarray]]) -> None:
    with pytest.raises(LocalProtocolError):
        seal(replace(knowledge(), tensors=tensors))


@pytest.mark.parametrize("rounded", [False, True])
def test_a_compressed_record_opens_as_it_was_sealed(rounded: bool) -> None:
    given = replace(knowledge(), tensors={"state": {"frozen": np.zeros((300, 300), "f4"), "step": np.arange(9)}})
    plain, compressed = seal(given, rounded=rounded), seal(given, compress=True, rounded=rounded)
    assert compressed[0].record_bytes < plain[0].record_bytes / 10
    assert compressed == seal(given, compress=True, rounded=rounded), "equal knowledge gives equal bytes here too"
    for name, array in open_record(*plain).tensors["state"].items():
        np.testing.assert_array_equal(open_record(*compressed).tensors["state"][name], array)


def test_a_rounded_record_is_half_as_long_and_close() -> None:
    random = np.random.default_rng(3)
    weights = random.normal(size=(500, 100)).astype("f4")
    given = replace(knowledge(), tensors={"contribution": {"w": weights, "steps": np.arange(3), "exact": weights[:3].astype("f8")}})
    summary, data = seal(given, rounded=True)
    assert summary.record_bytes < seal(given)[0].record_bytes * 0.53
    found = open_record(summary, data).tensors["contribution"]
    assert list(found) == ["exact", "steps", "w"], "in order of names, whatever section they came in"
    assert (found["w"].dtype, found["w"].shape) == (np.float32, weights.shape)
    np.testing.assert_allclose(found["w"], weights, rtol=2**-8)  # bfloat16 keeps 8 bits
    np.testing.assert_array_equal(found["exact"], weights[:3].astype("f8"))


def test_rounding_is_to_the_nearest_and_keeps_what_is_not_finite() -> None:
    cases = {
        1.0: 1.0, 1 + 2**-9: 1.0, 1 + 2**-8: 1.0, 1 + 3 * 2**-8: 1 + 2**-6, 1 + 2**-8 + 2**-20: 1 + 2**-7, -0.0: -0.0,
        3.4e38: np.inf, np.inf: np.inf, -np.inf: -np.inf, 1e-40: 2**-133,
    }  # fmt: skip
    found = from_upper_half(upper_half(np.array([*cases], "f4")))
    np.testing.assert_array_equal(found, np.array([*cases.values()], "f4"))
    nans = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view("f4")
    assert np.isnan(from_upper_half(upper_half(nans))).all()
    assert upper_half(np.array(2.5, "f4")).shape == ()


def test_rounding_twice_changes_nothing() -> None:
    weights = np.random.default_rng(4).normal(size=1000).astype("f4")
    once = from_upper_half(upper_half(weights))
    np.testing.assert_array_equal(from_upper_half(upper_half(once)), once)


def test_what_there_is_no_memory_for_is_no_record_that_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: whoever sends more than fits here costs itself a sentence, and not the process."""

    def full(section: memoryview) -> None:
        raise MemoryError

    summary, data = seal(knowledge())
    monkeypatch.setattr("protocol.knowledge.read", full)
    with pytest.raises(RecordInvalid, match="version 7, cannot be opened: there is no memory for what is in it"):
        open_record(summary, data)


def test_a_tensor_whose_name_could_not_be_written_again_is_refused_on_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: JSON has an escape for half a character, which is no text: whoever took it would fail when it seals its own record."""

    def by_escape(tensors: dict[str, Array]) -> list[Array]:
        first, *rest = laid_out(tensors)
        header = bytes(first)[8:].replace(b'"b"', b'"\\ud800"').rstrip()
        header += b" " * (-len(header) % 8)
        return [np.frombuffer(len(header).to_bytes(8, "little") + header, np.uint8), *rest]

    monkeypatch.setattr("protocol.knowledge.laid_out", by_escape)
    summary, data = seal(knowledge())
    with pytest.raises(RecordInvalid, match=r"version 7, cannot be read: tensor '\\ud800' has a name that is no text"):
        open_record(summary, data)
