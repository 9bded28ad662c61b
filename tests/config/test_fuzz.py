# ruff: noqa: E501  the pieces are data
"""Fuzzed files: whatever the bytes are, there is a config or an error with a place, and nothing else."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from quantcfg.config.load import load_config
from quantcfg.errors import ConfigError
from quantcfg.render.diagnostics import format_diagnostics, render_report

ROOT = Path(__file__).resolve().parents[2]
SEEDS = sorted((ROOT / "configs").iterdir())
NUM_FILES = int(os.environ.get("QUANTCFG_FUZZ", "2000"))
PIECES = (
    b"'", b'"', b"{", b"}", b"[", b"]", b":", b": ", b",", b"&a ", b"*a", b"<<: *a", b"!!int ", b"!x", b"---\n",
    b"\t", b"\n", b"\r", b"  ", b"- ", b"? ", b"|\n", b">\n", b"%", b"@", b"#", b"~", b"null", b"true", b"on",
    b"012", b"1e999", b".nan", b"-", b"\x00", b"\x1b", b"\xff", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"=", b"re:(",
    b"{1..99999999}", b"**", b"x-", b"version", b"qconfig", b"preset: inherit", b"extends: .", b"9" * 400,
)  # fmt: skip


def check(data, name, folder):
    """Load some bytes; an error has a place and can be shown in every format."""
    path = folder / name
    path.write_bytes(data)
    start = time.process_time()
    try:
        load_config(path)
    except ConfigError as error:
        assert error.diagnostics
        assert all(item.place is not None and item.place.line >= 1 for item in error.diagnostics)
        shown = format_diagnostics(error.diagnostics)
        assert not any(ord(char) < 32 and char != "\n" for char in shown)
        for fmt in ("json", "github", "sarif"):
            render_report(error.diagnostics, fmt)
    assert time.process_time() - start < 2.0


def mutated(data, rng):
    """A few random edits of a good file."""
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        span = rng.choice((0, 0, 1, 2, 8, 60))
        other = rng.randint(0, len(data))
        piece = rng.choice((rng.choice(PIECES), data[other : other + rng.randint(0, 40)], rng.randbytes(2)))
        data = data[:at] + piece + data[at + span :]
    return data


@pytest.mark.parametrize("part", range(4))
def test_mutated_files_give_a_config_or_a_place(part, tmp_path):
    rng = random.Random(part)
    for _ in range(NUM_FILES // 4):
        seed = rng.choice(SEEDS)
        check(mutated(seed.read_bytes(), rng), f"c{seed.suffix}", tmp_path)


@pytest.mark.slow
def test_ten_thousand_mutated_files_give_a_config_or_a_place(tmp_path):
    rng = random.Random("slow")
    for _ in range(10_000):
        seed = rng.choice(SEEDS)
        check(mutated(seed.read_bytes(), rng), f"c{seed.suffix}", tmp_path)


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


@settings(max_examples=max(NUM_FILES // 8, 100), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree_gives_a_config_or_a_place(tree):
    import yaml

    text = yaml.safe_dump({"version": 1, **tree}, allow_unicode=True)
    with tempfile.TemporaryDirectory() as folder:
        check(text.encode(), "c.yaml", Path(folder))


@settings(max_examples=max(NUM_FILES // 8, 100), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.sampled_from(["c.yaml", "c.toml"]))
def test_any_bytes_give_a_config_or_a_place(data, name):
    with tempfile.TemporaryDirectory() as folder:
        check(data, name, Path(folder))


@settings(max_examples=max(NUM_FILES // 8, 100), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=60))
def test_any_override_gives_a_config_or_a_place(override):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text("version: 1\nqconfig: {global: w8a8, module_name: {a.b: w4a4}}\n")
        try:
            load_config(path, overrides=[override])
        except ConfigError as error:
            assert all(item.place is not None for item in error.diagnostics)
