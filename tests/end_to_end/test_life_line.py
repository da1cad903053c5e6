"""A cluster does not outlive the script that started it, however that ends: demos and benchmarks are interrupted and killed, too."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from scripts.life_line import session_members
from tests.aio.waiting import until

ROOT = Path(__file__).resolve().parents[2]
STORY_S = 30.0
SCRIPT = """
import sys
from pathlib import Path
from scripts.local_cluster import LocalCluster

cluster = LocalCluster(Path(sys.argv[1]), agents=1, sources=1)
cluster.start_manager()
cluster.start_agents()
print(cluster.manager.pid, cluster.launcher.pid, flush=True)
sys.stdin.read()
cluster.stop()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, None])
async def test_what_a_script_has_started_ends_with_it(tmp_path: Path, how: signal.Signals | None) -> None:
    """None: it stops its cluster itself."""
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    script = await asyncio.create_subprocess_exec(sys.executable, "-c", SCRIPT, str(tmp_path), cwd=ROOT, **pipes)
    assert script.stdin is not None
    assert script.stdout is not None
    leaders = set(map(int, (await script.stdout.readline()).split()))
    await until(lambda: leaders <= set(session_members(leaders)), STORY_S)
    if how is None:
        script.stdin.close()
    else:
        script.send_signal(how)
    await asyncio.wait_for(script.wait(), STORY_S)
    await until(lambda: not session_members(leaders), STORY_S)
