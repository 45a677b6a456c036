"""Where traces come from: files of every format, told apart by what is in them, and objects."""

from __future__ import annotations

import glob
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from deepconf.errors import InvalidInput, InvalidType
from deepconf.importing import _inspect, _pickle, _reference
from deepconf.importing._json import (
    FORMATS,
    Found,
    How,
    decoded,
    found_in,
    parsed,
    said,
    shape,
)
from deepconf.importing._question import Namer

__all__ = ["FORMATS", "Reader"]

_PACKED = {
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd: unpack it first",
    b"\xfd7zXZ": "it is compressed with xz: unpack it first",
    b"BZh": "it is compressed with bzip2: unpack it first",
    b"PAR1": "it is a Parquet file: if it holds traces, deepconf.read_traces reads it",
    b"ARROW1": "it is an Arrow file: if it holds traces, deepconf.read_traces reads it",
}
_MARK = b"\xef\xbb\xbf"
"""The byte order mark, which some editors put first."""


class Reader:
    """The traces of a source, in order.

    Args:
        source: a path, a glob, several of these; an object, or an iterable of objects.
        form: one of `FORMATS`, several, or "auto".
        name: finds the question of a record.
        returned: whether sampled tokens that are not among the likeliest count.

    Raises:
        InvalidInput: no such format, or no such file.
        InvalidType: the source is none of these.
    """

    def __init__(
        self, source: Any, form: str | tuple[str, ...], name: Namer, returned: bool
    ) -> None:
        if isinstance(form, str) and form != "auto" and form not in FORMATS:
            raise InvalidInput(f"format={form!r}: must be 'auto', {_quoted(FORMATS)}")
        several = (form,) if isinstance(form, str) else form
        self._forms: Iterable[str] = FORMATS if form == "auto" else several
        self._how = How(name, returned)
        self.files = _paths(source)
        self._objects = source if self.files is None else ()
        self.total = sum(file.stat().st_size for file in self.files or ())
        """Bytes of all files; 0 for objects."""
        self.done = 0
        """How many of them are read."""

    def __iter__(self) -> Iterator[tuple[Found, str]]:
        """Each trace, with the number of its record: all are counted from 1."""
        if self.files is None:
            for at, item in enumerate(_items(self._objects)):
                for found in self._of_object(item, f"source[{at}]"):
                    yield found, str(at + 1)
            return
        before = 0
        for path in self.files:
            try:
                with open(path, "rb") as file:
                    for found, number, done in self._of_file(file, path):
                        self.done = before + done
                        yield found, number
            except OSError as error:
                raise InvalidInput(f"{path}: cannot be read: {error.strerror or error}") from error
            before += path.stat().st_size
            self.done = before

    def _of_file(self, file: Any, path: Path) -> Iterator[tuple[Found, str, int]]:
        head = file.read(4096)
        file.seek(0)
        if not head:
            raise InvalidInput(f"{path}: is empty")
        for magic, what in _PACKED.items():
            if head.startswith(magic):
                raise InvalidInput(f"{path}: {what}")
        text = head.removeprefix(_MARK).lstrip()
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            self._expect("inspect", str(path))
            for found, done in _inspect.read(path, self._how):
                yield found, "", done
        elif head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            value = _pickle.load(file, str(path))
            many = isinstance(value, list | tuple)
            for at, item in enumerate(value if many else [value]):
                place = f"{path}[{at}]" if many else str(path)
                default = None if many else path.stem
                for found in self._of_object(item, place, default):
                    yield found, str(at + 1), file.tell()
        elif text.startswith((b"{", b"[")):
            yield from self._of_json(file, path, text.startswith(b"["))
        else:
            raise InvalidInput(
                f"{path}: begins with {head[:24]!r}, which is neither JSON, nor a zip archive, nor "
                f"a pickle of protocol 2 or later; the formats are {_described()}"
            )

    def _of_json(self, file: Any, path: Path, listed: bool) -> Iterator[tuple[Found, str, int]]:
        """JSON lines; or one value, if that is what the first line begins."""
        if listed:
            yield from self._of_document(file, path, listed)
            return
        done, number, first = 0, 0, True
        while raw := file.readline():  # `enumerate` would keep a line until it has the next.
            done, number = done + len(raw), number + 1
            raw = raw.removeprefix(_MARK) if number == 1 else raw
            if not raw or raw.isspace():
                continue
            place = f"{path}, line {number}"
            try:
                record = parsed(raw, place)
            except InvalidInput:
                if first and done < path.stat().st_size and self._is_document(file):
                    yield from self._of_document(file, path, listed)
                    return
                raise
            first = False
            for found in self._of_record(record, place, raw):
                yield found, str(number), done
            del record, raw  # Before the next one, which may be as long.

    def _is_document(self, file: Any) -> bool:
        """Whether the file is one JSON value on several lines."""
        try:
            msgspec.json.decode(_mapped(file), type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return True

    def _of_document(self, file: Any, path: Path, listed: bool) -> Iterator[tuple[Found, str, int]]:
        """One JSON value, whose parts are looked up in the file and not copied."""
        whole = _mapped(file)
        try:
            kind: Any = list[msgspec.Raw] if listed else msgspec.Raw
            value = msgspec.json.decode(whole, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(f"{path}: {said(error)}") from error
        done = 0
        records: list[Any] = value if listed else [value]
        for at, raw in enumerate(records):
            done += memoryview(raw).nbytes
            place = f"{path}[{at}]" if listed else str(path)
            for found in self._of_record(parsed(raw, place), place, raw):
                yield found, str(at + 1), done

    def _of_record(self, record: Any, place: str, raw: Any) -> Iterator[Found]:
        form = shape(record)
        if form is None:
            raise _unknown(place, list(parsed(raw, place, dict[str, Any])))
        self._expect(form, place)
        yield from found_in(record, place, self._how, raw=raw)

    def _of_object(self, item: Any, place: str, default: str | None = None) -> Iterator[Found]:
        if isinstance(item, str | os.PathLike):
            raise InvalidType(f"{place}: is a path; pass paths as a list")
        if isinstance(item, msgspec.Raw):
            yield from self._of_record(parsed(item, place), place, item)
            return
        if _reference.is_output(item):
            self._expect("reference", place)
            yield from _reference.traces_of(item, place, default, self._how)
            return
        record = decoded(item, place)
        form = shape(record)
        if form is None:
            raise _unknown(place, list(item) if isinstance(item, Mapping) else type(item).__name__)
        self._expect(form, place)
        yield from found_in(record, place, self._how, value=item)

    def _expect(self, form: str, place: str) -> None:
        if form not in self._forms:
            asked = " or ".join(map(repr, self._forms))
            raise InvalidInput(
                f"{place}: format={asked} was asked for, and this is {form!r}: {FORMATS[form]}"
            )


def _paths(source: Any) -> list[Path] | None:
    """The files of a source; None if it is objects."""
    if isinstance(source, str | os.PathLike):
        given: list[Any] = [source]
    elif isinstance(source, list | tuple) and any(isinstance(s, str | os.PathLike) for s in source):
        given = list(source)
    else:
        return None
    found: dict[Path, Path] = {}
    for item in given:
        if not isinstance(item, str | os.PathLike):
            raise InvalidType(f"source holds paths, and a {type(item).__name__}: {item!r:.100}")
        path = Path(item).expanduser()
        matches = [path]
        there = os.path.exists(path)  # Not so what is too long for a name.
        if not there and not glob.has_magic(str(path)):
            raise InvalidInput(f"{path!s:.200}: there is no such file")
        if not there:
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
            if not matches:
                raise InvalidInput(f"{path!s:.200}: no file matches this")
        for match in matches:
            if match.is_dir():
                raise InvalidInput(f"{match}: is a folder; name its files, such as {match}/*.jsonl")
            if not match.is_file():  # Such as a pipe: the content is looked at more than once.
                raise InvalidInput(f"{match}: is no plain file; save what it gives to one first")
            if found.setdefault(match.resolve(), match) is not match:
                raise InvalidInput(f"{match}: is named twice")
    return list(found.values())


def _items(source: Any) -> Iterable[Any]:
    if isinstance(source, Mapping) or hasattr(source, "outputs") or hasattr(source, "choices"):
        return [source]
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise InvalidType(
            f"source is a {type(source).__name__}: must be a path, several, or responses: "
            f"{_described()}"
        )
    return source


def _mapped(file: Any) -> memoryview:
    whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return whole[len(_MARK) :] if whole[: len(_MARK)] == _MARK else whole


def _unknown(place: str, what: Any) -> InvalidInput:
    has = f"has the keys {what}" if isinstance(what, list) else f"is a {what}"
    return InvalidInput(f"{place}: {has}, which is no record of a known format: {_described()}")


def _described() -> str:
    return "; ".join(f"{name}, {what}" for name, what in FORMATS.items())


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
