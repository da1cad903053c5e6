"""Every random number of learning comes from a named stream.

A stream is numpy's PCG64, seeded with the SHA-256 of the words that name it: (run seed, agent name, kind and round of the job) for an
agent's batches, (data seed, lot's name) for a synthetic lot. Python's `hash()` would differ from process to process, and one stream
shared by two uses would let a change of the first move the second.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(*words: str | int) -> np.random.Generator:
    """The stream of that name, at its start. Equal words give equal streams in every process and on every machine."""
    digest = hashlib.sha256("\n".join(str(word) for word in words).encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big"))))
