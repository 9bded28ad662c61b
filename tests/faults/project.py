"""The small project of the command line's tests, for other processes to be disturbed in.

It also saves within an epoch, and its forward draws from Python's generator, whose state nothing but a
checkpoint holds: torch's is seeded anew for each batch.
"""

from tests.cli.conftest import CONFIG, MODEL


def write_project(folder):
    """Write its ``model.py`` and ``config.yaml`` to a folder."""
    noisy = "x.mean((2, 3)) + (0.5 + 0.1 * random.random() * self.training)"
    model = MODEL.replace("import torch\n", "import random\n\nimport torch\n", 1)
    (folder / "model.py").write_text(model.replace("x.mean((2, 3)) + 0.5", noisy))
    (folder / "config.yaml").write_text(CONFIG.replace("  epochs: 3\n", "  epochs: 3\n  eval_every: 4\n"))
