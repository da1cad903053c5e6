"""Buffers of large records are used again, and never while somebody can still read what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from protocol import buffers
from protocol.buffers import GRAIN_BYTES, MALLOC_KEEPS_BYTES_MAX, SPARE_BYTES_MAX, buffer_of

LARGE = MALLOC_KEEPS_BYTES_MAX + 1000


@pytest.fixture(autouse=True)
def no_spares() -> Iterator[None]:
    buffers._spares.clear()
    yield
    buffers._spares.clear()


def where(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_what_was_given_back_is_used_again() -> None:
    view = buffer_of(LARGE)
    place = where(view)
    assert (len(view), view.readonly) == (LARGE, False)
    del view
    again = buffer_of(LARGE - 5)
    assert (where(again), len(again)) == (place, LARGE - 5)
    assert where(buffer_of(LARGE)) != place, "it is taken"


def test_what_is_a_little_longer_fits_too() -> None:
    view = buffer_of(LARGE)
    place = where(view)
    del view
    longer = buffer_of(LARGE + 4)
    assert (where(longer), len(longer)) == (place, LARGE + 4)
    longer[LARGE + 3] = 7
    del longer
    assert where(buffer_of(LARGE + GRAIN_BYTES)) != place


def test_a_part_of_it_keeps_it_whoever_holds_the_part() -> None:
    view = buffer_of(LARGE)
    place, part, array = where(view), view[5:10], np.frombuffer(view[20:], np.uint8)[3:4]
    del view
    assert where(buffer_of(LARGE)) != place
    del part
    assert where(other := buffer_of(LARGE)) != place
    del array
    taken = [buffer_of(LARGE), buffer_of(LARGE)]
    assert place in map(where, taken)
    assert other is not None


def test_a_spare_that_is_much_longer_is_left_and_one_that_is_shorter_as_well() -> None:
    places = {where(buffer_of(2 * LARGE)), where(buffer_of(LARGE))}
    assert len(buffers._spares) == 2
    assert where(buffer_of(LARGE + LARGE // 2)) not in places


def test_so_many_bytes_are_kept_the_last_first_and_no_small_ones() -> None:
    size = SPARE_BYTES_MAX // 2 - 2 * GRAIN_BYTES
    first, second, third = (buffer_of(size + more * GRAIN_BYTES) for more in range(3))
    small, giant = buffer_of(MALLOC_KEEPS_BYTES_MAX), buffer_of(SPARE_BYTES_MAX + 1)
    del first, second, third, small
    del giant
    assert [len(spare) for spare in buffers._spares.values()] == [size + GRAIN_BYTES, size + 2 * GRAIN_BYTES]


def test_threads_never_share_one() -> None:
    def work(mark: int) -> bool:
        for _ in range(200):
            view = buffer_of(LARGE)
            view[0] = view[LARGE - 1] = mark
            if (view[0], view[LARGE - 1]) != (mark, mark):
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
