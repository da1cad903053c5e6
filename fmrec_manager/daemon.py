"""The manager: one overlay node a tree, each with its root, on one listener; composed here, from the first bind to the last goodbye.

A tree's node has the treeId as its id; its root decides (root.py), its host does what is decided (tree_host.py). A standby has everything
ready that takes time (torch, the listener, a place in the ring), and roots a tree when its manager is gone (standby_host.py). A manager
that finds another in its place, or hears that there was one, has nothing to say any more: it stands by for that tree, with all it holds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import Any

from fmrec_manager.display import Display
from fmrec_manager.report import last_word
from fmrec_manager.settings import ManagerSettings
from fmrec_manager.standby_host import Found, StandbyHost
from fmrec_manager.tree_host import TreeHost
from protocol.aio.connections import Connections
from protocol.aio.folder_lock import FolderLock
from protocol.aio.peer_book import PeerBook
from protocol.aio.process import check_identity, listen_port, run, set_up_logging, try_port
from protocol.parameters import OverlayParameters

log = logging.getLogger("fmrec.manager")

DISPLAY_PERIOD_S = 0.25
LEFT_WITHIN_S = 1.0
PEERS_TRIED = 4
"""After a restart, before the manager begins a ring of its own: then the agents, who dial their dead again, find it."""


def serve(settings: ManagerSettings) -> int:
    """Run the manager until it is stopped; the exit code."""
    # The live table owns the terminal; a log in the same one would tear it.
    set_up_logging("warning" if sys.stdout.isatty() and sys.stderr.isatty() else settings.log_level)
    return run(ManagerDaemon(settings).run)


class ManagerDaemon:
    """One manager process."""

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        self._book = PeerBook(settings.state_dir / "peers.json" if settings.state_dir is not None else None)
        self._began = time.time()
        self._hosts: dict[str, TreeHost] = {}
        self._rooted: dict[str, TreeHost] = {}
        """Those of them that root their tree here: all, or where this is a standby the ones that it has taken over."""
        self._news = asyncio.Event()
        """Of a tree that is rooted here."""
        self._standby: StandbyHost | None = None
        self._address = settings.address
        self._lock: FolderLock | None = None

    async def run(self, stop: asyncio.Event) -> int:
        """Serve until `stop` is set, or a stop request comes."""
        check_identity()
        parameters = self._settings.overlay.parameters()
        self._connections = connections = Connections(self._settings.cluster, parameters)
        connections.status_document = lambda: json.dumps(self.document())
        connections.stop = stop.set
        await try_port(*self._settings.address, LEFT_WITHIN_S)
        if self._settings.state_dir is not None:
            self._lock = FolderLock(self._settings.state_dir)
            await self._lock.take(LEFT_WITHIN_S)
        for name, tree in self._settings.tree.items():
            self._hosts[name] = TreeHost(name, tree, self._settings, parameters, connections, self._address)
            await self._hosts[name].load()
        self._address = await listen_port(connections, *self._settings.address)
        lives = [asyncio.create_task(stop.wait()), asyncio.create_task(self._watch(stop)), asyncio.create_task(self._root(parameters))]
        try:
            done, _ = await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
            for life in done:
                life.result()
        finally:
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
            if stop.is_set():
                self._say_what_stays()  # now that no table is there to be drawn over it
            for host in self._rooted.values():
                await host.close()
            if self._standby is not None:
                await self._standby.close()
            await connections.close()
            if self._lock is not None:
                self._lock.release()
        return 0

    async def _root(self, parameters: OverlayParameters) -> None:
        """Root the trees, at once or as they need it, and stand by for the others. Never returns; raises what a host failed with."""
        seeds, hints = self._settings.seeds(), self._book.read()[:PEERS_TRIED]
        if self._settings.standby:
            held = [found for host in self._hosts.values() if (found := host.store.get(host.tree, host.tree)) is not None]
            self._stand_by(parameters).start(seeds, hints, held)
            log.info("a standby of cluster %s listens on %s", self._settings.cluster, self._address)
        else:
            # The first tree's node enters the ring through seeds and remembered peers, the others through it.
            for index, (name, host) in enumerate(self._hosts.items()):
                host.start(seeds if index == 0 else (self._address,), hints if index == 0 else ())
                self._rooted[name] = host
            log.info("the manager of cluster %s listens on %s", self._settings.cluster, self._address)
        while True:
            self._news.clear()
            drivers = [host.driver for host in self._rooted.values()] + ([self._standby.driver] if self._standby is not None else [])
            news: asyncio.Future[Any] = asyncio.ensure_future(self._news.wait())
            ends = {news, *(driver.failed for driver in drivers), *(host.superseded for host in self._rooted.values())}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            for driver in drivers:
                if driver.failed.done():
                    driver.failed.result()
            for name, host in list(self._rooted.items()):
                if host.superseded.done():
                    await self._step_down(name, host, parameters)

    def _stand_by(self, parameters: OverlayParameters) -> StandbyHost:
        """For the trees that are not rooted here."""
        trees = {name: host.tree for name, host in self._hosts.items()}
        where = self._settings.cluster, self._address
        self._standby = StandbyHost(*where, trees, parameters, self._connections, self._take_over, self._rooted.keys())
        return self._standby

    def _take_over(self, name: str, term: int, found: Found | None, reason: str) -> None:
        """The manager of this tree is gone: root it here, from the record that was found."""
        log.warning("%s: %s: this standby takes over, with term %d", name, reason, term)
        host = self._hosts[name]
        if found is not None:
            host.store.put(*found)
        host.start((self._address,), (), term)
        self._rooted[name] = host
        self._news.set()

    async def _step_down(self, name: str, host: TreeHost, parameters: OverlayParameters) -> None:
        """Another roots this tree, or did last: stand by for it. A new host waits for its turn, as a standby's does from the beginning."""
        order = host.superseded.result()
        log.warning("tree %s %s: this manager stands by for it", name, order.reason)
        near = [peer.address for peer in host.node.pastry.leaf_set if peer.address != self._address]
        # What is on disk stays there; else it goes on living here, for it may be the last copy.
        keys = [(host.tree, host.tree)] if self._settings.state_dir is not None else [record.key for record in host.store.held()]
        held = [found for key in keys if (found := host.store.get(*key)) is not None]
        await host.close()
        again = TreeHost(name, host.settings, self._settings, parameters, self._connections, self._address)
        await again.load()
        self._hosts[name] = again
        del self._rooted[name]
        if self._standby is None:
            standby = self._stand_by(parameters)
            standby.start((*self._settings.seeds(), *((self._address,) if self._rooted else ())), near)
        else:
            standby = self._standby
        standby.superseded(name, order.term, held)

    def _say_what_stays(self) -> None:
        """Stopped in the middle of a run: where is what the next start goes on from?"""
        for name, host in self._rooted.items():
            if word := last_word(host.root, self._settings.state_dir):
                log.warning("%s %s", name, word)

    async def _watch(self, stop: asyncio.Event) -> None:
        """Keep the display fresh, and the peers on disk."""
        with Display(sys.stdout) as display:
            while not stop.is_set():
                display.update(self.document())
                self._remember()
                await asyncio.sleep(DISPLAY_PERIOD_S)

    def _remember(self) -> None:
        """The neighbours of every tree's node first."""
        nodes = [host.node for host in self._rooted.values()]
        nodes += [self._standby.node] if self._standby is not None else []
        neighbours = dict.fromkeys(peer.address for node in nodes for peer in node.pastry.leaf_set)
        self._book.write(tuple(neighbours), (peer.address for node in nodes for peer in node.detector.lives()), self._address)

    # --- status -------------------------------------------------------------------------------------------------------

    def document(self) -> dict[str, object]:
        """The manager's state, as `status --format json` prints it."""
        return {
            "cluster": self._settings.cluster,
            "manager": {
                "address": str(self._address),
                "pid": os.getpid(),
                "uptime_s": round(time.time() - self._began, 3),
                "device": next((str(host.aggregator.device) for host in self._hosts.values()), "none"),
            },
            "trees": {name: host.document() for name, host in self._rooted.items()},
            "standby": self._standby.document() if self._standby is not None else {},
        }
