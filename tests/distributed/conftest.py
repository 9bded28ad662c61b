import json

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import projects
from tests.run_files import contents


class Folder:
    """A directory with a model file and a config, and the runs in it."""

    def __init__(self, path):
        self.path = path

    def contents(self, run):
        """Every file that a repeated run writes alike."""
        return contents(self.path / run)

    def result(self, run):
        return json.loads((self.path / run / "result.json").read_text())

    def model(self, run):
        """The tensors that the run keeps."""
        return load_file(self.path / run / self.result(run)["checkpoint"] / "model.safetensors")

    def assert_equal(self, run, other):
        """Both hold the same files, byte for byte."""
        a, b = self.contents(run), self.contents(other)
        assert a.keys() == b.keys()
        assert [name for name in a if a[name] != b[name]] == []

    def assert_close(self, run, other, **tolerance):
        """The models of both are equal up to the order of sums."""
        a, b = self.model(run), self.model(other)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], **tolerance, msg=lambda text: f"{run}: {text}")


@pytest.fixture
def folder(tmp_path):
    projects.write(tmp_path, projects.small())
    return Folder(tmp_path)
