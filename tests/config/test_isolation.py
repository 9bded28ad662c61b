"""Checking a config runs no code but quantcfg's, touches no torch, and opens nothing but the config."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

AUDITED = """
import sys
import quantcfg.config.load as stack, quantcfg.config.toml_source
from quantcfg.errors import ConfigError

seen = []
CODE = {"exec", "compile", "subprocess.Popen", "os.system", "os.exec", "socket.connect", "import"}


def watch(event, args):
    if event == "open" and set(str(args[1])) & set("wax+"):
        seen.append((event, str(args[0])))
    elif event in CODE:
        seen.append((event, str(args[0])[:80]))


stack.load_config(sys.argv[-1])  # pydantic loads its own parts at its first use, whatever the file says
sys.addaudithook(watch)
for path in sys.argv[1:]:
    try:
        stack.load_config(path)
    except ConfigError:
        seen.append("refused")
print(seen)
"""


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    ).stdout


def test_an_audit_hook_sees_nothing_of_others(tmp_path):
    for name in ("canary", "torch", "yaml", "sitecustomize", "os"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file beside the config was imported')")
    hostile = tmp_path / "hostile.yaml"
    hostile.write_text(
        "version: 1\nqconfig:\n  module_type:\n    os.system: w8a8\n    canary.Module: w8a8\n"
        "    torch.hub.load: w8a8\n  module_name:\n    __import__('canary'): w8a8\n    \"{{canary}}\": w8a8\n"
        "x-a: ${oc.env:HOME}\n"
    )
    configs = [str(path) for path in sorted((ROOT / "configs").iterdir())]
    script = tmp_path / "script" / "audited.py"
    script.parent.mkdir()
    script.write_text(AUDITED)
    assert run("-P", str(script), str(hostile), *configs, cwd=tmp_path) == "['refused']\n"


@pytest.mark.parametrize("module", ["load", "codes", "catalogue", "json_schema", "findings"])
def test_the_config_stack_never_imports_torch(module, tmp_path):
    code = f"import sys, quantcfg.config.{module}; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert run("-c", code, cwd=tmp_path) == "[]\n"
