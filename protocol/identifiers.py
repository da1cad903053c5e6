"""Identifiers on Pastry's ring (Rowstron & Druschel 2001, section 2).

An id is 128 bits, read as 32 digits in base 16, and lives on a circle: after the largest comes 0. "Numerically closest" is the
distance along the shorter way round. Two ids can be equally far from a key, one on each side; every node must then choose the
same one, so the tie goes to the smaller id.

An id is an int: comparing, sorting and hashing are the machine's own, and the same whatever PYTHONHASHSEED says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

BITS = 128
BYTES = BITS // 8
DIGIT_BITS = 4
DIGITS = BITS // DIGIT_BITS
HOST_MAX = 255
"""No name of a host is longer."""
RING = 1 << BITS
ZONE_BITS = 16
"""The leading bits of an id that its zone fills, where it has one: of a few hundred zones hardly two share a stretch of the ring."""


class NodeId(int):
    """A point on the ring: of an agent, of a tree, or of a key."""

    __slots__ = ()

    def __new__(cls, value: int) -> NodeId:
        if not 0 <= value < RING:
            raise ValueError(f"an id has {BITS} bits, 0 <= id < 2**{BITS}, not {value}")
        return super().__new__(cls, value)

    @classmethod
    def unpack(cls, data: bytes) -> NodeId:
        """The id in 16 bytes, most significant first; ValueError where there are not 16."""
        if len(data) != BYTES:
            raise ValueError(f"an id is {BYTES} bytes, not {len(data)}")
        return cls(int.from_bytes(data, "big"))

    def pack(self) -> bytes:
        return self.to_bytes(BYTES, "big")

    def __str__(self) -> str:
        return f"{self:032x}"

    def __repr__(self) -> str:
        return f"NodeId({self.short})"

    @property
    def short(self) -> str:
        """The first eight digits, for logs and tables."""
        return f"{self:032x}"[:8]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """On the wire an id is 16 bytes: pydantic accepts these, and an id that is one already."""
        from pydantic_core import core_schema

        packed = core_schema.no_info_after_validator_function(cls.unpack, core_schema.bytes_schema(min_length=BYTES, max_length=BYTES))
        return core_schema.union_schema([core_schema.is_instance_schema(cls), packed], mode="left_to_right")


TreeId = NodeId
"""The id of a tree is a point on the same ring: the manager's node that roots the tree has it as its own id."""


def _named(kind: bytes, *parts: str) -> NodeId:
    digest = blake2b(digest_size=BYTES, person=kind)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return NodeId.unpack(digest.digest())


def agent_id(cluster: str, name: str, zone: str = "") -> NodeId:
    """The id of the agent `name`: the same after each restart, on whatever machine of its zone. Agents of one zone are ring neighbours."""
    identifier = _named(b"agent", cluster, name)
    if not zone:
        return identifier
    rest = BITS - ZONE_BITS
    return NodeId(zone_of(_named(b"zone", cluster, zone)) << rest | identifier & (1 << rest) - 1)


def zone_of(identifier: int) -> int:
    """The leading bits. Ids that were made without a zone have one each, but for chance."""
    return identifier >> (BITS - ZONE_BITS)


def tree_id(tree: str, task: str) -> TreeId:
    """The treeId: the hash of the tree's name with the name of its task (Scribe, section 3.1)."""
    return _named(b"tree", tree, task)


def digit(identifier: int, index: int) -> int:
    """The digit at `index`, 0 being the most significant."""
    return (identifier >> (BITS - DIGIT_BITS * (index + 1))) & (1 << DIGIT_BITS) - 1


def shared_prefix(a: int, b: int) -> int:
    """How many leading digits a and b have in common, 0 to 32."""
    return (BITS - (a ^ b).bit_length()) // DIGIT_BITS


def clockwise(start: int, end: int) -> int:
    """The way from start to end in the direction of growing ids."""
    return (end - start) % RING


def ring_distance(a: int, b: int) -> int:
    """The shorter way between a and b."""
    way = (b - a) % RING
    return min(way, RING - way)


def rank(key: int, identifier: int) -> tuple[int, int]:
    """Sorts ids by closeness to key; equal distances go to the smaller id."""
    return ring_distance(key, identifier), identifier


def closest(key: int, identifiers: Iterable[NodeId]) -> NodeId:
    """The id numerically closest to key; ValueError where there is none."""
    return min(identifiers, key=lambda identifier: rank(key, identifier))


class Address(NamedTuple):
    """Where a process listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Peer:
    """One life of one node: its id, where it listens, and its incarnation, which grows at each start of the same id. ValueError for a host
    that is none: others' messages name it, and must fit."""

    id: NodeId
    host: str
    port: int
    incarnation: int

    def __post_init__(self) -> None:
        if len(self.host) > HOST_MAX:
            raise ValueError(f"a host has at most {HOST_MAX} characters, not {len(self.host)}")

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.id.short}@{self.address}"
