"""The config as a run directory keeps it: as typed, what ``--set`` did, and resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from quantcfg.config.catalogue import value_text
from quantcfg.config.load import Config
from quantcfg.config.nodes import Loc, key_path, walk
from quantcfg.config.resolved import resolved_text
from quantcfg.config.suggest import change
from quantcfg.errors import RunError
from quantcfg.runs.reader import read_bytes


def config_files(config: Config) -> dict[str, str]:
    """Texts by file name: the files of the command line and what they extend, the overrides, the outcome."""
    typed = {_name(n, path): config.sources[str(path)] for n, path in enumerate(config.files)}
    overrides = yaml.safe_dump(list(config.overrides), sort_keys=False, allow_unicode=True)
    return typed | {"overrides.yaml": overrides, "resolved.yaml": resolved_yaml(config)}


def _name(index: int, path: Path) -> str:
    return f"input{f'-{index + 1}' if index else ''}{path.suffix}"


def resolved_yaml(config: Config) -> str:
    """The config that counts, in one file without ``extends`` and overrides; it loads to the same rules."""
    return resolved_text(config.tree)


def config_identity(config: Config) -> str:
    """What two configs share that mean the same in the same words, wherever those words stand."""
    return resolved_text(config.tree, origins=False)


def changed_fields(resolved: Path, config: Config) -> list[str]:
    """What ``config`` says otherwise than a ``resolved.yaml``: field by field, and where it stands now.

    Raises:
        RunError: that file is damaged.
    """
    try:
        begun = yaml.safe_load(read_bytes(resolved).decode())
        was = dict(_fields(begun))
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise RunError(f"'{resolved}' is damaged: {error}") from error
    now = dict(_fields(config.flattened()))
    names = [loc for loc in dict.fromkeys((*now, *was)) if was.get(loc) != now.get(loc)]
    return [change(key_path(loc), was.get(loc), now.get(loc)) + _where(config, loc) for loc in names]


def _fields(values: Mapping[str, Any], above: Loc = ()) -> Iterator[tuple[Loc, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _fields(value, (*above, key))
        else:
            yield (*above, key), value_text(value)


def _where(config: Config, loc: Loc) -> str:
    """`` (config.yaml:3)``, or `` (--set)``; empty for what is not there any more."""
    steps = list(walk(config.tree, loc))
    if len(steps) < len(loc):
        return ""
    place = steps[-1][1]
    return f" ({place.file})" if place.file.startswith("--") else f" ({place.file}:{place.line})"
