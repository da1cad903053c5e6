"""What the agent's tests share: a ring of real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.agent.ring import Ring


@pytest.fixture
async def ring() -> AsyncIterator[Ring]:
    """A ring without anyone; whoever enters it is closed at the end, and then nothing may be left running."""
    made = Ring()
    yield made
    await made.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"still running after close(): {left}"
