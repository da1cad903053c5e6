"""The record: one version of one agent's meta knowledge in one tree, as bytes that any peer can hold and check.

How these bytes are cut, digested and named is chunks.py; a holder needs no more. Whoever wants what is inside calls open_record(),
which also checks that the header inside says what the summary said. The content is made of sections, each cut into chunks from its
own beginning:

    the first     4 bytes length of the header, 8 bytes length of the state, most significant first; then
                  header: msgpack: whose, which version, how far, loss, samples, metrics, and the other sections by length
                  state:  bytes of the learner's own (generators, positions); opaque here
    each other    safetensors (tensors.py): the tensors of one group, by name

What changes in length comes first and apart: of a model whose greater part is frozen, only the chunks of what was trained are new.
Equal knowledge gives equal bytes: maps and tensors are sorted by name.

A record may be *rounded*: its float32 tensors are then kept as bfloat16 (the upper 16 bits, rounded to the nearest), in sections named
"group/bf16", and come back as float32. That halves it and loses 16 of 24 bits of precision: training that goes on from such a
record does not take the same course, so mode `exact` can't have it.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from protocol.chunks import Data as Data
from protocol.chunks import bind, content_of, front_of, named
from protocol.errors import LocalProtocolError, MalformedMessage, OutOfMemory, RecordInvalid
from protocol.identifiers import NodeId, TreeId
from protocol.tensors import Array as Array
from protocol.tensors import laid_out, read
from protocol.wire.codec import MAP_MAX, pack, unpack_as
from protocol.wire.messages import Phase
from protocol.wire.values import RecordSummary

HEADER_BYTES_MAX = 64 * 1024
CONTENT_BYTES_MAX = 1 << 32
"""What a compressed record may become."""
ROUNDED = "/bf16"
"""Ends the names of sections that hold the upper halves of float32 tensors."""

_PREFIX = struct.Struct(">IQ")


@dataclass(frozen=True, slots=True)
class Header:
    """What a record says of itself; the summary repeats the first seven."""

    owner: NodeId
    tree: TreeId
    version: int
    incarnation: int
    round: int
    iteration: int
    complete: bool
    phase: Phase
    loss: float | None
    samples: int
    metrics: dict[str, float]
    sections: dict[str, int]
    theta: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What an agent has learnt so far, and all that its next iteration reads.

    round, iteration, complete: as in RecordSummary. loss: the last one, None before the first. samples: |D_i|.
    theta: the digest of the theta that the job began from, empty where there was none.
    tensors: arrays by name, by group ("theta", "contribution", "state"); a group's name has no "/".
    """

    owner: NodeId
    tree: TreeId
    version: int
    incarnation: int
    phase: Phase
    round: int
    iteration: int
    complete: bool
    loss: float | None = None
    samples: int = 0
    theta: bytes = b""
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: bytes = b""
    tensors: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


def seal(knowledge: Knowledge, *, compress: bool = False, rounded: bool = False) -> tuple[RecordSummary, Data]:
    """The record and its name. LocalProtocolError where something has no form as bytes (an object array, a group "a/b").

    compress: chunks are compressed with zstd. rounded: float32 tensors are kept as bfloat16; see above for what that costs.
    """
    if len(knowledge.metrics) > MAP_MAX:
        raise LocalProtocolError(f"a record carries at most {MAP_MAX} metrics, not {len(knowledge.metrics)}")
    sections = _sections(knowledge.tensors, rounded)
    values = {name: getattr(knowledge, name) for name in _SHARED}
    values["metrics"] = {name: float(knowledge.metrics[name]) for name in sorted(knowledge.metrics)}
    values["loss"] = None if knowledge.loss is None else float(knowledge.loss)
    header = pack(Header(**values, sections={name: sum(map(len, parts)) for name, parts in sections.items()}))
    if len(header) > HEADER_BYTES_MAX:
        raise LocalProtocolError(f"a record's header has at most {HEADER_BYTES_MAX} bytes, not {len(header)}")
    first = b"".join((_PREFIX.pack(len(header), len(knowledge.state)), header, knowledge.state))
    digest, data = bind([[first], *sections.values()], compress=compress)
    return RecordSummary(**_summarised(knowledge), record_bytes=len(data), digest=digest), data


def open_record(summary: RecordSummary, data: Data, groups: Collection[str] | None = None, *, checked: bool = False) -> Knowledge:
    """What is inside, verified. The arrays are copies and may be written to. RecordInvalid where these are not all the bytes that the
    summary names, or where they are but are no record, or another record than the summary says; OutOfMemory where there is no room for what
    is in it. groups: of tensors that are wanted; all where it is None. checked: each chunk has been held against its digest already, and is
    not again."""
    try:
        return _opened(summary, data, groups, checked)
    except MemoryError as error:
        raise OutOfMemory(f"{named(summary)} cannot be opened: there is no memory for what is in it: free some") from error


