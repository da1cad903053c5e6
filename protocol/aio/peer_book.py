"""The addresses of peers, on disk: where the next life of this process asks for the ring when its seeds are gone.

Neighbours on the ring come first, then others known alive, then whom the book named before; so many that the death of most of them
does no harm. It is a hint, never a fact: who answers there is found out by asking. A file that cannot be read or written is said once,
and done without.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from protocol.identifiers import Address

logger = logging.getLogger(__name__)

PEERS_KEPT = 32


class PeerBook:
    """The book at `path`; without a path, nothing is remembered."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept: tuple[Address, ...] = ()
        self._neighbours: tuple[Address, ...] | None = None  # as last written
        self._failed = False

    def read(self) -> tuple[Address, ...]:
        """Whom the last life knew, neighbours first."""
        if self._path is None:
            return ()
        try:
            found = json.loads(self._path.read_text())
            known = [Address(str(host), int(port)) for host, port in found]
        except (FileNotFoundError, NotADirectoryError):
            return ()  # a first life, or one whose folder cannot be made, which write() says
        except (OSError, ValueError, TypeError, OverflowError) as error:  # OverflowError: int(inf)
            logger.warning("%s is passed over (%s): the ring is found through --join or by the peers' own dials", self._path, error)
            return ()
        self._kept = tuple(known[:PEERS_KEPT])
        return self._kept

    def write(self, neighbours: Sequence[Address], others: Iterable[Address], own: Address) -> None:
        """Remembers them, without ourselves; nothing where the neighbours are those of the last time, for others come and go at any
        moment."""
        found = tuple(address for address in neighbours if address != own)
        if self._path is None or not found or found == self._neighbours:
            return
        self._neighbours = found
        self._kept = tuple(dict.fromkeys(address for address in (*found, *others, *self._kept) if address != own))[:PEERS_KEPT]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside = self._path.with_suffix(".new")
            beside.write_text(json.dumps(self._kept))
            beside.replace(self._path)
        except OSError as error:
            if not self._failed:
                self._failed = True
                logger.warning("%s cannot be written (%s): after a restart the ring is found through --join alone", self._path, error)
