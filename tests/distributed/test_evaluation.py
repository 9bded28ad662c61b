"""Evaluations in several ranks: they read the same, and a signal to one of them breaks off all."""

import pytest

from tests.distributed import projects
from tests.distributed.forking import Job, run_jobs
from tests.distributed.test_training import SHARD, qat, rewrite

# 10 batches: those 1 to 20 are of the evaluations of the calibration, 21 to 30 of the one after epoch 1
EVALUATED = """
def eval_data():
    for batch in DataLoader(dataset(3), batch_size=4):
        fault("eval")
        yield batch
"""
OWN = """
def evaluate(model, data):
    return {"score": sum(float(model(x).sum()) for x, _ in data)}
"""
SLOW = pytest.mark.slow


@pytest.mark.parametrize("more", ["", pytest.param(OWN, marks=SLOW), pytest.param(SHARD, marks=SLOW)])
@pytest.mark.parametrize(("batch", "step"), [(23, 3), pytest.param(39, 6, marks=SLOW)])
def test_a_signal_to_one_rank_breaks_off_the_evaluation_of_all(folder, more, batch, step):
    rewrite(folder, EVALUATED + more, ema=0.5)
    whole, stopped, resumed = run_jobs(
        qat(folder, "whole", 2),
        qat(folder, "run", 2, environment={"FAULT": f"eval:1:{batch}:15"}),
        qat(folder, "run", 2, "--resume"),
    )
    assert (whole.codes, stopped.codes, resumed.codes) == ([0, 0], [143, 143], [0, 0]), stopped.message
    assert stopped.message == (
        f"error: stopped by SIGTERM after step {step}, which is saved\n"
        "hint: resume with: torchrun --standalone --nproc-per-node 2 -m quantcfg "
        "qat model.py config.yaml -o run -q --resume\n"
    )
    folder.assert_equal("run", "whole")


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.slow
def test_a_broken_off_evaluation_is_made_again_by_any_number_of_ranks(folder, size):
    rewrite(folder, EVALUATED)
    jobs = [qat(folder, "whole", 1), qat(folder, "run", 2, environment={"FAULT": "eval:0:22:15"})]
    _, stopped, resumed = run_jobs(*jobs, qat(folder, "run", size, "--resume"))
    assert (stopped.codes, resumed.codes) == ([143, 143], [0] * size), resumed.message
    folder.assert_close("run", "whole", rtol=1e-4, atol=1e-6)


OTHER = """
def eval_data():
    batches = list(DataLoader(dataset(3), batch_size=4))
    return {0}
"""


@pytest.mark.parametrize("own", ["", pytest.param(OWN, marks=SLOW)])
@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (
            "batches[:3] + batches[3 + RANK :] + batches[3 : 3 + RANK]",
            "rank 1 was given other batches of eval_data() than rank 0, noticed at batch 4",
        ),
        pytest.param(
            "batches[: 6 + RANK]",
            "rank 1 has read 7 batches of eval_data() where rank 0 has read 6",
            marks=SLOW,
        ),
        pytest.param(
            "batches[: 6 - RANK]",
            "rank 1 has read 5 batches of eval_data() where rank 0 has read 6",
            marks=SLOW,
        ),
    ],
)
def test_eval_data_that_differs_by_rank_is_refused(folder, batches, said, own):
    projects.write(folder.path, projects.small(), OTHER.format(batches) + own)
    (done,) = run_jobs(Job(str(folder.path), ["calib", "model.py", "config.yaml", "-o", "run", "-q"], 2))
    assert (done.codes, done.message) == (
        [6, 6],
        f"error: {said}\nhint: every rank has to be given the same batches; they are shared out here\n",
    )


SWALLOWING = """
def evaluate(model, data):
    try:
        for x, _ in data:
            model(x)
    except Exception:
        pass
    fault("evaluate")
    return {"score": 1.0}
"""


@pytest.mark.slow
def test_a_rank_that_fails_by_itself_after_it_swallowed_an_error_of_all_is_named(folder):
    rewrite(folder, OTHER.format("batches[:1] + batches[1 + RANK :]") + SWALLOWING)
    (done,) = run_jobs(qat(folder, "run", 2, environment={"FAULT": "evaluate:1:1:raise"}))
    assert done.codes == [5, 5]
    assert done.message.count("error:") == 1
    assert "rank 1: evaluate() raised ValueError: no such image\n" in done.message