def _opened(summary: RecordSummary, data: Data, groups: Collection[str] | None, checked: bool) -> Knowledge:
    content = content_of(summary, data, CONTENT_BYTES_MAX, checked=checked)
    whose = named(summary)
    if len(content) < _PREFIX.size:
        raise RecordInvalid(f"{whose} is too short to be one")
    header_bytes, state_bytes = _PREFIX.unpack_from(content)
    view = content[_PREFIX.size :]
    if header_bytes + state_bytes > len(view):
        raise RecordInvalid(f"{whose} ends before its state does")
    try:
        header = unpack_as(Header, view[:header_bytes], HEADER_BYTES_MAX)
        tensors = _tensors(view[header_bytes + state_bytes :], header.sections, groups)
    except (MalformedMessage, ValueError) as error:
        raise RecordInvalid(f"{whose} cannot be read: {error}") from error
    if _summarised(header) != _summarised(summary):
        raise RecordInvalid(f"{whose} is another one inside: version {header.version} of {header.owner.short}")
    state = bytes(view[header_bytes : header_bytes + state_bytes])
    return Knowledge(**{name: getattr(header, name) for name in _SHARED}, state=state, tensors=tensors)


def opening_bytes(summary: RecordSummary, data: Data, groups: Collection[str] | None) -> int:
    """How many bytes open_record() of checked bytes copies at most: without tensors only the header and the state, where the record is not
    compressed. RecordInvalid as there."""
    front = front_of(summary, data)
    if front.compressed or groups is None or groups or front.content_bytes < _PREFIX.size:
        return max(summary.record_bytes, front.content_bytes)
    return sum(_PREFIX.unpack_from(data, front.bounds[0]))


_SHARED = tuple(field.name for field in fields(Header) if field.name != "sections")
"""What Knowledge and Header both have."""


def _summarised(said: Knowledge | Header | RecordSummary) -> dict[str, Any]:
    names = ("owner", "tree", "version", "incarnation", "round", "iteration", "complete")
    return {name: getattr(said, name) for name in names}


# --- tensors ----------------------------------------------------------------------------------------------------------


def _sections(tensors: Mapping[str, Mapping[str, Array]], rounded: bool) -> dict[str, list[Array]]:
    """Each group's tensors as safetensors, in parts, by the section's name."""
    sections: dict[str, list[Array]] = {}
    for group in sorted(tensors):
        if "/" in group or not group:
            raise LocalProtocolError(f"a group of tensors is named by a word without '/', not {group!r}")
        whole = {name: np.asarray(tensors[group][name]) for name in sorted(tensors[group])}
        halves = {name: upper_half(whole.pop(name)) for name in list(whole) if rounded and whole[name].dtype == np.float32}
        try:
            sections |= {name: laid_out(part) for name, part in ((group, whole), (group + ROUNDED, halves)) if part}
        except ValueError as error:
            raise LocalProtocolError(f"a record of these tensors cannot be made: {error}") from error
    return sections


def _tensors(content: memoryview, sections: Mapping[str, int], groups: Collection[str] | None) -> dict[str, dict[str, Array]]:
    """The groups, from their sections. ValueError where these are none."""
    if min(sections.values(), default=0) < 0 or sum(sections.values()) != len(content):
        raise ValueError(f"its sections have {sum(sections.values())} bytes and its tensors {len(content)}")
    grouped: dict[str, dict[str, Array]] = {}
    at = 0
    for section, size in sections.items():
        group, slash, _ = section.partition("/")
        if not group or (slash and not section.endswith(group + ROUNDED)):
            raise ValueError(f"section {section!r} is no group of tensors")
        if groups is None or group in groups:
            found = read(content[at : at + size])
            grouped.setdefault(group, {}).update({name: from_upper_half(found[name]) if slash else found[name] for name in found})
        at += size
    # Who sums over tensors must find the same order in each process.
    return {group: dict(sorted(grouped[group].items())) for group in sorted(grouped)}


def upper_half(array: Array) -> Array:
    """float32 as bfloat16, in uint16: the nearest, the even one of two; what is not finite stays so."""
    flat = array.reshape(-1)
    bits = flat.view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(flat), (bits >> 16) | 0x40, nearest).astype(np.uint16).reshape(array.shape)


def from_upper_half(halves: Array) -> Array:
    """The float32 that these bfloat16, in uint16, are. ValueError where they are not in uint16."""
    if halves.dtype != np.uint16:
        raise ValueError(f"bfloat16 comes in uint16, not {halves.dtype}")
    return (halves.reshape(-1).astype(np.uint32) << 16).view(np.float32).reshape(halves.shape)
