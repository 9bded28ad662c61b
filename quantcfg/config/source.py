"""Reads config files: their bytes, their encoding, and the one budget that every format keeps."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from pathlib import Path

from quantcfg.config.collect import Findings
from quantcfg.config.nodes import Node
from quantcfg.config.suggest import nearest
from quantcfg.errors import Place, UsageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 50_000
MAX_ALIASES = 100
YAML_SUFFIXES = (".yaml", ".yml")
SUFFIXES = (*YAML_SUFFIXES, ".toml")
# YAML and TOML agree on refusing these; the last ones would be line breaks to some readers and not to others.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")

# Control characters, bidirectional controls, invisible joiners and marks, and lone surrogates.
STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
    "|[\U000e0000-\U000e007f]"
)
"""What a name may hold that is not shown as it is, as it could steer a terminal or hide."""


class Stop(Exception):  # noqa: N818  a signal inside the config stack, never seen outside of it
    """The file cannot be read any further; why has been reported."""


def read_bytes(path: Path) -> bytes:
    """The bytes of a config file, at most one more than the budget.

    Raises:
        UsageError: there is no such file, it is not a regular file, it cannot be read, or its name does not
            end in ``.yaml``, ``.yml`` or ``.toml``.
    """
    return read_file(path, SUFFIXES, "a config")


def read_file(path: Path, suffixes: Sequence[str], what: str) -> bytes:
    """The bytes of a text file of a known kind, at most one more than the budget.

    Args:
        path: where it is.
        suffixes: what its name may end in.
        what: how messages call it, such as ``"a config"``.

    Raises:
        UsageError: as `read_bytes` does.
    """
    if path.suffix not in suffixes:
        kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UsageError(
            f"{path}: {what} is a {kinds} file", hint=_meant(path) or _similar_file(path, suffixes)
        )
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path}: not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file", hint=_similar_file(path, suffixes)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path}: cannot be read: {reason}") from None


def _meant(path: Path) -> str:
    """What to write where the path of something else stands; empty when it is nothing that is known."""
    resolved = path / "config" / "resolved.yaml"
    if resolved.is_file():
        return f"the config of that run is {resolved}"
    return "a model file stands before the config" if path.suffix == ".py" else ""


def _similar_file(path: Path, suffixes: Sequence[str]) -> str:
    try:
        found = {item.stem: item for item in sorted(path.parent.iterdir()) if item.suffix in suffixes}
    except OSError:
        return ""
    near = nearest(path.stem, found)
    return f"did you mean {found[near]}?" if near else ""


def parse(name: str, data: bytes, findings: Findings) -> Node:
    """Turn the bytes of a file into a tree; ``name`` is how messages call the file.

    Raises:
        Stop: the text is beyond repair, which ``findings`` now says.
    """
    text = _decode(name, data, findings)
    if name.endswith(".toml"):
        from quantcfg.config.toml_source import parse_toml

        return parse_toml(name, text, findings)
    from quantcfg.config.yaml_source import parse_yaml

    return parse_yaml(name, text, findings)


def _decode(name: str, data: bytes, findings: Findings) -> str:
    if len(data) > MAX_BYTES:
        findings.error("QC004", f"the file is larger than {MAX_BYTES >> 20} MiB", Place(name, 1))
        raise Stop
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        _report_encoding(name, data, error, findings)
        raise Stop from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    findings.sources[name] = text
    control = CONTROL.search(text)
    if control:
        findings.error(
            "QC002",
            f"the character U+{ord(control[0]):04X} is not allowed in a config",
            place_at(name, text, control.start()),
            label="here",
            help="remove it; inside a double-quoted text an escape can stand for it",
        )
        raise Stop
    return text


def _report_encoding(name: str, data: bytes, error: UnicodeDecodeError, findings: Findings) -> None:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        findings.error("QC002", "the file is in UTF-16", Place(name, 1), help="save it in UTF-8")
        return
    before = data[: error.start].decode("utf-8", "replace")
    findings.sources[name] = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    findings.error(
        "QC002",
        f"the byte 0x{data[error.start]:02x} is not UTF-8",
        place_at(name, before, len(before)),
        label="here",
        help="save the file in UTF-8",
    )


def place_at(name: str, text: str, offset: int, length: int = 1) -> Place:
    """The place of a character offset."""
    line_start = text.rfind("\n", 0, offset) + 1
    return Place(name, text.count("\n", 0, offset) + 1, offset - line_start + 1, max(length, 1))
