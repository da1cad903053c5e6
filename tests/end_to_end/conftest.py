"""The undisturbed run, once for all stories."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.end_to_end.stories import ROUNDS, story, the_end


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of theta after a run that nothing disturbs: what exact recovery must reach (promise P5)."""
    async with story(tmp_path_factory.mktemp("undisturbed")) as cluster:
        final = await the_end(cluster)
        assert (final["round"], final["recoveries"]) == (ROUNDS, [])
        return str(final["theta_digest"])
