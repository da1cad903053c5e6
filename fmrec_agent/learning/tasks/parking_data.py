"""Car parks from CSV files: lots.csv, counts.csv and, where there is one, occupancy_exceptions.csv (DESIGN 10, reference [16]).

- lots.csv: one row a lot; NAME, ROLE (source or target), CAPACITY (spaces), TYPE (land use; may be empty).
- counts.csv: one row a step of 5 minutes, one column a lot: the number of parked vehicles.
- occupancy_exceptions.csv: NAME, ROW (0-based row of counts.csv), OCCUPANCY: rows where the published rate is not count /
  capacity.

Occupancy is the rate count / capacity, overwritten at the exceptions; a little above 1 occurs. Every fault is one sentence:
file, row (the line number in the file, the header being line 1), column, and what to do.
"""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fmrec_agent.learning.learner import LearnerError, Role

STEPS_PER_DAY = 288
ROLES: dict[str, Role] = {"source": "source", "target": "target"}
LOTS_FILE, COUNTS_FILE, EXCEPTIONS_FILE = "lots.csv", "counts.csv", "occupancy_exceptions.csv"


@dataclass(frozen=True, slots=True)
class Lot:
    """One car park.

    label: where its data comes from, for people.
    occupancy: rate of capacity, float64 [steps of 5 minutes].
    """

    name: str
    label: str
    capacity: float
    occupancy: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of lots.csv."""

    name: str
    role: Role
    kind: str
    capacity: float


def read_lot(folder: str, *, role: Role, index: int, lot: str | None) -> Lot:
    """The lot of that name, or the `index`-th (from 0) of the role: sources take turns by type, targets keep the file's order."""
    root = Path(folder)
    if not root.is_dir():
        raise LearnerError(f'there is no folder {folder} (started in {Path.cwd()}): correct learning.task.data, or set it to "synthetic"')
    entries = list(_entries(root / LOTS_FILE))
    of_role, where = [entry for entry in entries if entry.role == role], str(root / LOTS_FILE)
    if lot is not None:
        entry = named(entries, lot, where=where)
    else:
        entry = pick(in_turn(of_role) if role == "source" else of_role, role=role, index=index, where=where)
    occupancy = _counts(root / COUNTS_FILE, entry.name, tuple(each.name for each in entries)) / entry.capacity
    if (root / EXCEPTIONS_FILE).exists():
        for row, rate in _exceptions(root / EXCEPTIONS_FILE, entry.name, len(occupancy)):
            occupancy[row] = rate
    return Lot(entry.name, f"parking data in {folder}, lot {entry.name}", entry.capacity, occupancy)


def in_turn(entries: Iterable[Entry]) -> list[Entry]:
    """The first of each type, then the second of each ...: any few sources cover many types, though the file groups them."""
    by_kind: dict[str, list[Entry]] = {}
    for entry in entries:
        by_kind.setdefault(entry.kind, []).append(entry)
    return [entry for turn in zip_longest(*by_kind.values()) for entry in turn if entry is not None]


def pick(entries: list[Entry], *, role: Role, index: int, where: str) -> Entry:
    if not 0 <= index < len(entries):
        raise LearnerError(
            f"there is no {role} lot number {index}: "
            f"{where} has {len(entries)}, counted from 0; start fewer {role} agents"
        )
    return entries[index]


def named(entries: list[Entry], lot: str, *, where: str) -> Entry:
    found = [entry for entry in entries if entry.name == lot]
    if not found:
        raise LearnerError(
            f"there is no lot {lot!r} in {where}: "
            f"set learning.task.lot to one of {', '.join(entry.name for entry in entries[:6])} ..."
        )
    return found[0]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """(line number, the values of `columns`) of each row, none of them longer or shorter than the header."""
    if not path.exists():
        raise LearnerError(f"there is no file {path}: complete the folder, or correct learning.task.data")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for column in columns:
                if column not in header:
                    raise LearnerError(f"{path} has no column {column}: add it to the header in line 1")
            places = [header.index(column) for column in columns]
            for row in reader:
                if len(row) != len(header):
                    remedy = "complete or shorten that line"
                    raise LearnerError(
                        f"{path}, line {reader.line_num} has {len(row)} values and the header {len(header)}: "
                        f"{remedy}"
                    )
                yield reader.line_num, [row[place] for place in places]
    except (csv.Error, UnicodeDecodeError) as error:
        raise LearnerError(f"{path} is not a CSV file in UTF-8 ({error}): save it as one") from error
    except OSError as error:
        raise LearnerError(f"{path} cannot be read ({error.strerror}): make it a readable file") from error


def _number(text: str, path: Path, line: int, column: str, *, low: float = 0.0) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value < math.inf:
        raise LearnerError(f"{path}, line {line}, column {column}: {text!r} is not a number of at least {low:g}: correct it")
    return value


def _entries(path: Path) -> Iterator[Entry]:
    for line, (name, role, capacity, kind) in _rows(path, ("NAME", "ROLE", "CAPACITY", "TYPE")):
        known_role = ROLES.get(role)
        if known_role is None:
            raise LearnerError(f"{path}, line {line}, column ROLE: {role!r} is neither source nor target: correct it")
        yield Entry(name, known_role, kind, _number(capacity, path, line, "CAPACITY", low=1))


def _counts(path: Path, name: str, lots: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """One column. lots: all that the file may have."""
    with contextlib.suppress(OSError):
        seen = path.stat()
        column = _columns(path, lots, seen.st_ino, seen.st_mtime_ns, seen.st_size).get(name)
        if column is not None and ((column >= 0) & (column < math.inf)).all():
            return column
    return np.array([_number(text, path, line, name) for line, (text,) in _rows(path, (name,))])


@lru_cache(maxsize=2)
def _columns(path: Path, lots: tuple[str, ...], inode: int, modified_ns: int, size: int) -> dict[str, npt.NDArray[np.float64]]:
    """Every lot's column, read at once and once in a process: what a launcher has read, its agents have, and again after a restart. None
    where the file is not plain numbers between commas: then each column is read for itself, and what is wrong with it said."""
    try:
        header, *rows = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        names = header.split(",")
        if not rows or any(not row or '"' in row or row.count(",") != len(names) - 1 for row in (header, *rows)):
            return {}
        here = [lot for lot in lots if lot in names]
        table = np.loadtxt(rows, delimiter=",", comments=None, ndmin=2, usecols=[names.index(lot) for lot in here])
        return dict(zip(here, np.ascontiguousarray(table.T), strict=True))
    except (OSError, ValueError):
        return {}


def _exceptions(path: Path, lot: str, rows: int) -> Iterator[tuple[int, float]]:
    for line, (name, row, rate) in _rows(path, ("NAME", "ROW", "OCCUPANCY")):
        if name != lot:
            continue
        if not (row.isdecimal() and int(row) < rows):
            raise LearnerError(
                f"{path}, line {line}, column ROW: {row!r} is not a row of {COUNTS_FILE} (0 to {rows - 1}): "
                "correct it"
            )
        yield int(row), _number(rate, path, line, "OCCUPANCY")
