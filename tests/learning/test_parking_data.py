"""The CSV loader: which lot, which values, and one clear sentence for each fault; the published data where it is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmrec_agent.learning.learner import LearnerError, Role
from fmrec_agent.learning.tasks.parking_data import Lot, _columns, read_lot

PUBLISHED = Path(__file__).resolve().parents[2] / "../shared/data/all-parking-gz-sz"
LOTS = """NAME,ROLE,CITY,CAPACITY,TYPE
a1,source,X,10,1
a2,source,X,20,1
a3,source,X,20,1
b1,source,X,40,2
c1,source,X,50,3
c2,source,X,50,3
t2,target,Y,10,
t1,target,Y,10,
"""
COUNTS = """TIME,a1,a2,a3,b1,c1,c2,t1,t2
2018-06-01 00:00,1,2,3,4,5,6,7,8
2018-06-01 00:05,2,3,4,5,6,7,8,12
"""
EXCEPTIONS = """NAME,ROW,OCCUPANCY
a2,1,0.75
c1,0,1.25
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lots.csv").write_text(LOTS)
    (tmp_path / "counts.csv").write_text(COUNTS)
    (tmp_path / "occupancy_exceptions.csv").write_text(EXCEPTIONS)
    return tmp_path


def read(folder: Path, role: Role = "source", index: int = 0, lot: str | None = None) -> Lot:
    return read_lot(str(folder), role=role, index=index, lot=lot)


def test_sources_take_turns_by_type_and_targets_keep_the_files_order(folder: Path) -> None:
    """So that the first few sources are of many types, though the file groups them."""
    assert [read(folder, "source", i).name for i in range(6)] == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert [read(folder, "target", i).name for i in range(2)] == ["t2", "t1"]
    assert read(folder, "target", 0, lot="a3").name == "a3"


def test_occupancy_is_count_by_capacity_but_at_the_exceptions(folder: Path) -> None:
    assert read(folder, lot="a1").occupancy.tolist() == [0.1, 0.2]
    assert read(folder, lot="a2").occupancy.tolist() == [0.1, 0.75]
    assert read(folder, lot="c1").occupancy.tolist() == [1.25, 0.12]
    assert read(folder, lot="t2").occupancy.tolist() == [0.8, 1.2]
    assert read(folder, lot="a2").capacity == 20
    assert read(folder, lot="a2").label == f"parking data in {folder}, lot a2"
    (folder / "occupancy_exceptions.csv").unlink()
    assert read(folder, lot="a2").occupancy.tolist() == [0.1, 0.15]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("lots.csv", "CAPACITY", "SPACES", "lots.csv has no column CAPACITY: add it to the header in line 1"),
        ("lots.csv", "a2,source,X,20,1", "a2,source,X,many,1", "lots.csv, line 3, column CAPACITY: 'many' is not a number of at least 1"),
        ("lots.csv", "a2,source,X,20,1", "a2,source,X,0,1", "lots.csv, line 3, column CAPACITY: '0' is not a number of at least 1"),
        ("lots.csv", "a2,source", "a2,Source", "lots.csv, line 3, column ROLE: 'Source' is neither source nor target"),
        ("lots.csv", "a2,source,X,20,1", "a2,source,X,20", "lots.csv, line 3 has 4 values and the header 5: complete or shorten"),
        ("counts.csv", "a1,a2", "a1,A2", "counts.csv has no column a2"),
        ("counts.csv", "05,2,3,4", "05,2,,4", "counts.csv, line 3, column a2: '' is not a number of at least 0"),
        ("counts.csv", "05,2,3,4", "05,2,nan,4", "counts.csv, line 3, column a2: 'nan' is not a number of at least 0"),
        ("counts.csv", "05,2,3,4", "05,2,-3,4", "counts.csv, line 3, column a2: '-3' is not a number of at least 0"),
        ("counts.csv", "05,2,3,4", "05,2,3", "counts.csv, line 3 has 8 values and the header 9"),
        ("counts.csv", "2018-06-01 00:05", '"2018', "counts.csv is not a CSV file in UTF-8"),
        ("counts.csv", "TIME", "TIM\udce9", "counts.csv is not a CSV file in UTF-8"),
        ("occupancy_exceptions.csv", "a2,1", "a2,2", r"line 2, column ROW: '2' is not a row of counts.csv \(0 to 1\)"),
        ("occupancy_exceptions.csv", "a2,1", "a2,-1", "line 2, column ROW: '-1' is not a row of counts.csv"),
        ("occupancy_exceptions.csv", "0.75", "full", "line 2, column OCCUPANCY: 'full' is not a number"),
        ("occupancy_exceptions.csv", "ROW", "LINE", "occupancy_exceptions.csv has no column ROW"),
    ],
)
def test_each_fault_is_one_sentence(folder: Path, file: str, old: str, new: str, message: str) -> None:
    path = folder / file
    assert old in path.read_text()
    path.write_bytes(path.read_text().replace(old, new).encode(errors="surrogateescape"))
    with pytest.raises(LearnerError, match=message) as caught:
        read(folder, lot="a2")
    assert "\n" not in str(caught.value)


