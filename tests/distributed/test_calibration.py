"""Calibration in several ranks has the bits of one process, and a merge that is wrong does not."""

import pytest

from quantcfg.config.load import load_config
from tests.distributed import projects
from tests.distributed.forking import Job, run_jobs

EVERY = {"MODEL": "every"}


def calib(folder, run, size, *more, environment=EVERY, bug=""):
    arguments = ["calib", "model.py", "config.yaml", "-o", run, "-q", *more]
    return Job(str(folder.path), arguments, size, environment, bug)


@pytest.fixture
def every(folder):
    """A layer for each observer, per tensor and per channel, over the whole stream and averaged."""
    projects.write(folder.path, projects.every_observer())
    return folder


def test_the_project_has_every_observer_that_looks_at_data(every):
    rules = load_config(every.path / "config.yaml").rules("calib")
    kinds = {rule.spec.activation.observer for rule in rules.rules if rule.spec}
    assert kinds == {"min_max", "clip", "percentile", "clip_std", "mse", "kl", "mix"}


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [
        (37, (2, 3)),  # 5 batches, the last one ragged
        pytest.param(37, (4,), marks=pytest.mark.slow),
        pytest.param(16, (2, 3, 4), marks=pytest.mark.slow),  # 2 batches: some ranks have none
        pytest.param(8 * 41, (2, 3, 4), marks=pytest.mark.slow),  # many batches
    ],
)
def test_any_number_of_ranks_has_the_bits_of_one_process(every, samples, sizes):
    environment = EVERY | {"SIZE": str(samples)}
    jobs = [calib(every, str(size), size, environment=environment) for size in (1, *sizes)]
    for outcome in run_jobs(*jobs):
        assert (set(outcome.codes), outcome.message) == ({0}, "")
    for size in sizes:
        every.assert_equal(str(size), "1")


@pytest.mark.slow
def test_wide_channels_are_merged_before_their_batches_are_forgotten(folder):
    wide = """
class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 2048), nn.Linear(2048, 3)
    def forward(self, x):
        return self.last(self.first(x))
def build_model():
    torch.manual_seed(0)
    return Wide()
"""
    config = projects.small()
    kwargs = {"dtype": "qint8", "qscheme": "per_channel_symmetric", "ch_axis": 1}
    config["qconfig"] = {"global": {"activation_qkwargs": kwargs, "weight_qkwargs": {"dtype": "qint8"}}}
    projects.write(folder.path, config, wide)
    environment = {"SIZE": str(8 * 45)}
    alone, many = run_jobs(*(calib(folder, str(n), n, environment=environment) for n in (1, 2)))
    assert (alone.codes, many.codes, many.message) == ([0], [0, 0], "")
    folder.assert_equal("2", "1")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "said"), [("calib", "calibrating: 5 batches"), ("qat", "training: 6")])
def test_only_the_first_rank_prints_and_writes(folder, stage, said):
    job = Job(str(folder.path), [stage, "model.py", "config.yaml", "-o", "run"], 3, bug="tell_of_writes")
    (done,) = run_jobs(job)
    assert done.codes == [0, 0, 0]
    assert "accuracy" in done.out[0] and said in done.err[0] and "/run/.manifest.json" in done.err[0]
    assert done.out[1:] + done.err[1:] == [""] * 4


@pytest.mark.slow
def test_skipped_batches_are_counted_over_all_ranks(folder):
    projects.write(
        folder.path,
        projects.small(),
        """
def calib_data():
    for index, (x, y) in enumerate(DataLoader(dataset(1), batch_size=BATCH)):
        yield (x * float("nan") if index in (1, 2) else x), y
""",
    )
    more = ("--set", "calib.nonfinite=skip")
    run_jobs(*(calib(folder, str(size), size, *more, environment={}) for size in (1, 2)))
    assert set(folder.result("1")["skipped"].values()) == {2}
    folder.assert_equal("2", "1")


