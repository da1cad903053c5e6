"""The manager: one overlay node a tree, each with its root, on one listener; composed here, from the first bind to the last goodbye.

A tree's node has the treeId as its id. The root (root.py) decides; this does what it orders: multicasts, look-ups, aggregation in a thread,
records. Ports, disk and clock are met here only.
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
from fmrec_manager.settings import ManagerSettings
from fmrec_manager.tree_host import TreeHost
from protocol.aio.connections import Connections
from protocol.aio.peer_book import PeerBook
from protocol.aio.process import check_identity, listen_port, run, set_up_logging

log = logging.getLogger("fmrec.manager")

DISPLAY_PERIOD_S = 0.25
PEERS_TRIED = 4
"""After a restart, before the manager begins a ring of its own: then the agents, who dial their dead again, find it."""


def serve(settings: ManagerSettings) -> int:
    """Run the manager until it is stopped; the exit code."""
    # The live table owns the terminal; the log would tear it.
    set_up_logging("warning" if sys.stdout.isatty() else settings.log_level)
    return run(ManagerDaemon(settings).run)


class ManagerDaemon:
    """One manager process."""

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        self._book = PeerBook(settings.state_dir / "peers.json" if settings.state_dir is not None else None)
        self._began = time.time()
        self._hosts: dict[str, TreeHost] = {}
        self._address = settings.address

    async def run(self, stop: asyncio.Event) -> int:
        """Serve until `stop` is set or a stop request comes."""
        check_identity()
        parameters = self._settings.overlay.parameters()
        connections = Connections(self._settings.cluster, parameters)
        connections.status_document = lambda: json.dumps(self.document())
        connections.stop = stop.set
        hints = self._book.read()[:PEERS_TRIED]
        for name, tree in self._settings.tree.items():
            self._hosts[name] = TreeHost(name, tree, self._settings, parameters, connections, self._address)
            await self._hosts[name].load()
        self._address = await listen_port(connections, *self._settings.address)
        # The first tree's node enters the ring through seeds and remembered peers, the others through it.
        for index, host in enumerate(self._hosts.values()):
            host.start(self._settings.seeds() if index == 0 else (self._address,), hints if index == 0 else ())
        log.info("the manager of cluster %s listens on %s", self._settings.cluster, self._address)
        watching = asyncio.create_task(self._watch(stop))
        failed = [host.driver.failed for host in self._hosts.values()]
        try:
            ends: list[asyncio.Future[Any]] = [asyncio.create_task(stop.wait()), watching, *failed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for ended in failed:
                if ended.done():
                    ended.result()
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            for host in self._hosts.values():
                await host.close()
            await connections.close()
        return 0

    async def _watch(self, stop: asyncio.Event) -> None:
        """Keep the display fresh, and the peers on disk."""
        with Display(sys.stdout) as display:
            while not stop.is_set():
                display.update(self.document())
                self._remember()
                await asyncio.sleep(DISPLAY_PERIOD_S)

    def _remember(self) -> None:
        """The neighbours of every tree's node first."""
        nodes = [host.node for host in self._hosts.values()]
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
            "trees": {name: host.document() for name, host in self._hosts.items()},
        }
