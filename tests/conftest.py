"""For all rooms: no example of hypothesis has a deadline in wall time, for a busy machine is no mistake."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fmrec", deadline=None)
settings.load_profile("fmrec")
