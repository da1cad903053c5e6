"""What of a part has been run already, in a file, so that an interrupted `make paper` can go on (`scripts/paper.py --resume`)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


class Finished:
    """Results by key, as JSON. A key names all that its result depends on."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """resume False: begin anew."""
        self._path = path
        self._results: dict[str, Any] = json.loads(path.read_text()) if resume and path.exists() else {}
        self.resumed = bool(self._results)
        """Is there anything that need not be run again?"""

    async def once(self, key: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """The result of this key: kept, or made now and kept."""
        if key not in self._results:
            self._results[key] = await make()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._keep()
            print(f"  {key}: {self._results[key]}"[:200], flush=True)
        return self._results[key]

    def _keep(self) -> None:
        """Written beside and then put in place, so that an interruption leaves the old file or the new one."""
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(self._results))
        beside.replace(self._path)
