"""Hostile files of up to 1 MiB: an answer within a second and 300 MiB, never a traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1 << 20
V = "version: 1\n"
NAMES = f"{V}qconfig:\n  module_name:\n"
TOML = "version = 1\n"


def numbered(head, line, tail=""):
    """As many numbered lines as fit."""
    count = (SIZE - len(head) - len(tail)) // (len(line.format(99999)) + 1)
    return head + "".join(line.format(number) + "\n" for number in range(count)) + tail


def few(count, line):
    return "".join(f"    {line.format(number)}\n" for number in range(count))


def bomb(first, link):
    links = (link.format(n, ", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 12))
    return V + f"x-a: &a0 {first}\n" + "".join(links)


CASES = {
    "deep lists.yaml": V + "x-a: " + "[" * (SIZE - 50),
    "deep mappings.yaml": V + "x-a: " + "{a: " * (SIZE // 4 - 50),
    "aliases.yaml": bomb("[x, x, x]", "x-{0}: &a{0} [{1}]\n"),
    "merge keys.yaml": bomb("{k: v}", "x-{0}: &a{0} {{{{<<: [{1}]}}}}\n"),
    "huge number.yaml": V + "x-a: " + "9" * (SIZE - 50),
    "huge text.yaml": V + "x-a: '" + "a" * (SIZE - 50) + "'",
    "huge key.yaml": V + "a" * (SIZE - 50) + ": 1",
    "many errors.yaml": numbered(NAMES, "    k{}: w8a9"),
    "unknown keys.yaml": numbered(V, "k{}: 1"),
    "long line.yaml": NAMES.rstrip("\n") + " {" + ", ".join(f"k{n}: w8a9" for n in range(60_000)) + "}",
    "braces.yaml": numbered(NAMES, "    'k{}" + "{{a,b}}" * 150 + "': w8a8"),
    "few braces.yaml": numbered(NAMES, "    'k{}" + "{{a,b}}" * 16 + "': w8a8"),
    "wide range.yaml": NAMES + "    'a{0..999999999}': w8a8\n",
    "ranges.yaml": numbered(NAMES, "    'k{}{{0..9999}}': w8a8"),
    "many ranges.yaml": numbered(NAMES, "    'k{}" + "{{0..9999}}" * 16 + "': w8a8"),
    "slow regex.yaml": NAMES + "    're:(a+)+$': w8a8\n    're:(a|a)*b': w8a8\n",
    "regexes.yaml": numbered(NAMES, "    're:k{}.*[a-z]': w8a8"),
    "patterns within the budget.yaml": NAMES + few(2_999, "'k{}" + "{{a,b}}" * 16 + "': w8a8"),
    "rules within the budget.yaml": NAMES + few(14_999, "k{}: w8a8"),
    "written out within the budget.yaml": NAMES + few(2_499, "k{}: {{weight_qkwargs: {{dtype: qint4}}}}"),
    "written out.yaml": NAMES + few(20_000, "k{}: {{}}"),
    "rules.toml": TOML + "[qconfig.module_name]\n" + few(14_999, "k{} = 'w8a8'"),
    "anchors.yaml": V + "x-a: [" + ", ".join(f"&a{n} x" for n in range(80_000)) + "]",
    "documents.yaml": V + "---\n" * (SIZE // 4 - 10),
    "deep.toml": f"{TOML}x-a = " + "[" * (SIZE - 50),
    "dotted key.toml": TOML + "a." * (SIZE // 2 - 50) + "b = 1",
    "quoted dotted key.toml": TOML + '"a".' * (SIZE // 4 - 50) + "b = 1",
    "dotted header.toml": TOML + "[" + "a." * (SIZE // 2 - 50) + "b]",
    "tables.toml": TOML + "[[x-a]]\n" * (SIZE // 8 - 10),
    "errors.toml": numbered(f"{TOML}[qconfig.module_name]\n", "k{} = 'w8a9'"),
    "number.toml": f"{TOML}x-a = " + "9" * (SIZE - 50),
    "open text.toml": f"{TOML}x-a = '''" + "a\n" * (SIZE // 2 - 50),
}  # fmt: skip


SOON_S = 20  # it is under a second, and some of them on a busy machine; what must not be is minutes


def limited():
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))


def measured(path, *more):
    """Exit code, stderr, seconds of the processor and MiB of one process."""
    code = (
        "import re, time\nfrom quantcfg.cli.main import main\n"
        "before = time.process_time()\ncode = main()\nspent = time.process_time() - before\n"
        "status = open('/proc/self/status').read()\n"
        "print(code, spent, int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "validate", str(path), *more],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        preexec_fn=limited,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    code, seconds, memory = done.stdout.split("\n")[-2].split()
    return int(code), done.stderr, float(seconds), float(memory)


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_are_answered_in_bounds(name, tmp_path):
    path = tmp_path / name
    path.write_text(CASES[name][:SIZE])
    code, error, seconds, memory = measured(path)
    print(f"{name}: exit code {code}, {seconds:.2f} s, {memory:.0f} MiB")
    assert code in (0, 1)
    assert "Traceback" not in error
    assert code == 0 or f"--> {path}:" in error
    assert memory < 300
    assert seconds < SOON_S


def test_hostile_overrides_are_answered_in_bounds(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"{V}qconfig: {{global: w8a8}}\n")
    for override in (
        "x-a=" + "[" * 50_000,
        "a." * 30_000 + "b=1",
        "qat.epochs=" + "9" * 90_000,
        "=" * 50_000,
    ):
        code, error, seconds, memory = measured(path, "--set", override)
        assert (code, "--> --set:1:" in error, "Traceback" in error) == (1, True, False), error[:300]
        assert memory < 300
        assert seconds < SOON_S
