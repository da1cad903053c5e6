"""Messages <-> bytes. The only importer of msgpack, and the place where every byte from a peer is checked.

A message is msgpack of [tag, {field: value}]: the tag from messages.TABLE, nested dataclasses as maps, ids as 16 bytes. What
travels inside a Route may be one of several bodies, so it carries its tag too: {"body": [tag, {...}]}.

Reading trusts nothing (DESIGN, P7):

1. Sizes first. A string cannot be longer than its frame; arrays and maps have limits of their own, because msgpack makes room
   for an array when it has read only its length. Depth is msgpack's own limit (1024, with an error, not a crash).
2. Then shape. pydantic checks each message against its dataclass: a str is no int, a bool is no int, an id has 16 bytes. Fields
   that this version does not know are ignored: that is what lets versions differ by one.
3. Whatever the bytes are, decode() returns a message or raises MalformedMessage or UnknownMessage.

Most of what overlay messages carry is peers, the same few again and again: both ways keep the last PEERS_KEPT, so that each is checked
and taken apart once, and all who know a peer share one object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar, get_args

import msgpack
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator, ValidationError

from protocol.errors import LocalProtocolError, MalformedMessage, UnknownMessage
from protocol.identifiers import BYTES, NodeId, Peer
from protocol.wire.messages import TABLE, Message, Routable, Route

ARRAY_MAX = 8192
"""More peers or members than this do not fit a control frame of 1 MiB; each level of nesting may cost 8 bytes times this."""
MAP_MAX = 64
"""Fields of one message. A record's header has metrics by name, which are also bound by this."""
PEERS_KEPT = 4096
"""A ring neighbour, a relative or a table entry comes back with every message: far fewer than these are in use at a time."""

_LIMITS = {"max_array_len": ARRAY_MAX, "max_map_len": MAP_MAX, "max_ext_len": 0}
_T = TypeVar("_T")
_BY_TAG = {row.tag: row.message for row in TABLE}
_TAG = {row.message: row.tag for row in TABLE}
_AT_TOP = frozenset(get_args(Message))
_IN_ROUTE = frozenset(get_args(Routable))
_SCALARS = {"int", "float", "bool", "str", "bytes"}


# --- out --------------------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The payload of one frame. LocalProtocolError where a field has a value that the wire cannot carry (an int of 65 bits)."""
    return pack([_TAG[type(message)], _as_map(message)])


def pack(value: object) -> bytes:
    """msgpack of plain values, ids, tuples and dataclasses (as maps). LocalProtocolError for anything else."""
    try:
        packed = msgpack.packb(value, default=_plain, strict_types=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{type(value).__name__} cannot be put on the wire: {error}") from error
    assert isinstance(packed, bytes)
    return packed


def _plain(value: Any) -> object:
    """What msgpack does not know by itself. strict_types sends ids (ints by inheritance) and tuples here too."""
    kind = type(value)
    if kind is NodeId:
        return value.to_bytes(BYTES, "big")
    if kind is tuple:
        return [_peer_map(item) if type(item) is Peer else item for item in value]
    if kind is Peer:
        return _peer_map(value)
    if is_dataclass(value):
        return _as_map(value)
    raise TypeError(f"{kind.__name__} has no wire form")


@lru_cache(maxsize=PEERS_KEPT)
def _peer_map(peer: Peer) -> dict[str, object]:
    """Shared by all messages: packed, never changed."""
    return _as_map(peer) | {"id": peer.id.pack()}


def _as_map(value: Any) -> dict[str, object]:
    kind: type = type(value)
    mapped = {name: getattr(value, name) for name in _names(kind)}
    if kind is Route:
        mapped["body"] = [_TAG[type(value.body)], _as_map(value.body)]
    return mapped


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


# --- in ---------------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Message:
    """The message in one frame. MalformedMessage: drop the connection. UnknownMessage: answer NotUnderstood and go on."""
    kind, value = _tagged(_read(data, _known_peer), _AT_TOP)
    if kind is Route and "body" in value:
        body, inner = _tagged(value["body"], _IN_ROUTE)
        value = {**value, "body": _validated(body, inner)}
    message: Message = _validated(kind, value)
    return message


def unpack(data: bytes | memoryview, size_max: int) -> Any:
    """The plain value in `data` (arrays as tuples). MalformedMessage where it is longer than size_max bytes or not msgpack."""
    if len(data) > size_max:
        raise MalformedMessage(f"{len(data)} bytes where at most {size_max} may be")
    return _read(data)


def unpack_as(kind: Callable[..., _T], data: bytes | memoryview, size_max: int) -> _T:
    """The dataclass `kind` in `data`, checked like a message. MalformedMessage as for unpack(), or for a wrong shape."""
    value: _T = _validated(kind, unpack(data, size_max))
    return value


def _read(data: bytes | memoryview, object_hook: Callable[[dict[str, Any]], object] | None = None) -> Any:
    try:
        return msgpack.unpackb(data, use_list=False, strict_map_key=True, object_hook=object_hook, **_LIMITS)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MalformedMessage(f"not msgpack: {str(error) or type(error).__name__}") from error


def _known_peer(mapped: dict[str, Any]) -> object:
    """The peer that this map is; anything else, and what is no proper peer, as it came: the message's own check names the fault."""
    if len(mapped) != 4 or "incarnation" not in mapped:
        return mapped
    try:
        return _peer(mapped["id"], mapped["host"], mapped["port"], mapped["incarnation"])
    except (KeyError, TypeError, ValidationError):  # TypeError: no text, or a field that cannot be hashed
        return mapped


@lru_cache(maxsize=PEERS_KEPT, typed=True)
def _peer(identifier: object, host: object, port: object, incarnation: object) -> Peer:
    """typed: True and 1.0 are no ints, though they equal one."""
    fields_found = {"id": identifier, "host": host, "port": port, "incarnation": incarnation}
    found: Peer = _validator(Peer).validate_python(fields_found)
    return found


def _tagged(value: Any, allowed: frozenset[type]) -> tuple[type, dict[str, Any]]:
    if type(value) is not tuple or len(value) != 2:
        raise MalformedMessage("not a pair of tag and fields")
    tag, mapped = value
    if type(tag) is not int or type(mapped) is not dict:
        raise MalformedMessage("not a pair of tag and fields")
    kind = _BY_TAG.get(tag)
    if kind is None:
        raise UnknownMessage(tag)
    if kind not in allowed:
        raise MalformedMessage(f"{kind.__name__} (tag {tag}) does not travel here")
    return kind, mapped


def _validated(kind: Any, value: Any) -> Any:
    try:
        return _validator(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MalformedMessage(f"{kind.__name__}{'.' if where else ''}{where}: {first['msg']}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"{kind.__name__}: {error}") from error


@cache
def _validator(kind: Any) -> SchemaValidator:
    """pydantic's validator of the dataclass, made once. Scalars are strict; dataclasses accept maps and tuples accept arrays."""
    return SchemaValidator(_strict(TypeAdapter(kind).core_schema))


def prepare() -> None:
    """Makes the validator of every message now, which costs memory: in a parent, before it forks, the children share it."""
    for row in TABLE:
        _validator(row.message)


def _strict(schema: Any) -> Any:
    """The schema with every scalar strict. pydantic's own strict mode would refuse maps for dataclasses as well."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    walked = {name: part if name == "metadata" else _strict(part) for name, part in schema.items()}
    if walked.get("type") in _SCALARS:
        walked["strict"] = True
    return walked
