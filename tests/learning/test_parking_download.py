"""The published parking data, fetched from a server of the test's own, which serves the repository's files as they are written there."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fmrec_agent.cli import main
from fmrec_agent.learning.tasks import parking_download
from fmrec_agent.learning.tasks.parking_download import DownloadError, converted, get_parking

PUBLISHED = Path(__file__).resolve().parents[2] / "../shared/data/all-parking-gz-sz"
needs_data = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason=f"the published data is not at {PUBLISHED} (no licence: never copied into the project)"
)


@cache
def repository() -> dict[str, bytes]:
    """The repository's files, put together again from the converted ones: the very columns, rates with 9 places."""
    with (PUBLISHED / "lots.csv").open() as file:
        lots = list(csv.DictReader(file))
    with (PUBLISHED / "occupancy_exceptions.csv").open() as file:
        exceptions = {(row["NAME"], int(row["ROW"])): row["OCCUPANCY"] for row in csv.DictReader(file)}
    with (PUBLISHED / "counts.csv").open() as file:
        counts = list(csv.DictReader(file))
    sources = [lot for lot in lots if lot["ROLE"] == "source"]
    information = ["NAME,GPSX,GPSY,TYPE,POI_DENSITY,NUM_SPACE"]
    information += [",".join(lot[key] for key in ("NAME", "GPSX", "GPSY", "TYPE", "POI_DENSITY", "NUM_SPACE_INFO")) for lot in sources]
    files = {"information.csv": "\n".join(information).encode()}
    for lot in lots:
        name, capacity = lot["NAME"], int(lot["CAPACITY"])
        lines = ["TIME,NUMBER,OCCUPANCY"]
        for row, at in enumerate(counts):
            rate = exceptions.get((name, row)) or repr(round(int(at[name]) / capacity, 9))
            lines.append(f"{at['TIME']},{at[name]},{rate}")
        folder = "members" if lot["ROLE"] == "source" else "targets"
        files[f"{folder}/{name}.csv"] = "\r\n".join(lines).encode()
    return files


@dataclass
class Site:
    """files: what is served. asked: what was asked for. broken: files whose answer breaks off half-way."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/")
            site.asked.append(path)
            if path not in site.files:
                self.send_error(404)
                return
            body = site.files[path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if path in site.broken else body)

        def log_message(self, format: str, *args: object) -> None:
            """The test's output is its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
        thread.join()


@needs_data
def test_what_is_fetched_is_the_published_data_byte_for_byte(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a fetch that broke off asks only for what it lacks."""
    site.files, site.broken = dict(repository()), {"targets/target7.csv"}
    command = ["data", "get", "parking", "--to", str(tmp_path / "parking"), "--from", site.url]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {site.url}/targets/target7.csv ")
    assert error.count("\n") == 1
    assert not (tmp_path / "parking" / "counts.csv").exists()
    site.broken.clear()
    before = len(site.asked)
    assert main(command) == 0
    assert site.asked[before:] == [f"targets/target{number}.csv" for number in range(7, 13)]
    for name in ("lots.csv", "counts.csv", "occupancy_exceptions.csv"):
        assert (tmp_path / "parking" / name).read_bytes() == (PUBLISHED / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "parking").iterdir()) == ["counts.csv", "lots.csv", "occupancy_exceptions.csv"]
    assert main(command) == 0
    assert len(site.asked) == before + 6, "what is there is not fetched again"


@needs_data
def test_a_changed_number_is_noticed_and_nothing_is_written(site: Site, tmp_path: Path) -> None:
    site.files = dict(repository())
    text = site.files["members/cme1.csv"]
    assert b",200,0.2\r" in text
    site.files["members/cme1.csv"] = text.replace(b",200,0.2\r", b",400,0.4\r", 1)
    with pytest.raises(DownloadError, match=r"does not hold the published data \(counts.csv differs\): nothing was written"):
        get_parking(tmp_path, site.url)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_said(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/information.csv answers 404 \(Not Found\): try again later"):
        get_parking(tmp_path, site.url)
    site.files["information.csv"] = b"NAME,GPSX\ncme1,1\n"
    with pytest.raises(DownloadError, match=r"information.csv has no column GPSY, TYPE, POI_DENSITY, NUM_SPACE"):
        get_parking(tmp_path, site.url)


def test_what_cannot_be_the_published_data_is_said_and_not_kept(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["information.csv"] = b"NAME\n\xff\n"
    for _ in range(2):
        with pytest.raises(DownloadError, match=r"/information.csv is not text in UTF-8: try again, or try another source"):
            get_parking(tmp_path, site.url)
    assert site.asked == ["information.csv"] * 2, "it is fetched anew"
    monkeypatch.setattr(parking_download, "FILE_BYTES_MAX", 6)
    with pytest.raises(DownloadError, match=r"/information.csv is longer than 6 bytes, so it is not the published data"):
        get_parking(tmp_path, site.url)


def test_a_folder_that_cannot_be_written_to_is_said(site: Site, tmp_path: Path) -> None:
    site.files["information.csv"] = b"NAME\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"/file.* cannot be written \(.*\): choose another folder with --to"):
        get_parking(tmp_path / "file" / "parking", site.url)


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/b", "", "a\\b"])
def test_a_name_that_leads_out_of_the_folder_is_refused_before_anything_is_fetched_by_it(site: Site, tmp_path: Path, name: str) -> None:
    header = "NAME,GPSX,GPSY,TYPE,POI_DENSITY,NUM_SPACE"
    site.files["information.csv"] = f"{header}\ncme1,1,2,x,3,4\n{name},1,2,x,3,4\n".encode()
    with pytest.raises(DownloadError, match=rf"does not hold the published data \({re.escape(repr(name))} is no lot's name\)"):
        get_parking(tmp_path / "deep" / "parking", site.url)
    assert site.asked == ["information.csv"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:1/information.csv cannot be fetched \(.*refused.*\): see to the network"):
        get_parking(tmp_path, "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIME,NUMBER,OCCUPANCY\n1,2,0.5\n", r"members/a.csv has 1 rows and should have 8640"),
        ("TIME,NUMBER,OCCUPANCY\n" + "1,two,0.5\n" * 8640, r"members/a.csv holds what is no number of cars or no rate \(.*'two'\)"),
        ("TIME,NUMBER,OCCUPANCY\n" + "1,0,0.5\n" * 8640, r"members/a.csv holds what is no number of cars .* \(division by zero\)"),
        ("TIME,NUMBER,OCCUPANCY\n" + "1,5,1e-320\n" * 8640, r"members/a.csv holds what is no number of cars .* \(.*infinity.*\): remove"),
        ("<html>" + "x" * 200_000, r"members/a.csv is not a CSV file \(field larger than field limit"),
        ("TIME,NUMBER\n" + "1,2\n" * 8640, r"members/a.csv has no column OCCUPANCY"),
    ],
)
def test_a_file_of_another_shape_is_named(text: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        converted("NAME\na\n", {"a": ("members/a.csv", text)})