@pytest.mark.parametrize(("batch", "rank"), [(3, 1), pytest.param(4, 0, marks=pytest.mark.slow)])
def test_a_stop_of_one_rank_stops_all_and_another_number_of_them_goes_on(every, batch, rank):
    # the first batch that is read is the one that the model is recorded on
    stop = EVERY | {"FAULT": f"calib:{rank}:{batch + 1}:15"}
    _, stopped, resumed = run_jobs(
        calib(every, "whole", 1),
        calib(every, "run", 2, environment=stop),
        calib(every, "run", 3, "--resume"),
    )
    assert stopped.codes == [143, 143]
    assert stopped.message == (
        "error: stopped by SIGTERM after step 4, which is saved\n"
        "hint: resume with: torchrun --standalone --nproc-per-node 2 -m quantcfg "
        "calib model.py config.yaml -o run -q --resume\n"
    )
    assert resumed.codes == [0, 0, 0], resumed.message
    every.assert_equal("run", "whole")


def test_a_stopped_calibration_goes_on_while_every_rank_has_batches_left(folder):
    stop = {"FAULT": "calib:0:3:15"}
    _, stopped, resumed = run_jobs(
        calib(folder, "whole", 1, environment={}),
        calib(folder, "run", 2, environment=stop),
        calib(folder, "run", 2, "--resume", environment={}),
    )
    assert (stopped.codes, resumed.codes) == ([143, 143], [0, 0]), resumed.message
    folder.assert_equal("run", "whole")


SCORED = """
def evaluate(model, data):
    fault("eval")
    return {"score": sum(float(model(x).sum()) for x, _ in data)}
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_comparison_stopped_in_its_evaluations_goes_on_from_what_was_seen(folder, rank):
    projects.write(folder.path, projects.small(), SCORED)
    compare = ("--set", "calib.compare=[min_max, kl]", "--set", "calib.compare_by={metric: score, mode: max}")
    alone, whole, stopped, resumed = run_jobs(
        calib(folder, "alone", 1, *compare, environment={}),
        calib(folder, "whole", 2, *compare, environment={}),
        calib(folder, "run", 2, *compare, environment={"FAULT": f"eval:{rank}:3:15"}),
        calib(folder, "run", 2, "--resume", *compare, environment={}),
    )
    assert (alone.codes, whole.codes, stopped.codes) == ([0], [0, 0], [143, 143]), stopped.message
    assert stopped.message.startswith("error: stopped by SIGTERM\nhint: resume with: torchrun ")
    assert (folder.path / "run/checkpoints/5/manifest.json").is_file()
    assert resumed.codes == [0, 0], resumed.message
    folder.assert_equal("whole", "alone")
    folder.assert_equal("run", "whole")


@pytest.mark.slow
def test_statistics_are_recalculated_by_many_ranks_as_by_one(folder):
    kl = ("--from", "one", "--set", "qconfig.global.activation_observer=kl")
    histogram = ("--set", "qconfig.global={activation_observer: mse}")
    jobs = [calib(folder, "one", 1, *histogram, environment={})]
    jobs += [calib(folder, f"kl{n}", n, *histogram, *kl, environment={}) for n in (1, 2)]
    for done in run_jobs(*jobs):
        assert set(done.codes) == {0}, done.message
    folder.assert_equal("kl2", "kl1")


def test_data_that_differs_by_rank_is_refused(folder):
    projects.write(
        folder.path,
        projects.small(),
        """
from torch.utils.data.distributed import DistributedSampler
def calib_data():
    data = dataset(1)
    return DataLoader(data, batch_size=BATCH, sampler=DistributedSampler(data))
def example_inputs():
    return (torch.zeros(1, 6),)
""",
    )
    (done,) = run_jobs(calib(folder, "run", 2, environment={}))
    assert done.codes == [5, 5]
    assert done.message.partition("calib_data")[2].startswith("() is another one on rank 1 than on rank 0\n")
    assert done.message.count("error:") == 1


@pytest.mark.parametrize(
    "bug", ["merge_without_rank_1", pytest.param("weights_observed_by_each", marks=pytest.mark.slow)]
)
def test_this_file_notices(every, bug):
    alone, many = run_jobs(calib(every, "1", 1), calib(every, "2", 2, bug=bug))
    assert (alone.codes, many.codes) == ([0], [0, 0]), many.message
    with pytest.raises(AssertionError):
        every.assert_equal("2", "1")


@pytest.mark.slow
def test_the_metrics_of_the_users_evaluate_are_those_of_the_first_rank(folder):
    projects.write(folder.path, projects.small(), "\ndef evaluate(model, data):\n    return {'rank': RANK}\n")
    (done,) = run_jobs(calib(folder, "run", 2, environment={}))
    assert done.codes == [0, 0], done.message
    assert folder.result("run")["metrics"]["calibrated"] == {"rank": 0}
