"""Model files that misbehave: what is appended to the small project's, and what has to come of it.

``ENDS`` maps a kind to code and to what its one line of error says, at the line with ``# here``. ``WORKS`` maps
a kind to code with which qat ends well and prints nothing but its result.

``python misbehaviour.py FOLDER [KIND ...]`` runs them, each in a fork of this process, and prints what came of them.
"""
# ruff: noqa: E501  code within code

import json
import os
import signal
import sys
import time
from pathlib import Path

ENDS = {
    "sys.exit while imported": (
        "import sys; sys.exit(0)  # here",
        "importing the model file called sys.exit(0)",
    ),
    "sys.exit in a data function": (
        "def calib_data():\n    import sys\n    sys.exit('bye')  # here\n",
        "calib_data() called sys.exit(bye)",
    ),
    "os._exit while imported": (
        "import os\nos._exit(0)  # here",
        "importing the model file called os._exit(0)",
    ),
    "os._exit in the forward": (
        "import os\n\n\nclass Net(Net):\n    def forward(self, x):\n        os._exit(0)  # here\n",
        "the model, in batch 0 of calib_data(), called os._exit(0)",
    ),
    "os._exit in a thread": (
        "import os, threading\n\n\ndef leave():\n    os._exit(0)  # here\n\n\n"
        "def build_model():\n    thread = threading.Thread(target=leave)\n    thread.start()\n    thread.join()\n",
        "a thread called os._exit(0)",
    ),
    "os._exit in a worker": (
        "import os\n\n\nclass Deadly(TensorDataset):\n    def __getitem__(self, i):\n        os._exit(0)\n\n\n"
        "def calib_data():  # here\n    return DataLoader(Deadly(torch.rand(8, 1, 4, 4)), batch_size=2, num_workers=1)\n",
        "a worker process of a DataLoader died",
    ),
    "sys.exit in a method that torch calls": (
        "import sys\n\n\nclass Net(Net):\n    def state_dict(self, *given, **named):\n        sys.exit(0)  # here\n",
        "code of the model file called sys.exit(0)",
    ),
    "a module that cannot be copied": (
        "class Net(Net):\n    def __deepcopy__(self, memo):\n        raise ValueError('only one')  # here\n",
        "the model cannot be copied: only one",
    ),
    "a method of a module that raises": (
        "class Net(Net):\n    def named_parameters(self, *given, **named):\n        raise KeyError('none')  # here\n",
        "code of the model file raised KeyError: 'none'",
    ),
    "GeneratorExit": (
        "def build_model():\n    raise GeneratorExit  # here\n",
        "build_model() raised GeneratorExit",
    ),
    "an exception of its own root": (
        "class Strange(BaseException): pass\n\n\ndef eval_data():\n    yield None; raise Strange('x')\n\n\n"
        "def build_model():\n    raise Strange('odd')  # here\n",
        "build_model() raised Strange: odd",
    ),
    "an exception that cannot be printed": (
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError('no')\n\n\n"
        "def build_model():\n    raise Mute  # here\n",
        "build_model() raised Mute",
    ),
    "an exception that exits when it is printed": (
        "class Mute(Exception):\n    def __str__(self):\n        raise SystemExit(0)\n\n\n"
        "def build_model():\n    raise Mute  # here\n",
        "build_model() raised Mute",
    ),
    "an exception that says escape codes": (
        "def build_model():\n    raise ValueError('\\x1b[31mred\\x07 \\u202e')  # here\n",
        r"build_model() raised ValueError: \x1b[31mred\x07 \u202e",
    ),
    "an exception that says a megabyte": (
        "def build_model():\n    raise ValueError('y' * 2**20)  # here\n",
        "build_model() raised ValueError: yyy",
    ),
    "endless recursion": (
        "class Net(Net):\n    def forward(self, x):\n        return self.forward(x)  # here\n",
        "the model, in batch 0 of calib_data(), raised RecursionError",
    ),
    "an empty loader": ("def calib_data():  # here\n    return []\n", "calib_data() gave no batch"),
    "one iterator for ever": (
        "def numbers():\n    yield from DataLoader(dataset(1), batch_size=8)\n\n\nONCE = numbers()\n\n\n"
        "def calib_data():  # here\n    return ONCE\n",
        "calib_data() returned an iterator that it had returned before",
    ),
    "batches that are none": (
        "def calib_data():  # here\n    yield 'three'\n",
        "batch 0 of calib_data() is of type str and holds no tensor",
    ),
    "data that is no data": (
        "def calib_data():  # here\n    return 3\n",
        "calib_data() returned a value of type int",
    ),
    "a loader that raises in the middle": (
        "def calib_data():\n    for n in range(9):\n        yield torch.rand(2, 1, 4, 4)\n"
        "        assert n < 2, 'enough'  # here\n",
        "calib_data(), in batch 3, raised AssertionError: enough",
    ),
    "a length that raises": (
        "class Long(list):\n    def __len__(self):\n        raise OSError('how long?')  # here\n\n\n"
        "def calib_data():\n    return Long([torch.rand(2, 1, 4, 4)] * 5)\n",
        "the length of calib_data() raised OSError: how long?",
    ),
    "a killed worker": (
        "import os, signal\n\n\nclass Deadly(TensorDataset):\n    def __getitem__(self, i):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n\n\n"
        "def calib_data():  # here\n    return DataLoader(Deadly(torch.rand(8, 1, 4, 4)), batch_size=2, num_workers=1)\n",
        "a worker process of a DataLoader died",
    ),
    "a worker that raises": (
        "class Bad(TensorDataset):\n    def __getitem__(self, i):\n        raise KeyError('lost')  # here\n\n\n"
        "def calib_data():\n    return DataLoader(Bad(torch.rand(8, 1, 4, 4)), batch_size=2, num_workers=1)\n",
        "calib_data(), in batch 0, raised KeyError: 'lost'",
    ),
    "the k-th forward raises": (
        "class Net(Net):\n    count = 0\n    def forward(self, x):\n        Net.count += 1\n"
        "        if Net.count == 7:\n            raise IndexError('seventh')  # here\n        return super().forward(x)\n",
        "raised IndexError: seventh",
    ),
    "a model that is a class": ("build_model = lambda: Net  # here", "build_model() returned the class Net"),
    "all files closed": (
        "import os\nos.closerange(3, 256)\n",
        "code of the model file closed all open files, stdout among them",
    ),
    "a metric that no float holds": (
        "def evaluate(model, data):  # here\n    return {'accuracy': 10**400}\n",
        "evaluate() gave 'accuracy' as int, not as a number",
    ),
    "a batch that goes too deep": (
        "BATCH = torch.rand(2, 1, 4, 4)\nfor _ in range(5000):\n    BATCH = [BATCH]\n\n\n"
        "def calib_data():  # here\n    yield BATCH\n",
        "batch 0 of calib_data() raised RecursionError",
    ),
    "a batch without a shape": (
        "def calib_data():  # here\n"
        "    yield torch.nested.nested_tensor([torch.rand(1, 4, 4), torch.rand(1, 4, 3)])\n",
        "the content of batch 0 of calib_data() raised RuntimeError",
    ),
    "a metric that is none": (
        "def evaluate(model, data):  # here\n    return {'accuracy': 'high'}\n",
        "evaluate() gave 'accuracy' as str, not as a number",
    ),
    "a source that is not UTF-8": (
        "x = 'caf\udce9'  # here\n",
        "importing the model file raised SyntaxError",
    ),
    "a source that does not parse": ("def broken(:  # here\n", "importing the model file raised SyntaxError"),
    "a meta device for everything": (
        "torch.set_default_device('meta')\n\n\ndef build_model():  # here\n    return Net()\n",
        "what build_model() returned has no values: 'conv.weight' is on the meta device",
    ),
    "batches on the meta device": (
        "def calib_data():  # here\n    yield torch.rand(2, 1, 4, 4, device='meta')\n",
        "batch 0 of calib_data() holds a tensor on the meta device, which has no values",
    ),
    "torch itself replaced": (
        "def broken(*args, **kwargs):\n    raise TypeError('mine now')  # here\n\n\ntorch.relu = broken\n",
        "raised TypeError: mine now",
    ),
    "warnings as errors": (
        "import warnings\nwarnings.simplefilter('error')\n\n\nclass Net(Net):\n    def forward(self, x):\n"
        "        warnings.warn('careful')  # here\n        return super().forward(x)\n",
        "raised UserWarning: careful",
    ),
}
WORKS = {
    "prints": "print('import')\n\n\ndef forward(model, batch):\n    print('forward')\n    return model(batch[0])\n",
    "prints past Python": "import os\nos.system('echo shell')\nos.write(1, b'raw\\n')\n",
    "prints at exit": "import atexit\natexit.register(print, 'goodbye')\n",
    "prints a lot": "print('x' * 2**22)\n",
    "the current directory deleted": (
        "import os, tempfile\n\n\ndef build_model():\n    os.chdir(folder := tempfile.mkdtemp())\n"
        "    os.rmdir(folder)\n    return Net()\n"
    ),
    "its own path forgotten": "del __file__\n",
    "chdir": "import os\n\n\ndef build_model():\n    os.chdir('/')\n    return Net()\n",
    "a batch that cannot be built again": (
        "class Pair(tuple):\n    def __new__(cls, x, y):\n        return super().__new__(cls, (x, y))\n\n\n"
        "def calib_data():\n    yield Pair(torch.rand(2, 1, 4, 4), torch.zeros(2).long())\n"
    ),
    "an infinite loader": (
        "import itertools\n\n\ndef calib_data():\n    return itertools.cycle(DataLoader(dataset(1), batch_size=8))\n"
    ),
    "a generator": "def calib_data():\n    yield from DataLoader(dataset(1), batch_size=8)\n",
    "batches of one": "def train_data():\n    return DataLoader(dataset(2, 5), batch_size=1)\n",
    "a last batch of one": "def train_data():\n    return DataLoader(dataset(2, 9), batch_size=8)\n",
    "double as the default": (
        "torch.set_default_dtype(torch.float64)\n\n\ndef calib_data():\n"
        "    return [x.double() for x, _ in DataLoader(dataset(1), batch_size=8)]\n\n\n"
        "def double(seed):\n    return [(x.double(), y) for x, y in DataLoader(dataset(seed), batch_size=8)]\n\n\n"
        "def train_data():\n    return double(2)\n\n\ndef eval_data():\n    return double(3)\n"
    ),
    "gradients switched off": "torch.set_grad_enabled(False)\n",
    "gradients switched off by the data": (
        "def collate(batch):\n    torch.set_grad_enabled(False)\n"
        "    return torch.utils.data.default_collate(batch)\n\n\n"
        "def train_data():\n    return DataLoader(dataset(2), batch_size=8, collate_fn=collate)\n"
    ),
    "inference mode in the loss": (
        "import torch.nn.functional as F\n\n\ndef loss(outputs, batch):\n    torch.set_grad_enabled(True)\n"
        "    return F.cross_entropy(outputs, batch[1])\n"
    ),
    "deterministic algorithms": "torch.use_deterministic_algorithms(True)\n",
    "anomaly detection": "torch.autograd.set_detect_anomaly(True)\n",
    "other numbers of threads": "torch.set_num_threads(2)\n",
    "generators seeded everywhere": (
        "import random\n\n\ndef forward(model, batch):\n    torch.manual_seed(3); random.seed(4)\n"
        "    return model(batch[0])\n"
    ),
    "names that steer the terminal": (
        "class Net(Net):\n    def __init__(self):\n        super().__init__()\n"
        "        self.add_module('re\\x1b[31md \\n[bold]', nn.Linear(3, 3))\n"
        "    def forward(self, x):\n        return self._modules['re\\x1b[31md \\n[bold]'](super().forward(x))\n"
    ),
    "a thread left running": (
        "import threading, time\n\n\ndef forever():\n    while True:\n        time.sleep(1)\n\n\n"
        "threading.Thread(target=forever).start()\n"
    ),
    "a changed environment": (
        "import os\nos.environ.clear()\nos.environ['TMPDIR'] = '/nowhere'\nos.environ['COLUMNS'] = '3'\n"
    ),
    "signal handlers of its own": (
        "import signal\nfor number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
    ),
    "logging set up": (
        "import logging, sys\nlogging.basicConfig(stream=sys.stdout, level=0)\nlogging.getLogger('quantcfg').handlers.clear()\n"
    ),
    "logging switched off": "import logging\nlogging.disable(logging.CRITICAL)\n",
    "stdout closed": "import sys\nsys.stdout.close()\n",
    "stdout closed below": "import os\nos.close(1)\n",
    "stdout gone": "import sys\nsys.stdout = None\n",
    "warnings of its own": "import warnings\nwarnings.warn('mine')\nwarnings.filterwarnings('ignore')\n",
    "warnings as errors": "import warnings\nwarnings.simplefilter('error')\n",
    "a small recursion limit": "import sys\nsys.setrecursionlimit(400)\n",
    "garbage not collected": "import gc\ngc.disable()\n",
    "shared weights": (
        "class Net(Net):\n    def __init__(self):\n        super().__init__()\n        self.other = nn.Linear(4, 3)\n"
        "        self.other.weight = self.classifier.weight\n    def forward(self, x):\n"
        "        x = torch.relu(self.conv(x)).mean((2, 3))\n        return self.classifier(x) + self.other(x)\n"
    ),
    "a tuple as output": (
        "class Net(Net):\n    def forward(self, x):\n        return super().forward(x), None\n"
    ),
    "a dict as output": (
        "class Net(Net):\n    def forward(self, x):\n        return {'logits': super().forward(x)}\n"
    ),
    "itself deleted": "import os\nos.unlink(__file__)\n",
    "an audit hook": "import sys\nsys.addaudithook(lambda *event: None)\n",
    "a module of the standard name": "import sys, types\nsys.modules['helpers'] = types.ModuleType('helpers')\n",
}


