"""Handwritten characters from Omniglot's archives (Lake et al., Science 350, 2015), or from folders unpacked from them.

1. `data` is a zip file, or a folder; of a folder, every zip file in it and below is read, and every unpacked picture. A picture is
   named <alphabet>/<character>/<file>.png, whatever stands before. The same character of two archives (Greek and Latin are in both small
   sets) counts once.
2. A picture is 105 x 105, black on white. It becomes 28 x 28 (each pixel the mean of those whose centres it covers), ink 1 and
   paper 0, as in Vinyals et al. (NeurIPS 2016), who have the ink so too.
3. Listing reads no picture; an agent decodes its own characters only, once in a process.

Every fault is one sentence: which file, what is wrong, what to do.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from fmrec_agent.learning.learner import LearnerError

SIDE = 28
ARCHIVE_BYTES_MAX = 1 << 28
PICTURE_BYTES_MAX = 1 << 20
PICTURE_SIDE_MAX = 1024

Reader = Callable[[], bytes]


class Omniglot:
    """The characters of one place: `names` in alphabetical order ("Greek/character01"), and the drawings of each."""

    def __init__(self, data: str) -> None:
        """LearnerError where nothing is there, or no picture in it."""
        root = Path(data)
        if not root.exists():
            raise LearnerError(
                f"there is no file or folder {data} (started in {Path.cwd()}): set learning.task.data to Omniglot's folder or zip file"
            )
        pictures: dict[str, dict[str, tuple[str, Reader]]] = {}
        for path, where, reader in _pictures(root):
            if len(path.parts) >= 3:
                *_, alphabet, character, file = path.parts
                pictures.setdefault(f"{alphabet}/{character}", {}).setdefault(file, (where, reader))
        if not pictures:
            raise LearnerError(
                f"{data} holds no picture <alphabet>/<character>/<file>.png: set learning.task.data to Omniglot's folder or zip file"
            )
        self._pictures = pictures
        self._decoded: dict[str, npt.NDArray[np.float32]] = {}
        self.names = tuple(sorted(pictures))

    def drawings(self, name: str) -> npt.NDArray[np.float32]:
        """All drawings of that character, [drawings, 28, 28], in the order of their files. LearnerError for one that is no picture."""
        if name not in self._decoded:
            files = self._pictures[name]
            self._decoded[name] = np.stack([_decoded(*files[file]) for file in sorted(files)])
        return self._decoded[name]


@cache
def read_omniglot(data: str) -> Omniglot:
    """The characters there; listed once in a process."""
    return Omniglot(data)


def _pictures(root: Path) -> Iterator[tuple[PurePosixPath, str, Reader]]:
    """(path, what to call it in an error, how to read it) of each picture, archives in the order of their names."""
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    for file in files:
        if file.suffix.lower() == ".png":
            yield PurePosixPath(file.as_posix()), str(file), file.read_bytes
        elif file.suffix.lower() == ".zip" or file == root:
            yield from _members(file)


def _members(file: Path) -> Iterator[tuple[PurePosixPath, str, Reader]]:
    try:
        if file.stat().st_size > ARCHIVE_BYTES_MAX:
            raise zipfile.BadZipFile(f"it is longer than {ARCHIVE_BYTES_MAX} bytes")
        # In memory: an open file's position would be shared with every process forked from this one.
        archive = zipfile.ZipFile(io.BytesIO(file.read_bytes()))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LearnerError(f"{file} is not a zip file that can be read ({error}): fetch it again, or correct learning.task.data") from error
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        if path.suffix.lower() == ".png" and "__MACOSX" not in path.parts:
            yield path, f"{member.filename} in {file}", _reader(archive, member)


def _reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Reader:
    def read() -> bytes:
        if member.file_size > PICTURE_BYTES_MAX:
            raise ValueError(f"{member.file_size} bytes, more than {PICTURE_BYTES_MAX}")
        return archive.read(member)

    return read


def _decoded(where: str, reader: Reader) -> npt.NDArray[np.float32]:
    try:
        with Image.open(io.BytesIO(reader()), formats=["PNG"]) as picture:
            if max(picture.size) > PICTURE_SIDE_MAX:
                raise ValueError(f"{picture.size[0]} x {picture.size[1]} pixels, more than {PICTURE_SIDE_MAX} a side")
            small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except Exception as error:  # zipfile, its decompressors and Pillow each raise several kinds of their own
        raise LearnerError(f"{where} is not a PNG picture ({error}): fetch the data again, or take that file away") from error
    return np.float32(1) - np.asarray(small, dtype=np.float32) / np.float32(255)
