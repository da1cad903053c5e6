"""What users, disks and strangers do wrong, through the real commands: a sentence, no traceback, and nobody else is hurt."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from scripts.local_cluster import BIN, HOST, free_ports, plain_environment
from tests.end_to_end.stories import AGENTS, in_a_job, story, the_end

COMMAND_S = 30.0
LOTS = "NAME,ROLE,CAPACITY,TYPE\nNorth,source,100,shops\n"
COUNTS = "North\n" + "50\n" * 4000
GARBAGE = {
    "random bytes": Random(7).randbytes(4096),
    "a frame longer than any": b"\xff\xff\xff\xff" + bytes(64),
    "a frame of nonsense": b"\x00\x00\x00\x04junk",
    "half a frame": b"\x00\x00\x00\x09half",
    "nothing": b"",
    "another protocol": b"GET / HTTP/1.0\r\n\r\n",
}


def run(*arguments: str) -> tuple[int, str]:
    """The exit code and what was said on stderr, of a command that must end by itself."""
    command = [str(BIN / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False, env=plain_environment())
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fmrec-manager", "serve", "--set", "tree.main.round=3"], "tree.main.round is no setting; the nearest is tree.main.rounds"),
        (["fmrec-agent", "start", "--set", "learning.iner_rate=1"], "learning.iner_rate is no setting; the nearest is learning.inner_rate"),
    ],
)
def test_an_unknown_setting_names_the_nearest(arguments: list[str], told: str) -> None:
    """A typo is told before anything starts, with what was probably meant; usage is exit code 2."""
    code, said = run(*arguments)
    assert (code, said.count("\n")) == (2, 1), said
    assert told in said


@pytest.mark.parametrize("command", [["fmrec-manager", "serve"], ["fmrec-agent", "start"]], ids=["manager", "agent"])
def test_a_port_in_use_is_named(command: list[str]) -> None:
    """Somebody else listens there: which port, and what to do."""
    port = free_ports(1)
    with socket.create_server((HOST, port)):
        code, said = run(*command, "--listen", f"{HOST}:{port}")
    assert code == 1
    assert f"port {port} on {HOST} is in use: stop what listens there or choose another with --listen" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, "there is no folder {folder}"),
        ({"lots.csv": LOTS.replace("CAPACITY", "SIZE"), "counts.csv": COUNTS}, "{folder}/lots.csv has no column CAPACITY"),
        ({"lots.csv": LOTS, "counts.csv": COUNTS.replace("50", "x", 1)}, "{folder}/counts.csv, line 2, column North: 'x' is not a number"),
    ],
    ids=["no folder", "no column", "no number"],
)
def test_a_fault_in_the_data_is_found_by_file_line_and_column(files: dict[str, str] | None, told: str, tmp_path: Path) -> None:
    """The agent says what is wrong where in its data, and does not start."""
    folder = tmp_path / "data"
    for name, text in (files or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    code, said = run("fmrec-agent", "start", "--set", f'learning.task.data="{folder}"')
    assert code == 1
    assert told.format(folder=folder) in said
    assert "Traceback" not in said


async def test_garbage_on_a_port_hurts_nobody(tmp_path: Path, undisturbed: str) -> None:
    """Whatever comes in place of a hello, on the manager's port and an agent's: that connection is dropped, the run does not notice."""
    async with story(tmp_path) as cluster:
        await in_a_job(cluster, "agent-0", from_round=1)
        ports = [cluster.address.port, cluster.address.port + 1]
        sent = [(port, name) for port in ports for name in GARBAGE]
        dropped = await asyncio.gather(*(_dropped(port, GARBAGE[name]) for port, name in sent))
        assert all(dropped), [what for what, gone in zip(sent, dropped, strict=True) if not gone]
        final = await the_end(cluster)
        assert (final["counts"]["alive"], final["recoveries"]) == (AGENTS, [])
        assert final["theta_digest"] == undisturbed
        assert "Traceback" not in cluster.log("manager.log") + cluster.log("agents.log")


async def _dropped(port: int, data: bytes) -> bool:
    """Is a connection that brings this closed by the other side, sooner or later?"""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(data)
        async with asyncio.timeout(COMMAND_S):
            with suppress(ConnectionResetError):
                while await reader.read(4096):
                    pass
        return True
    except TimeoutError:
        return False
    finally:
        writer.close()


async def test_a_full_disk_leaves_replicas_in_memory(tmp_path: Path, undisturbed: str) -> None:
    """Nothing can be written to the state directories: each process says so once, and the run goes on with what memory holds."""
    with full_disk(tmp_path / "manager"), full_disk(tmp_path / "agents"):
        async with story(tmp_path, agents_on_disk=True) as cluster:
            final = await the_end(cluster)
            agents, manager = cluster.log("agents.log"), cluster.log("manager.log")
            assert agents.count("records are kept in memory only") == AGENTS
            assert manager.count("records are kept in memory only") == 1
            assert "No space left on device" in agents
            assert final["theta_digest"] == undisturbed


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A file system with no room left, mounted at `folder`; skips where mounting is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with suppress(OSError), (folder / "filling").open("wb", buffering=0) as filling:
            while True:
                filling.write(bytes(4096))
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