LIMIT_S = 120


def line_of(text):
    """The line that the error has to name; 0 for any."""
    return next((number for number, line in enumerate(text.splitlines(), 1) if "# here" in line), 0)


def one(folder, stage, text):
    """Run a model file in a fork: exit code, stdout, stderr."""
    folder.mkdir()
    (folder / "model.py").write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder / "config.yaml").write_text(CONFIG.replace("epochs: 3", "epochs: 1"))
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644), number)
        sys.argv = ["quantcfg", stage, "model.py", "config.yaml", "-o", "run", "-q", "--format", "json"]
        program()
    return waited(child), (folder / "out").read_text(), (folder / "err").read_text()


def waited(child):
    """The exit code of a process that has time, but not for ever."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def report(folder, only):
    cases = [(kind, code, "calib") for kind, (code, _) in ENDS.items()]
    cases += [(kind, code, "qat") for kind, code in WORKS.items()]
    found = []
    for number, (kind, code, stage) in enumerate(cases):
        if only and kind not in only:
            continue
        text = f"{MODEL}\n\n{code}"
        found.append((kind, stage, line_of(text), *one(folder / str(number), stage, text)))
    return found


if __name__ == "__main__":
    import torch
    import torch._dynamo  # torch.optim would, at the first optimizer of every fork: more than a second each
    from conftest import CONFIG, MODEL

    import quantcfg.cli.run_commands
    import quantcfg.stages.calib
    import quantcfg.stages.qat  # noqa: F401  before the forks
    from quantcfg.cli.main import program

    torch.set_num_threads(1)
    result = report(Path(sys.argv[1]), sys.argv[2:])
    print(json.dumps(result))
