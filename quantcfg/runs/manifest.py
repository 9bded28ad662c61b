"""The manifest: size and SHA-256 of every file of a run or checkpoint, and of itself. Valid: they match."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantcfg.errors import RunError
from quantcfg.runs.reader import read_bytes
from quantcfg.runs.writer import naming, synchronize, to_json, write_text

FORMAT_VERSION = 1
NAME = "manifest.json"
_BLOCK = 1 << 20  # bytes read at a time
_SEAL = "sha256"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a directory, by their path below it, and facts about how they came to be."""

    files: Mapping[str, FileRecord]
    facts: Mapping[str, Any]


def write_manifest(directory: Path, names: Collection[str], **facts: Any) -> None:
    """Record ``names``, paths below ``directory``, and make them durable. A writer writes this file last."""
    for name in names:
        with naming(directory / name):
            synchronize(directory / name)
    write_records(directory, {name: record_file(directory / name) for name in names}, **facts)


def write_records(directory: Path, records: Mapping[str, FileRecord], **facts: Any) -> None:
    """The same with what the files have to be known already, as it is to whoever wrote them."""
    files = {name: asdict(record) for name, record in sorted(records.items())}
    write_text(directory / NAME, _sealed({"format_version": FORMAT_VERSION, **facts, "files": files}))


def read_manifest(directory: Path) -> Manifest:
    """Parse the manifest of ``directory`` without looking at the files.

    Raises:
        RunError: there is none, it was changed, or a newer quantcfg wrote it.
    """
    path = directory / NAME
    try:
        text = read_bytes(path).decode()
        document = json.loads(text)
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise RunError(f"'{path}' has format version {version}; this quantcfg reads {FORMAT_VERSION}")
        if text != _sealed({name: value for name, value in document.items() if name != _SEAL}):
            raise ValueError("it was changed")
        return _parsed(document)
    except FileNotFoundError:
        raise RunError(f"'{directory}' has no {NAME}: what it holds was never finished") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"'{path}' is damaged: {error}") from error


def verify(directory: Path) -> Manifest:
    """Compare every file with the manifest of ``directory`` before anybody uses one.

    Raises:
        RunError: some file is missing, short or changed; the message names each.
    """
    manifest = read_manifest(directory)
    faults = [fault for name, record in manifest.files.items() if (fault := _fault(directory / name, record))]
    if faults:
        raise RunError(f"'{directory}' does not match its manifest: {', '.join(faults)}")
    return manifest


def record_file(path: Path) -> FileRecord:
    """Size and hash of one file."""
    try:
        return FileRecord(path.stat().st_size, hash_file(path))
    except OSError as error:
        raise RunError(f"cannot read '{path}': {error.strerror or error}") from error


def record_of(data: bytes) -> FileRecord:
    """Size and hash of what a file has to hold."""
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def hash_file(path: Path) -> str:
    """SHA-256 of the content of ``path``, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sealed(document: Mapping[str, Any]) -> str:
    """The document as text, with the SHA-256 of what the text is without it."""
    digest = hashlib.sha256(to_json(document).encode()).hexdigest()
    return to_json({**document, _SEAL: digest})


def _parsed(document: dict[str, Any]) -> Manifest:
    files = {name: FileRecord(entry["size"], entry["sha256"]) for name, entry in document["files"].items()}
    own = ("format_version", "files", _SEAL)
    return Manifest(files, {name: value for name, value in document.items() if name not in own})


def _fault(path: Path, record: FileRecord) -> str:
    if path.is_symlink() or not path.is_file():
        return f"'{path.name}' is missing"
    found = record_file(path)
    if found.size != record.size:
        return f"'{path.name}' has {found.size} bytes instead of {record.size}"
    return "" if found == record else f"'{path.name}' has other content"
