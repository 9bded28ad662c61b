"""Training in several ranks gives what one process gives with the same batches, up to the order of sums."""

import json
import re

import pytest
import torch

from tests.distributed import projects
from tests.distributed.forking import Job, run_jobs

TIGHT = {"rtol": 1e-4, "atol": 1e-6}


def qat(folder, run, size, *more, environment=None, bug=""):
    arguments = ["qat", "model.py", "config.yaml", "-o", run, "-q", *more]
    return Job(str(folder.path), arguments, size, environment or {}, bug)


def rewrite(folder, more="", **settings):
    config = projects.small()
    config["qat"] |= settings
    projects.write(folder.path, config, more)


def test_ranks_train_as_one_process_does(folder):
    """Dropout, live batch norms, unused parameters, a ragged last batch and a last step with two batches."""
    alone, two, three = run_jobs(*(qat(folder, str(size), size) for size in (1, 2, 3)))
    for done in (alone, two, three):
        assert (set(done.codes), done.message) == ({0}, "")
    for size in ("2", "3"):
        folder.assert_close(size, "1", **TIGHT)
        assert folder.result(size)["num_steps"] == folder.result("1")["num_steps"] == 6
    losses = [[row.get("loss", 0) for row in rows(folder, run)] for run in "123"]
    for found in losses[1:]:
        assert found == pytest.approx(losses[0], rel=1e-5)
    assert not torch.equal(folder.model("1")["last.weight"], initial(folder)["last.weight"])


BROKEN = """
_train_data = train_data
def train_data():
    if RANK == 1:
        raise OSError("no such disk")
    yield from _train_data()
"""


def test_a_rank_that_cannot_read_what_the_others_can_is_named(folder):
    rewrite(folder, BROKEN)

    (done,) = run_jobs(qat(folder, "run", 2))

    assert done.codes == [5, 5]
    assert done.message.count("error:") == 1
    assert "rank 1: train_data(), in batch 0, raised OSError: no such disk\n" in done.message


def rows(folder, run):
    return [json.loads(line) for line in (folder.path / run / "metrics.jsonl").read_text().splitlines()]


def initial(folder):
    return folder.model("1/calib")


EVERYTHING = {
    "accumulate": 3,
    "optimizer": {"name": "AdamW", "lr": 0.01, "quantizer_lr": 0.001},
    "scheduler": {"name": "step", "step_size": 1},
    "schedule": {"quantize_activations_after": 1},
    "autocast": "bfloat16",
    "grad_clip": 1.0,
    "ema": 0.75,
    "distill": {"weight": 0.5, "temperature": 3.0},
    "eval_every": 1,
    "best": {"metric": "accuracy"},
}


