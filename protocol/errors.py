"""Every error that the protocol raises.

    ProtocolError
    ├── LocalProtocolError        we erred: the caller asked for what the state does not allow; state is unchanged
    │   ├── UnknownTree           the tree was neither joined nor created here
    │   └── RecordInvalid         the bytes are no record, or not the record that they are said to be
    │       └── OutOfMemory       there is no room here to open them in
    └── RemoteProtocolError       the peer erred: its connection is dropped with this reason, and nothing else happens
        ├── FrameTooLong          a length above the limit of the channel
        ├── MalformedMessage      not msgpack, an unknown shape, a field of the wrong type
        ├── UnknownMessage        a tag that this version does not know: answered, the connection stays
        └── HelloRefused          another cluster, an incompatible version, an id that does not live here
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Any error of the protocol."""


class LocalProtocolError(ProtocolError):
    """We erred. State is unchanged."""


class UnknownTree(LocalProtocolError):
    """The tree was neither joined nor created on this node."""


class RecordInvalid(LocalProtocolError):
    """The bytes are not a record, or not the one that they are said to be."""


class OutOfMemory(RecordInvalid):
    """There is no memory for what is in the record. Of a peer's that is reason enough to refuse it; our own may be opened later."""


class RemoteProtocolError(ProtocolError):
    """The peer erred: its connection is dropped with this reason."""


class FrameTooLong(RemoteProtocolError):
    """A frame's length is above the limit of its channel."""


class MalformedMessage(RemoteProtocolError):
    """A frame is not msgpack, has an unknown shape, or a field has the wrong type."""


class UnknownMessage(RemoteProtocolError):
    """A tag that this version does not know. The connection stays: versions may differ by one."""

    def __init__(self, tag: int) -> None:
        super().__init__(f"message tag {tag} is not known to this version")
        self.tag = tag


class HelloRefused(RemoteProtocolError):
    """The hello names another cluster, an incompatible version or an id that does not live at this address."""
