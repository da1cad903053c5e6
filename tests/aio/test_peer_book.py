"""The book of peers: what is in it, in which order, and what a damaged or unwritable file does (nothing but a word)."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.aio.peer_book import PEERS_KEPT, PeerBook
from protocol.identifiers import Address

ME = Address("127.0.0.1", 7000)


def at(*ports: int) -> tuple[Address, ...]:
    return tuple(Address("127.0.0.1", port) for port in ports)


def test_neighbours_come_first_and_nobody_twice_nor_ourselves(tmp_path: Path) -> None:
    path = tmp_path / "a" / "peers.json"
    assert PeerBook(path).read() == ()
    PeerBook(path).write(at(5, 3, 7000), at(1, 3, 7000, 2), ME)
    assert PeerBook(path).read() == at(5, 3, 1, 2)
    assert [each.name for each in path.parent.iterdir()] == ["peers.json"], "nothing is left beside it"


def test_who_was_known_before_stays_behind_the_new(tmp_path: Path) -> None:
    """The last one alive has hardly a neighbour left: whom it knew earlier may have come back since."""
    path = tmp_path / "peers.json"
    PeerBook(path).write(at(1, 2, 3), (), ME)
    book = PeerBook(path)
    assert book.read() == at(1, 2, 3)
    book.write(at(9), (), ME)
    book.write((), at(4), ME)
    assert PeerBook(path).read() == at(9, 1, 2, 3)


def test_it_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    PeerBook(path).write(at(*range(1, 101)), at(*range(101, 200)), ME)
    assert PeerBook(path).read() == at(*range(1, PEERS_KEPT + 1))


def test_it_is_written_only_when_the_neighbours_change(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    book = PeerBook(path)
    book.write(at(1), at(2), ME)
    path.unlink()
    book.write(at(1), at(3), ME)
    assert not path.exists()
    book.write(at(4), at(3), ME)
    assert PeerBook(path).read() == at(4, 3, 1, 2)


@pytest.mark.parametrize("text", ["", '[["127.0.0.1", 70', "17", '[["a"]]', '[["a", "b"]]', "\0\0", '{"a": 1}', '[["h", 1e999]]'])
def test_a_torn_file_is_passed_over_in_a_sentence(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "peers.json"
    path.write_text(text)
    book = PeerBook(path)
    assert book.read() == ()
    assert caplog.text.count("is passed over") == 1
    book.write(at(1), (), ME)
    assert PeerBook(path).read() == at(1)


def test_one_that_may_not_even_be_looked_for_is_passed_over_in_a_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name that the system refuses, as it does a folder that this user may not enter."""
    assert PeerBook(tmp_path / ("a" * 300) / "peers.json").read() == ()
    assert caplog.text.count("is passed over (") == 1
    (tmp_path / "file").touch()
    assert PeerBook(tmp_path / "file" / "peers.json").read() == ()
    assert PeerBook(tmp_path / "none" / "peers.json").read() == ()
    assert caplog.text.count("is passed over (") == 1, "where there is none, there is nothing to say"


def test_where_it_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").write_text("a file where the folder should be")
    book = PeerBook(tmp_path / "a" / "peers.json")
    for port in (1, 2, 3):
        book.write(at(port), (), ME)
    assert caplog.text.count("cannot be written") == 1


def test_without_a_path_nothing_is_remembered() -> None:
    book = PeerBook(None)
    book.write(at(1), at(2), ME)
    assert book.read() == ()
