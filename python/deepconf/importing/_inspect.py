"""Inspect's `.eval` logs: a zip archive with a JSON file for each sample and epoch."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from deepconf.errors import DeepConfError, InvalidInput
from deepconf.importing._json import Found, How, Record, of_sample, parsed

__all__ = ["read"]

# The method by which current versions of Inspect compress; Python 3.14 is the first to know it.
_ZSTD = 93
_SAMPLE = re.compile(r"samples/.*_epoch_(\d+)\.json", re.DOTALL)


def read(path: Path, how: How) -> Iterator[tuple[Found, int]]:
    """The traces, first epoch first, each with how many bytes of the file are done.

    Within an epoch they come as the log has them, which is the order in which they ended.

    Raises:
        InvalidInput: the file is damaged, or no such log.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _read(archive, path, how)
    except DeepConfError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        # A number that is damaged may ask for anything: encryption, another version.
        raise InvalidInput(
            f"{path}: this log of Inspect is damaged, or was not finished: {error}"
        ) from error


def _read(archive: zipfile.ZipFile, path: Path, how: How) -> Iterator[tuple[Found, int]]:
    names = {info.filename: info for info in archive.infolist()}  # The last one written counts.
    header = names.get("header.json") or names.get("_journal/start.json")
    if header is None:
        raise InvalidInput(
            f"{path}: this zip archive is no log of Inspect: it has no header.json, but "
            f"{', '.join(list(names)[:5]) or 'nothing'}"
        )
    start = parsed(_content(archive, header), f"{path}, {header.filename}")
    model = start.eval.model if isinstance(start, Record) and start.eval else None
    samples = [(m, info) for name, info in names.items() if (m := _SAMPLE.fullmatch(name))]
    samples.sort(key=lambda sample: int(sample[0][1]))
    done = 0
    for _, info in samples:
        place = f"{path}, {info.filename}"
        raw = _content(archive, info)
        done += info.compress_size
        for found in of_sample(msgspec.Raw(raw), place, model, how):
            yield found, done


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type != _ZSTD:
        return archive.read(info)
    import pyarrow as pa

    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    fixed = file.read(30)
    if fixed[:4] != b"PK\x03\x04" or len(fixed) < 30:
        raise zipfile.BadZipFile(f"{info.filename} has no header")
    name, extra = struct.unpack("<HH", fixed[26:30])
    file.seek(name + extra, 1)
    packed = pa.BufferReader(file.read(info.compress_size))
    try:
        content: bytes = pa.CompressedInputStream(packed, "zstd").read(info.file_size + 1)
    except OSError as error:
        raise zipfile.BadZipFile(f"{info.filename}: {error}") from error
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"{info.filename} is not what its checksum says")
    return content
