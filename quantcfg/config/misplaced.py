"""Keys that stand in the wrong section: known to the schema, but not where they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from quantcfg.config.compiled import CoreSchema, opened
from quantcfg.config.nodes import Loc, key_path

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Misplaced:
    """Unknown keys of one section that belong together somewhere else."""

    home: Path
    keys: tuple[str, ...]

    @property
    def label(self) -> str:
        """Where they belong."""
        return f"belongs in `{key_path(self.home)}`" if self.home else "belongs at the top level"

    @property
    def help(self) -> str:
        """What to do."""
        if not self.home:
            return "move it to the top level, without indentation"
        return f"move it into `{key_path(self.home)}`, indented beneath it"


def misplaced(unknown: Iterable[tuple[Loc, Path]]) -> Mapping[Loc, Misplaced]:
    """The unknown keys, by location, that are keys elsewhere.

    Args:
        unknown: the location of each key as pydantic gives it, and as the file has it.
    """
    by_section: dict[Path, list[tuple[Loc, str]]] = {}
    for loc, path in unknown:
        if homes(path[-1]) and not _is_qconfig(path[:-1]):
            by_section.setdefault(path[:-1], []).append((loc, path[-1]))
    found: dict[Loc, Misplaced] = {}
    for section, keys in by_section.items():
        names = tuple(name for _, name in keys)
        together = _nearest_home(section, set.intersection(*(set(homes(name)) for name in names)))
        for loc, name in keys:
            home = together if together is not None else _nearest_home(section, set(homes(name)))
            if home is not None:
                found[loc] = Misplaced(home, names if together is not None else (name,))
    return found


def _is_qconfig(section: Path) -> bool:
    """Whether a section is inside of a qconfig, whose keys have nothing to do with those of others."""
    return len(section) > 1 and section[0] in ("qconfig", "qconfigs")


def _nearest_home(section: Path, candidates: set[Path]) -> Path | None:
    """The section with the shortest path; of those, one that shares most of it."""
    others = sorted(candidates - {section})
    return min(others, key=lambda home: (len(home), -_shared(home, section)), default=None)


def _shared(a: Path, b: Path) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def homes(key: str) -> tuple[Path, ...]:
    """Every section that has this key, by its path."""
    return _homes().get(key, ())


@cache
def _homes() -> Mapping[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for path, key in sorted(set(_keys(opened(), ()))):
        found[key] = (*found.get(key, ()), path)
    return found


def _keys(node: CoreSchema, path: Path) -> Iterator[tuple[Path, str]]:
    """Each key of each section, those behind names of the user's left out."""
    if node["type"] == "tagged-union":
        for choice in node["choices"].values():
            yield from _keys(opened(choice), path)
    elif node["type"] == "model-fields":
        for key, field in node["fields"].items():
            yield path, key
            yield from _keys(opened(field["schema"]), (*path, key))
