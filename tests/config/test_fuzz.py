# ruff: noqa: E501  the pieces are data
"""Fuzzed files: whatever the bytes are, there is a config or an error with a place, and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from quantcfg.cli.main import main
from quantcfg.config.load import load_config
from quantcfg.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SEEDS = sorted((ROOT / "configs").iterdir())
NUM_FILES = int(os.environ.get("QUANTCFG_FUZZ", "4000"))
PARTS = 8
PIECES = (
    b"'", b'"', b"{", b"}", b"[", b"]", b":", b": ", b",", b"&a ", b"*a", b"<<: *a", b"!!int ", b"!x", b"---\n",
    b"\t", b"\n", b"\r", b"  ", b"- ", b"? ", b"|\n", b">\n", b"%", b"@", b"#", b"~", b"null", b"true", b"on",
    b"012", b"1e999", b".nan", b"-", b"\x00", b"\x1b", b"\xff", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"=", b"re:(",
    b"{1..99999999}", b"**", b"x-", b"version", b"qconfig", b"preset: inherit", b"extends: .", b"9" * 400,
)  # fmt: skip


def check(data, name, folder):
    """Validate some bytes through the program; it says where what is wrong, and never more than that."""
    path = folder / name
    path.write_bytes(data)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["validate", str(path)])
    shown = out.getvalue() + err.getvalue()
    assert code in (0, 1, 2), shown
    assert code != 1 or re.search(rf"^ *--> {re.escape(str(path))}:\d+:\d+$", shown, re.MULTILINE), shown
    assert "Traceback" not in shown
    assert not any(ord(char) < 32 and char != "\n" for char in shown)
    return code


def machine_formats(path):
    """The same findings for machines."""
    with contextlib.suppress(ConfigError):
        load_config(path)
        return
    for fmt in ("json", "github", "sarif"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["validate", str(path), "--format", fmt]) == 1
        assert not any(ord(char) < 32 and char != "\n" for char in out.getvalue())


def mutated(data, rng):
    """A few random edits of a good file."""
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        span = rng.choice((0, 0, 1, 2, 8, 60))
        other = rng.randint(0, len(data))
        piece = rng.choice((rng.choice(PIECES), data[other : other + rng.randint(0, 40)], rng.randbytes(2)))
        data = data[:at] + piece + data[at + span :]
    return data


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_files_give_a_config_or_a_place(part, tmp_path):
    rng = random.Random(part)
    codes = Counter()
    for number in range(NUM_FILES // PARTS):
        seed = rng.choice(SEEDS)
        codes[check(mutated(seed.read_bytes(), rng), f"c{seed.suffix}", tmp_path)] += 1
        if number % 50 == 0:
            machine_formats(tmp_path / f"c{seed.suffix}")
    assert codes[1] > NUM_FILES // PARTS // 2
    assert codes[0]


def test_mutated_files_in_processes_of_their_own(tmp_path):
    rng = random.Random("processes")
    for number in range(20):
        seed = rng.choice(SEEDS)
        path = tmp_path / f"{number}{seed.suffix}"
        path.write_bytes(mutated(seed.read_bytes(), rng))
        done = subprocess.run(
            [sys.executable, "-m", "quantcfg", "validate", str(path)],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode in (0, 1, 2), done.stderr
        assert done.returncode != 1 or f"--> {path}:" in done.stderr
        assert "Traceback" not in done.stderr


KEYS = st.one_of(
    st.sampled_from([
        "version", "extends", "qconfigs", "qconfig", "global", "module_type", "module_name", "templates", "calib",
        "qat", "preset", "use", "optional", "expect", "activation_observer", "weight_qkwargs", "optimizer", "name",
        "scheduler", "guards", "metric_drop", "x-a", "dtype", "batches", "activation_fake_quant", "weight_fake_quant",
        "activation_qkwargs", "percentile", "quant_min", "quant_max", "ch_axis", "qscheme", "bins",
    ]),
    st.text(max_size=8),
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["w8a8", "w4a4_lsq", "inherit", "mse", "kl", "percentile", "qint16", "SGD", ">= 0.5", "a", "b",
                     "per_channel_affine", "lsq", "pact", "fixed_scale", "c.yaml", "w8a8.yaml"]),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=25,
)


@settings(max_examples=max(NUM_FILES // 40, 100), suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree_gives_a_config_or_a_place(tree):
    import yaml

    text = yaml.safe_dump({"version": 1, **tree}, allow_unicode=True)
    with tempfile.TemporaryDirectory() as folder:
        check(text.encode(), "c.yaml", Path(folder))


@settings(max_examples=max(NUM_FILES // 40, 100), suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.sampled_from(["c.yaml", "c.toml"]))
def test_any_bytes_give_a_config_or_a_place(data, name):
    with tempfile.TemporaryDirectory() as folder:
        check(data, name, Path(folder))


@settings(max_examples=max(NUM_FILES // 40, 100), suppress_health_check=list(HealthCheck))
@given(st.text(max_size=60))
def test_any_override_gives_a_config_or_a_place(override):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text("version: 1\nqconfig: {global: w8a8, module_name: {a.b: w4a4}}\n")
        try:
            load_config(path, overrides=[override])
        except ConfigError as error:
            assert all(item.place is not None for item in error.diagnostics)
