"""The network that the tests run on: four hosts, skipped where they cannot be made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scripts.hosts import Network

HOSTS = 4


@pytest.fixture
def network() -> Iterator[Network]:
    """Four hosts that reach each other."""
    from scripts.hosts import Network, Unable  # not above: where pyroute2 is missing, the tests skip, and this file may not fail

    try:
        made = Network(HOSTS)
    except Unable as error:
        pytest.skip(str(error))
    yield made
    made.close()
