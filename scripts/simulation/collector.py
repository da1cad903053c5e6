"""Python's garbage collector during a run: a build makes millions of objects and no garbage, and what it has built stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No collection until built(), and afterwards few; in the end everything is as it was."""
    thresholds = gc.get_threshold()
    gc.collect()  # what the run before has left
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        gc.enable()


def built() -> None:
    """What there is now is looked at no more; collections begin again."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    gc.enable()