def at_once(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All columns, where the file is read at once; nothing where it is not."""
    seen = path.stat()
    lots = tuple(line.partition(",")[0] for line in LOTS.splitlines()[1:])
    return _columns(path, lots, seen.st_ino, seen.st_mtime_ns, seen.st_size)


def test_a_blank_line_in_a_file_of_one_column_is_told(tmp_path: Path) -> None:
    (tmp_path / "lots.csv").write_text("NAME,ROLE,CAPACITY,TYPE\na2,source,10,1\n")
    for rows in ("1\n\n3\n", "1\n3\n\n"):
        (tmp_path / "counts.csv").write_text("a2\n" + rows)
        with pytest.raises(LearnerError, match="has 0 values and the header 1: complete or shorten that line"):
            read(tmp_path)


@pytest.mark.parametrize(("old", "new"), [(",4,5,", ",x,5,"), (",4,5,", ',"4",5,'), ("TIME", '"TIME"')])
def test_a_file_that_cannot_be_read_at_once_is_read_by_the_column(folder: Path, old: str, new: str) -> None:
    """What is wrong with another lot is none of this one's business."""
    path = folder / "counts.csv"
    assert old in path.read_text()
    assert at_once(path)["a2"].tolist() == [2, 3]
    path.write_text(path.read_text().replace(old, new, 1))
    assert not at_once(path)
    assert read(folder, lot="a2").occupancy.tolist() == [0.1, 0.75]


def test_a_file_that_has_changed_is_read_again(folder: Path) -> None:
    assert read(folder, lot="a3").occupancy.tolist() == [0.15, 0.2]
    path = folder / "counts.csv"
    path.write_text(path.read_text().replace("2,3,4,5,6", "2,3,16,5,6"))
    assert read(folder, lot="a3").occupancy.tolist() == [0.15, 0.8]
    read(folder, lot="a3").occupancy[:] = 7
    assert read(folder, lot="a3").occupancy.tolist() == [0.15, 0.8], "nobody writes to what others will read"


def test_what_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(LearnerError, match=r"there is no folder .*/nowhere .*correct learning.task.data, or set it to \"synthetic\""):
        read(folder / "nowhere")
    with pytest.raises(LearnerError, match=r"there is no target lot number 2: .*lots.csv has 2, counted from 0; start fewer target agents"):
        read(folder, "target", 2)
    with pytest.raises(LearnerError, match=r"there is no lot 'z9' in .*lots.csv: set learning.task.lot to one of a1, a2"):
        read(folder, lot="z9")
    for file in ("counts.csv", "lots.csv"):
        (folder / file).unlink()
        with pytest.raises(LearnerError, match=f"there is no file .*{file}: complete the folder, or correct learning.task.data"):
            read(folder)
    (folder / "lots.csv").mkdir()
    with pytest.raises(LearnerError, match=r"lots.csv cannot be read \(Is a directory\): make it a readable file"):
        read(folder)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the published data is not at {PUBLISHED} (no licence: never copied into the project)")
class TestThePublishedData:
    """Reference [16]; figures from ANCHORS.md and the files themselves."""

    def test_counts_and_capacities(self) -> None:
        first = read(PUBLISHED, "source", 0)
        assert (first.name, first.capacity, len(first.occupancy)) == ("cme1", 1000, 8640)
        assert first.occupancy[[0, 3]].tolist() == [0.200, 0.202]
        last = read(PUBLISHED, lot="target12")
        assert (last.occupancy[0], last.capacity) == (97 / last.capacity, 280)

    def test_all_at_once_and_by_the_column_is_the_same(self, tmp_path: Path) -> None:
        """Bit for bit; a quoted header is what takes the slower way."""
        for file in PUBLISHED.glob("*.csv"):
            (tmp_path / file.name).write_text(file.read_text().replace("TIME", '"TIME"', 1))
        lots: list[tuple[Role, int]] = [("source", 0), ("source", 29), ("target", 11)]
        for role, index in lots:
            quick, slow = read(PUBLISHED, role, index), read(tmp_path, role, index)
            assert np.array_equal(quick.occupancy, slow.occupancy)

    def test_exceptions_are_applied(self) -> None:
        assert read(PUBLISHED, lot="cme4").occupancy[3168:3170].tolist() == [0.35523868, 0.35507017]

    def test_nine_sources_cover_all_six_types(self) -> None:
        names = [read(PUBLISHED, "source", i).name for i in range(9)]
        assert names == ["cme1", "hos1", "off1", "res1", "spo1", "tou1", "cme2", "hos2", "off2"]
        assert {read(PUBLISHED, "source", i).name[:3] for i in range(29, 30)} == {"cme"}

    def test_persistence_has_the_known_error(self) -> None:
        """Mean about 5 percentage points over the 12 targets, 1.6 to 8.2 (ANCHORS.md), on the last 20 % of time."""
        errors = []
        for index in range(12):
            test = read(PUBLISHED, "target", index).occupancy[6912:]
            errors.append(100 * np.sqrt(np.mean((test[12:] - test[5:-7]) ** 2)))
        assert np.mean(errors) == pytest.approx(5.0, abs=0.1)
        assert (min(errors), max(errors)) == (pytest.approx(1.6, abs=0.1), pytest.approx(8.2, abs=0.1))
