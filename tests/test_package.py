"""The package as users get it: a wheel, installed, with its console script."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import quantcfg

ROOT = Path(__file__).parent.parent
BIN = "Scripts" if os.name == "nt" else "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the tool that pip would call, from the files that git has and nothing else."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel alone; its dependencies are those of this environment."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(home), *install], check=True)
    packages = next(home.glob("lib/**/site-packages"))
    (packages / "dependencies.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    return home / BIN


def output_of(command: list[str | Path], folder: Path) -> tuple[int, str, str]:
    without_ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=without_ours, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "quantcfg").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert "quantcfg/py.typed" in names
    assert f"quantcfg-{quantcfg.__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"quantcfg"}


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["presets", "w8a8"], ["validate", "missing.yaml"], ["no-such-command"]],
    ids=" ".join,
)
def test_script_and_module_are_the_same_command(
    installed: Path, arguments: list[str], tmp_path: Path
) -> None:
    script = output_of([installed / "quantcfg", *arguments], tmp_path)
    module = output_of([installed / "python", "-m", "quantcfg", *arguments], tmp_path)
    assert script == module
    assert script[0] == (0 if arguments[0].startswith("--") or arguments[0] == "presets" else 2)


def test_the_installed_package_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import quantcfg; print(quantcfg.__file__, quantcfg.__version__)"
    _, out, _ = output_of([installed / "python", "-c", code], tmp_path)
    file, version = out.split()
    assert Path(file).is_relative_to(installed.parent)
    assert version == quantcfg.__version__
