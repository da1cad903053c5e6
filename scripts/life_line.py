"""The life line of a cluster of processes: when whoever started it is gone, however that came, nothing of it stays.

    python -m scripts.life_line     reads the pids of session leaders from its standard input, a line each, until that ends or one is empty

The end of the input is the end of the one who writes it: SIGKILL, too, closes it. Then every process of FMRec in these sessions is killed,
those that start others again first. It has a session of its own, so that a signal from a terminal ends its writer alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
END = "\n"


class LifeLine:
    """Our end of it. hold() it from the first process on; let_go() when all are stopped."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "scripts.life_line"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)

    def hold(self, leader: int) -> None:
        """This session ends with us."""
        self._tell(f"{leader}\n")

    def let_go(self) -> None:
        """Whatever is left in the sessions is killed now; until that is done."""
        self._tell(END)  # said, for a fork of ours may have the line, too
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()


def session_members(sessions: set[int]) -> list[int]:
    """The pids of FMRec's processes in these sessions, zombies left out: what a command that led one has started, and itself."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                # After the command's name, which may hold anything but ends at the last bracket: state, parent, group, session.
                state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) in sessions and state not in "ZX" and b"/fmrec-" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
    return found


def send(pid: int, number: signal.Signals) -> None:
    """The signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_sessions(leaders: set[int]) -> None:
    """Until nothing of FMRec is left in the sessions of these. They go first: one that lives would start its agents again."""
    while left := session_members(leaders):
        for pid in sorted(left, key=lambda pid: pid not in leaders):
            send(pid, signal.SIGKILL)
        time.sleep(0.01)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kill_sessions({int(line) for line in takewhile(END.__ne__, sys.stdin)})


if __name__ == "__main__":
    main()
