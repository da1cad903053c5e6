"""A learner is a stranger's code: what it raises, and what it gives that the contract does not know, becomes one sentence.

The sentence names the learner, the method, and a line: the last one that is neither FMRec's nor an installed package's, where there is
one. The whole traceback is logged for log_level debug.
"""

from __future__ import annotations

import logging
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmrec_agent.learning.learner import Contribution, Learner, LearnerError, LearnerFailed, Tensors

log = logging.getLogger("fmrec.learner")

TOLD_MAX = 500
"""Characters of what an error says."""
FOLDERS = {str(Path(__file__).resolve().parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))}
NOT_WRITTEN = ("<", *(f"{folder}/" for folder in FOLDERS))
"""What begins the names of files that no user of FMRec wrote: the interpreter's own, ours, the standard library's, those of packages."""


def asked(learner: Learner, method: str, *arguments: Any) -> Any:
    """What the learner's method returns. LearnerFailed for what it raises; its own LearnerErrors as they are."""
    try:
        return getattr(learner, method)(*arguments)
    except LearnerError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{method}() of {_name(learner)} failed"
        log.debug("%s", what, exc_info=error)
        ours = type(learner).__module__.startswith("fmrec_agent.") and _written(error) is None
        remedy = "please report it, with the traceback that log_level debug shows" if ours else "mend it"
        raise LearnerFailed(f"{what} ({told(error)}): {remedy}") from error


def state_of(learner: Learner) -> tuple[Tensors, bytes]:
    """learner.state(); LearnerError where that is not what a record can hold and restore() is given again."""
    state, what = asked(learner, "state"), f"state() of {_name(learner)}"
    if not isinstance(state, tuple) or len(state) != 2:
        raise LearnerError(f"{what} returned {state!r:.80}: return (arrays by name, anything else as bytes)")
    tensors, extra = state
    if not isinstance(extra, bytes | bytearray | memoryview):
        raise LearnerError(f"{what} returned a {type(extra).__name__} beside its arrays: encode it as bytes")
    return _arrays(tensors, what), bytes(extra)


def contribution_of(learner: Learner) -> Contribution:
    """learner.finish(); LearnerError where that is no Contribution of arrays."""
    said, what = asked(learner, "finish"), f"finish() of {_name(learner)}"
    if not isinstance(said, Contribution):
        raise LearnerError(f"{what} returned {said!r:.80}: return a Contribution")
    _arrays(said.tensors, what)
    return said


def _arrays(tensors: object, what: str) -> Tensors:
    if not isinstance(tensors, Mapping):
        raise LearnerError(f"{what} returned a {type(tensors).__name__} where numpy arrays by name should be: return a dict of them")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray | np.generic):
            raise LearnerError(f"{what} returned {name!r:.80} as a {type(value).__name__}: return numpy arrays, by names that are strings")
    return tensors


def told(error: BaseException) -> str:
    """What was raised, and on which line."""
    said = " ".join(str(error).split())
    at = _written(error) or traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}{': ' if said else ''}{said:.{TOLD_MAX}}, raised in {at.filename}, line {at.lineno}"


def _written(error: BaseException) -> traceback.FrameSummary | None:
    """The last line on the way to the error that a user of FMRec may have written."""
    return next((at for at in reversed(traceback.extract_tb(error.__traceback__)) if not at.filename.startswith(NOT_WRITTEN)), None)


def _name(learner: Learner) -> str:
    return f"learner {type(learner).__module__}:{type(learner).__qualname__}"
