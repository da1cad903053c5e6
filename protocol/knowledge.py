"""The record: one version of one agent's meta knowledge in one tree, as bytes that any peer can hold and check.

Layout, lengths most significant first:

    4 bytes   magic "FMRK"          4 bytes   format version
    4 bytes   length of the header  8 bytes   length of the state
    header    msgpack: whose, which version, how far, loss, samples, metrics
    state     bytes of the learner's own (generators, positions); opaque here
    tensors   safetensors, named "group/name"

A record is named by a RecordSummary, whose digest is the SHA-256 of all these bytes (1.7 GB/s here; blake2b has 0.8). A holder
needs only verify(); whoever wants what is inside calls open_record(), which also checks that the header inside says what the
summary said. Equal knowledge gives equal bytes: maps and tensors are sorted by name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from protocol.errors import LocalProtocolError, MalformedMessage, RecordInvalid
from protocol.identifiers import NodeId, TreeId
from protocol.wire.codec import MAP_MAX, pack, unpack_as
from protocol.wire.messages import Phase
from protocol.wire.values import RecordSummary

MAGIC = b"FMRK"
FORMAT = 1
HEADER_BYTES_MAX = 64 * 1024

Array = np.ndarray[Any, Any]
Data = bytes | bytearray | memoryview
"""A record's bytes as they come: sealed here, or received straight into a buffer."""

_PREFIX = struct.Struct(">4sIIQ")


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


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What an agent has learnt so far, and all that its next iteration reads.

    round, iteration, complete: as in RecordSummary. loss: the last one, None before the first. samples: |D_i|.
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
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: bytes = b""
    tensors: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


def seal(knowledge: Knowledge) -> tuple[RecordSummary, bytes]:
    """The record and its name. LocalProtocolError where something has no form as bytes (an object array, a group "a/b")."""
    if len(knowledge.metrics) > MAP_MAX:
        raise LocalProtocolError(f"a record carries at most {MAP_MAX} metrics, not {len(knowledge.metrics)}")
    values = {field.name: getattr(knowledge, field.name) for field in fields(Header)}
    values["metrics"] = {name: float(knowledge.metrics[name]) for name in sorted(knowledge.metrics)}
    values["loss"] = None if knowledge.loss is None else float(knowledge.loss)
    header = pack(Header(**values))
    if len(header) > HEADER_BYTES_MAX:
        raise LocalProtocolError(f"a record's header has at most {HEADER_BYTES_MAX} bytes, not {len(header)}")
    prefix = _PREFIX.pack(MAGIC, FORMAT, len(header), len(knowledge.state))
    data = b"".join((prefix, header, knowledge.state, _save(knowledge.tensors)))
    return RecordSummary(**_summarised(knowledge), record_bytes=len(data), digest=sha256(data).digest()), data


def verify(summary: RecordSummary, data: Data) -> None:
    """RecordInvalid, in one sentence, unless these are all the bytes that the summary names. Takes 0.6 ms a megabyte."""
    whose = f"the record of {summary.owner.short}, version {summary.version},"
    if len(data) != summary.record_bytes:
        raise RecordInvalid(f"{whose} has {len(data)} bytes, not the {summary.record_bytes} that were announced")
    if sha256(data).digest() != summary.digest:
        raise RecordInvalid(f"{whose} does not have its digest: bytes were changed or lost")


def open_record(summary: RecordSummary, data: Data) -> Knowledge:
    """What is inside, verified. The arrays are copies and may be written to. RecordInvalid as for verify(), or where the bytes
    are those announced but no record, or another record than the summary says."""
    verify(summary, data)
    whose = f"the record of {summary.owner.short}, version {summary.version},"
    if len(data) < _PREFIX.size:
        raise RecordInvalid(f"{whose} is too short to be one")
    magic, version, header_bytes, state_bytes = _PREFIX.unpack_from(data)
    if magic != MAGIC or version != FORMAT:
        raise RecordInvalid(f"{whose} is not in format {FORMAT} of FMRec's records")
    view = memoryview(data)[_PREFIX.size :]
    if header_bytes + state_bytes > len(view):
        raise RecordInvalid(f"{whose} ends before its state does")
    try:
        header = unpack_as(Header, view[:header_bytes], HEADER_BYTES_MAX)
        tensors = _load(view[header_bytes + state_bytes :])
    except (MalformedMessage, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RecordInvalid(f"{whose} cannot be read: {error}") from error
    if _summarised(header) != _summarised(summary):
        raise RecordInvalid(f"{whose} is another one inside: version {header.version} of {header.owner.short}")
    state = bytes(view[header_bytes : header_bytes + state_bytes])
    return Knowledge(**{field.name: getattr(header, field.name) for field in fields(Header)}, state=state, tensors=tensors)


def _summarised(said: Knowledge | Header | RecordSummary) -> dict[str, Any]:
    names = ("owner", "tree", "version", "incarnation", "round", "iteration", "complete")
    return {name: getattr(said, name) for name in names}


def _save(tensors: Mapping[str, Mapping[str, Array]]) -> bytes:
    flat: dict[str, Array] = {}
    for group in sorted(tensors):
        if "/" in group or not group:
            raise LocalProtocolError(f"a group of tensors is named by a word without '/', not {group!r}")
        for name in sorted(tensors[group]):
            # safetensors writes memory as it lies: a transposed view would come back transposed.
            flat[f"{group}/{name}"] = np.asarray(tensors[group][name], order="C")
    try:
        return bytes(save(flat))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise LocalProtocolError(f"a tensor has no form as bytes: {error}") from error


def _load(data: memoryview) -> dict[str, dict[str, Array]]:
    grouped: dict[str, dict[str, Array]] = {}
    # load() hands them out in an order of chance; who sums over tensors must find the same order in each process.
    for flat, array in sorted(load(bytes(data)).items()):
        group, slash, name = flat.partition("/")
        if not slash:
            raise ValueError(f"tensor {flat!r} is in no group")
        grouped.setdefault(group, {})[name] = array
    return grouped
