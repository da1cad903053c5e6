"""The published parking data (Qu et al., Mathematics 10(12) 2039, 2022), fetched from its public repository and put into the form that
parking_data.py reads. It has no licence, so it is nobody's to pass on: each user fetches it.

1. Fetched, at one commit: information.csv (the sources' place and type), members/<lot>.csv for each lot in it, targets/target1.csv to
   target12.csv; each of these has TIME, NUMBER (parked vehicles) and OCCUPANCY (rounded to 9 places) for 8640 steps of 5 minutes.
2. Converted: all lots by row number (two of the files write their dates otherwise; the order of rows is the same); CAPACITY is what NUMBER
   and OCCUPANCY say, rounded; rows where OCCUPANCY is not NUMBER / CAPACITY are listed in occupancy_exceptions.csv.
3. Checked: the three files must have the digests below, or none of them is put in place.
   They hold everything that is used of what was fetched.
4. Resumable: a file that has come whole stays in <folder>/.download, until the three are in place.

Every fault is a DownloadError: one sentence.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import io
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

from fmrec_agent.learning.tasks.parking_data import COUNTS_FILE, EXCEPTIONS_FILE, LOTS_FILE
from protocol.aio.process import UserError

COMMIT = "2b3170773198f0eec8c47a520144f5e3886d10d2"
SOURCE = f"https://raw.githubusercontent.com/Quhaoh233/ALL/{COMMIT}"
INFORMATION = "information.csv"
TARGETS = tuple(f"target{number}" for number in range(1, 13))
STEPS = 8640
START, STEP = datetime(2018, 6, 1), timedelta(minutes=5)
ROUNDING = 1e-9
LOT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""It becomes a part of a path."""
DIGESTS: Mapping[str, str] = {
    LOTS_FILE: "68630ec5c54ec7c53b5fd5edf0dc906f07e00938748c13d2bedb6960e2349e78",
    COUNTS_FILE: "7844e3808f9268bcd56278d7f53b3b0120f7bd6fce1aa7389f7d9578566669cd",
    EXCEPTIONS_FILE: "d6e05b6601d0b8f147e40e7a35ed8840a32b2e2aeeb5b747b26f138195dd91e2",
}
"""SHA-256 of each converted file."""
FILE_BYTES_MAX = 4 << 20
TIMEOUT_S = 30.0
REMEDY = "remove the folder's .download and try again"


class DownloadError(UserError):
    """The data is not in place: what, where, what to do. What came whole is kept for the next try, unless it was wrong."""


def get_parking(folder: Path, source: str = SOURCE, tell: Callable[[str], None] = lambda line: None) -> bool:
    """Put the three files into `folder`; False where they are there already. tell: is given a line for each file fetched."""
    if all(_digest(folder / name) == digest for name, digest in DIGESTS.items()):
        return False
    kept = folder / ".download"
    try:
        information = _fetched(source, INFORMATION, kept, tell)
        members = [row["NAME"] for row in _rows(INFORMATION, information, ("NAME", "GPSX", "GPSY", "TYPE", "POI_DENSITY", "NUM_SPACE"))]
        for name in members:
            if not LOT_NAME.fullmatch(name):
                shutil.rmtree(kept)
                raise DownloadError(f"{source} does not hold the published data ({name!r} is no lot's name): try another source")
        paths = {name: f"members/{name}.csv" for name in members} | {name: f"targets/{name}.csv" for name in TARGETS}
        lots = {name: _fetched(source, path, kept, tell) for name, path in paths.items()}
        files = converted(information, {name: (paths[name], text) for name, text in lots.items()})
        for name, text in files.items():
            if hashlib.sha256(text.encode()).hexdigest() != DIGESTS[name]:
                shutil.rmtree(kept)
                raise DownloadError(f"{source} does not hold the published data ({name} differs): nothing was written; try another source")
        for name, text in files.items():
            _write(folder / name, text.encode())
        shutil.rmtree(kept)
    except OSError as error:
        raise DownloadError(f"{error.filename or folder} cannot be written ({error.strerror}): choose another folder with --to") from error
    return True


def converted(information: str, lots: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The three files by name. lots: by name, (its path, for errors; its text), in the order of the columns."""
    about = {row["NAME"]: row for row in _rows(INFORMATION, information, ("NAME",))}
    entries, exceptions, columns = [], [], []
    for name, (path, text) in lots.items():
        rows = _rows(path, text, ("NUMBER", "OCCUPANCY"))
        if len(rows) != STEPS:
            raise DownloadError(f"{path} has {len(rows)} rows and should have {STEPS}: {REMEDY}")
        try:
            numbers, rates = [int(row["NUMBER"]) for row in rows], [float(row["OCCUPANCY"]) for row in rows]
            capacity = round(median(number / rate for number, rate in zip(numbers, rates, strict=True) if rate > 0))
            odd = [row for row in range(STEPS) if abs(numbers[row] / capacity - rates[row]) > ROUNDING]
        except (ValueError, ArithmeticError) as error:
            raise DownloadError(f"{path} holds what is no number of cars or no rate ({error}): {REMEDY}") from error
        columns.append([str(number) for number in numbers])
        exceptions += [(name, str(row), rows[row]["OCCUPANCY"]) for row in odd]
        known = about.get(name)
        of_source = [known[key] for key in ("NUM_SPACE", "TYPE", "POI_DENSITY", "GPSX", "GPSY")] if known else [""] * 5
        entries.append((name, "source" if known else "target", "Guangzhou" if known else "Shenzhen", str(capacity), *of_source))
    times = [(START + row * STEP).strftime("%Y-%m-%d %H:%M") for row in range(STEPS)]
    header = ("NAME", "ROLE", "CITY", "CAPACITY", "NUM_SPACE_INFO", "TYPE", "POI_DENSITY", "GPSX", "GPSY")
    return {
        LOTS_FILE: _table([header, *entries]),
        COUNTS_FILE: _table([("TIME", *lots), *zip(times, *columns, strict=True)]),
        EXCEPTIONS_FILE: _table([("NAME", "ROW", "OCCUPANCY"), *exceptions]),
    }


def _fetched(source: str, path: str, kept: Path, tell: Callable[[str], None]) -> str:
    """The text of that file: from `kept`, or fetched and put there."""
    place = kept / path
    if not place.exists():
        _write(place, _downloaded(f"{source}/{path}"))
        tell(f"fetched {path}")
    try:
        return place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        place.unlink()
        raise DownloadError(f"{source}/{path} is not text in UTF-8: try again, or try another source") from error


def _downloaded(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(FILE_BYTES_MAX + 1)
            length = answer.headers.get("Content-Length")
            wanted = len(data) if length is None else int(length)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url} answers {error.code} ({error.reason}): try again later, or name another source with --from") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(f"{url} cannot be fetched ({reason}): see to the network and try again; what has come is kept") from error
    if len(data) > FILE_BYTES_MAX:
        raise DownloadError(f"{url} is longer than {FILE_BYTES_MAX} bytes, so it is not the published data: name another with --from")
    if wanted != len(data):
        raise DownloadError(f"{url} broke off after {len(data)} of {wanted} bytes: try again; what has come is kept")
    return data


def _rows(path: str, text: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise DownloadError(f"{path} is not a CSV file ({error}): {REMEDY}") from error
    missing = [column for column in columns if any(row.get(column) is None for row in rows)]
    if missing or not rows:
        raise DownloadError(f"{path} has no column {', '.join(missing or columns)}: {REMEDY}")
    return rows


def _table(rows: list[tuple[str, ...]]) -> str:
    return "".join(",".join(row) + "\n" for row in rows)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    os.replace(beside, path)


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
