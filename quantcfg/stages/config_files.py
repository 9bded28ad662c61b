"""The config as a run directory keeps it: as typed, what ``--set`` did, and resolved."""

from __future__ import annotations

from pathlib import Path

import yaml

from quantcfg.config.load import Config


def config_files(config: Config) -> dict[str, str]:
    """Texts by file name: the files of the command line and what they extend, the overrides, the outcome."""
    typed = {_name(n, path): config.sources[str(path)] for n, path in enumerate(config.files)}
    overrides = yaml.safe_dump(list(config.overrides), sort_keys=False, allow_unicode=True)
    return typed | {"overrides.yaml": overrides, "resolved.yaml": resolved_yaml(config)}


def _name(index: int, path: Path) -> str:
    return f"input{f'-{index + 1}' if index else ''}{path.suffix}"


def resolved_yaml(config: Config) -> str:
    """The config that counts, in one file without ``extends`` and overrides; it loads to the same rules."""
    return yaml.safe_dump(config.flattened(), sort_keys=False, allow_unicode=True, width=100)
