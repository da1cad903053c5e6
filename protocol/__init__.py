"""What the peers of an FMRec cluster must agree on: identifiers, messages, and the behaviour of the overlay.

    identifiers   128-bit ids on a ring: digits, shared prefix, distance, one tie-break
    parameters    every period, limit and timeout, with presets loopback(), lan(), wan()
    errors        one tree of errors: ours and the peer's
    knowledge     the record: one version of one agent's meta knowledge <-> bytes
    chunks        a record's bytes as holders see them: a front that lists chunks by digest, and the chunks
    assembly      a record on its way here: which of its chunks are there; striping: which come from whom
    wire/         messages, codec, framing, session: bytes in, messages out
    overlay/      three pure machines (pastry, scribe, replication) and the node that composes them
    aio/          the shell: sockets, timers, bulk transfers; the only rooms that know asyncio

All but aio/ is pure: no event loop, socket, clock, log or torch. This module imports nothing.
"""

from __future__ import annotations

WIRE_VERSION = 4
"""Version of the messages. Peers whose versions differ by one understand each other: unknown fields are ignored. There was no 3: of 2
and 4, neither can read the other's records."""

IDENTITY = "fmrec-protocol"
"""The name `protocol` is generic: both daemons refuse to start when the imported package does not carry this."""
