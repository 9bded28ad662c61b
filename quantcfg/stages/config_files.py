"""The config as a run directory keeps it: as typed, what ``--set`` did, and resolved."""

from __future__ import annotations

from pathlib import Path

import yaml

from quantcfg.config.load import Config
from quantcfg.config.resolved import resolved_text


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


def is_resolved(text: str, config: Config) -> bool:
    """Whether a ``resolved.yaml`` holds this config."""
    return bool(yaml.safe_load(text) == config.flattened())