@pytest.mark.slow
@pytest.mark.parametrize("qconfig", ["w8a8", "w8a8_lsq", "w8a8_pact"])
def test_all_of_it_together(folder, qconfig):
    rewrite(folder, **EVERYTHING)
    more = ("--set", f"qconfig.global={qconfig}")
    for done in run_jobs(*(qat(folder, str(size), size, *more) for size in (1, 2, 4))):
        assert set(done.codes) == {0}, done.message
    for size in ("2", "4"):
        folder.assert_close(size, "1", rtol=1e-2, atol=1e-3)  # AdamW divides small sums by small sums


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*projects.OBSERVERS])
def test_every_observer_is_kept_equal(folder, kind):
    kwargs = projects.OBSERVERS[kind] | {"dtype": "qint8"}
    whole = {"activation_observer": kind, "weight_observer": kind}
    whole |= {"activation_qkwargs": kwargs, "weight_qkwargs": kwargs}
    projects.write(folder.path, projects.small() | {"qconfig": {"global": whole}})
    for done in run_jobs(*(qat(folder, str(size), size) for size in (1, 3))):
        assert set(done.codes) == {0}, done.message
    folder.assert_close("3", "1", rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_it_goes_on_in_another_number_of_ranks(folder):
    stop = {"FAULT": "loss:1:7:15"}  # on rank 1, within the fourth step of two ranks
    whole, stopped, same, other = run_jobs(
        qat(folder, "whole", 2),
        qat(folder, "run", 2, environment=stop),
        qat(folder, "run", 2, "--resume"),
        qat(folder, "whole3", 3),
    )
    assert (whole.codes, stopped.codes, same.codes) == ([0, 0], [143, 143], [0, 0]), stopped.message
    assert stopped.message.count("error: stopped by SIGTERM after step 4, which is saved") == 1
    folder.assert_equal("run", "whole")
    assert other.codes == [0, 0, 0]


def test_other_data_is_refused_once_in_any_number_of_ranks(folder):
    stopped, other, same = run_jobs(
        qat(folder, "run", 2, environment={"FAULT": "loss:0:5:15"}),
        qat(folder, "run", 3, "--resume", environment={"SIZE": "30"}),
        qat(folder, "run", 1, "--resume"),
    )
    assert (stopped.codes, other.codes) == ([143, 143], [2, 2, 2]), other.message
    digest = "[0-9a-f]{12}"
    assert re.fullmatch(
        rf"error: 'run' was begun with another train_data\(\) and eval_data\(\): "
        rf"the SHA-256 of the first batch of train_data\(\) was {digest} and is {digest}; "
        r"the number of batches of eval_data\(\) was 3 and is 2\n"
        "hint: give it the data that it was begun with; --force starts again; -o names another directory\n",
        other.message,
    )
    assert (same.codes, same.message) == ([0], "")


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_any_number_of_ranks(folder):
    stop = {"FAULT": "loss:0:5:15"}
    jobs = [qat(folder, "whole", 1)]
    for first, second in ((1, 2), (2, 1), (2, 3), (4, 2)):
        run = f"{first}-{second}"
        jobs += [qat(folder, run, first, environment=stop), qat(folder, run, second, "--resume")]
    outcomes = run_jobs(*jobs)
    assert [set(done.codes) for done in outcomes[1:]] == [{143}, {0}] * 4
    for first, second in ((1, 2), (2, 1), (2, 3), (4, 2)):
        folder.assert_close(f"{first}-{second}", "whole", **TIGHT)


READ = """
def train_data():
    for batch in DataLoader(dataset(2), batch_size=4, shuffle=True):
        fault("train")
        yield batch
"""


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_ends_all_that_skip_what_they_have_trained_on(folder, rank):
    rewrite(folder, READ)
    again = ("run", 2, "--resume")
    whole, stopped, skipping, resumed = run_jobs(
        qat(folder, "whole", 2),
        qat(folder, "run", 2, environment={"FAULT": "loss:0:3:15"}),
        qat(folder, *again, environment={"FAULT": f"train:{rank}:4:15"}),
        qat(folder, *again),
    )
    assert (whole.codes, stopped.codes) == ([0, 0], [143, 143]), stopped.message
    assert (skipping.codes, skipping.message) == (
        [143, 143],
        "error: stopped by SIGTERM\n"
        "hint: resume with: torchrun --standalone --nproc-per-node 2 -m quantcfg "
        "qat model.py config.yaml -o run -q --resume\n",
    )
    assert resumed.codes == [0, 0], resumed.message
    folder.assert_equal("run", "whole")


def test_a_loss_that_is_nan_on_one_rank_stops_all_of_them_once(folder):
    (done,) = run_jobs(qat(folder, "run", 2, environment={"FAULT": "loss:1:3:nan"}))
    assert done.codes == [6, 6]
    assert done.message == (
        "error: the loss is nan in step 2 (epoch 1, batch 5); nothing was updated\n"
        "hint: look at the data of that batch, or lower the learning rate\n"
    )


DIFFERENT = """
def train_data():
    batches = list(DataLoader(dataset(1), batch_size=4))
    return {0}
"""


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (
            "batches[:3] + batches[3 + RANK :] + batches[3 : 3 + RANK]",
            "rank 1 was given other batches of train_data() than rank 0, noticed at batch 4",
        ),
        ("batches[: 8 - 4 * RANK]", "train_data() has ended after 4 batches on rank 1 and goes on on rank 0"),
        pytest.param(
            "batches[: 4 + 2 * RANK]",
            "train_data() has ended after 4 batches on rank 0 and goes on on rank 1",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "batches[: 3 + RANK]",
            "rank 1 has read 4 batches of train_data() where rank 0 has read 3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_batches_that_differ_by_rank_behind_the_first_are_refused(folder, batches, said):
    projects.write(folder.path, projects.small(), DIFFERENT.format(batches))
    (done,) = run_jobs(qat(folder, "run", 2))
    assert (done.codes, done.message) == (
        [6, 6],
        f"error: {said}\nhint: every rank has to be given the same batches; they are shared out here\n",
    )


def test_an_observer_that_is_not_synchronised_is_caught(folder):
    (done,) = run_jobs(qat(folder, "run", 2, bug="observers_of_one_rank"))
    assert done.codes == [6, 6]
    assert done.message.startswith("error: rank 1 has other qparams in '")
    assert "than the other ranks after step 1\n" in done.message
    assert done.message.count("error:") == 1


@pytest.mark.slow
def test_a_model_file_may_make_errors_of_warnings(folder):
    rewrite(folder, "\nimport warnings\nwarnings.simplefilter('error')\n")
    (done,) = run_jobs(qat(folder, "run", 2))
    assert (done.codes, done.message) == ([0, 0], "")


@pytest.mark.slow
def test_ranks_that_have_nothing_to_do_are_told(folder):
    (done,) = run_jobs(Job(str(folder.path), ["qat", "model.py", "config.yaml", "-o", "run", *ONE_BATCH], 2))
    assert done.codes == [0, 0], done.message
    assert (
        "note: 1 of 2 ranks have nothing to do: a step has 1 batch of train_data(); "
        "smaller batches and a qat.accumulate of 2 give each its share\n"
    ) in done.err[0]


COUNTING = """
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(1))
    def forward(self, x):
        self.calls += self.training * (RANK + 1)
        return self.last(x)
def evaluate(model, data):
    print(RANK, "counts", int(model.calls), file=__import__("sys").stderr)
    return {"calls": float(model.calls)}
"""


@pytest.mark.slow
def test_buffers_that_forward_changes_become_those_of_the_first_rank(folder):
    rewrite(folder, COUNTING, accumulate=3)
    arguments = ["qat", "model.py", "config.yaml", "-o", "run"]
    (done,) = run_jobs(Job(str(folder.path), arguments, 2))
    assert done.codes == [0, 0], done.message
    note = "note: forward changes buffers, which differ by rank: those of the first count: calls\n"
    assert done.message.count(note) == 1
    counts = [[line[1:] for line in err.splitlines() if "counts" in line] for err in done.err]
    assert counts[0] == counts[1] and counts[0][-1] != " counts 0"
    assert folder.result("run")["metrics"]["qat"]["calls"] == folder.model("run")["calls"]


SHARD = """
def shard(model, mesh):
    from torch.distributed.fsdp import fully_shard
    fully_shard(model.last, mesh=mesh)
"""


@pytest.mark.slow
@pytest.mark.parametrize("qconfig", ["w8a8", "w8a8_lsq"])
def test_a_sharded_model_trains_alike_and_goes_on(folder, qconfig):
    rewrite(folder, SHARD, grad_clip=1.0)
    more = ("--set", f"qconfig.global={qconfig}")
    alone, whole, stopped, resumed = run_jobs(
        qat(folder, "1", 1, *more),
        qat(folder, "2", 2, *more),
        qat(folder, "run", 2, *more, environment={"FAULT": "loss:1:5:15"}),
        qat(folder, "run", 2, *more, "--resume"),
    )
    assert (alone.codes, whole.codes, resumed.codes) == ([0], [0, 0], [0, 0]), whole.message
    assert stopped.codes == [143, 143]
    folder.assert_close("2", "1", rtol=1e-3, atol=1e-4)
    folder.assert_equal("run", "2")


STEEP = """
def optimizer(model):
    return torch.optim.SGD(model.last.parameters(), lr=0.05)
def loss(outputs, batch):
    fault("loss")
    steep = outputs[:, 0].float().mean() * 10  # in the first row alone, of which the first rank has the part
    return F.cross_entropy(outputs.float(), batch[1]) + steep
"""


@pytest.mark.slow
def test_the_parts_of_a_sharded_model_are_averaged_and_scaled_as_one(folder):
    rewrite(folder, SHARD + STEEP, **EVERYTHING | {"autocast": "float16", "epochs": 4})
    alone, whole, stopped, resumed, other = run_jobs(
        qat(folder, "1", 1),
        qat(folder, "2", 2),
        qat(folder, "run", 2, environment={"FAULT": "loss:1:4:15"}),
        qat(folder, "run", 2, "--resume"),
        qat(folder, "3", 3),
    )
    for done in (alone, whole, resumed, other):
        assert (set(done.codes), done.message) == ({0}, "")
    assert stopped.codes == [143, 143]
    folder.assert_equal("run", "2")
    for size in ("2", "3"):
        folder.assert_close(size, "1", rtol=1e-2, atol=1e-3)
        assert scales(folder, size) == scales(folder, "1")
    assert 1 <= folder.result("1")["num_skipped_steps"] < 8 < folder.result("1")["num_steps"]


def scales(folder, run):
    return [row["loss_scale"] for row in rows(folder, run) if "loss_scale" in row]


ONE_BATCH = ("--set", "qat.accumulate=1", "--set", "qat.epochs=1")


FAILING = """
class Faulty(torch.optim.SGD):
    def step(self, closure=None):
        fault("step")
        return super().step(closure)
def optimizer(model):
    return Faulty(model.parameters(), lr=0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_optimizer_that_fails_on_one_rank_is_named(folder, rank):
    rewrite(folder, FAILING)
    (done,) = run_jobs(qat(folder, "run", 2, environment={"FAULT": f"step:{rank}:2:raise"}))
    assert done.codes == [5, 5]
    assert done.message.count("error:") == 1
    assert re.search(rf"model.py:\d+: rank {rank}: .* raised ValueError: no such image\n", done.message)
