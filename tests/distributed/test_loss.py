"""What ends the ranks is said once and by name: torchrun ends the others as soon as the first has ended."""

import signal
import time

import pytest

from tests.distributed import projects
from tests.distributed.bugs import PLACES
from tests.distributed.forking import Job, run_jobs

KILL, STOP = int(signal.SIGKILL), int(signal.SIGSTOP)


def lose(folder, place, rank, number):
    arguments = ["qat", "model.py", "config.yaml", "-o", "run", "-q"]
    return Job(str(folder.path), arguments, 3, {"LOSE": f"{place}:{rank}:{number}"}, "lose")


LOSSES = [pytest.param(KILL, "ended without a word", id="dies"),
          pytest.param(STOP, "did not answer for 5 s", id="hangs")]  # fmt: skip


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("number", "said"), LOSSES)
@pytest.mark.slow
def test_a_rank_that_is_lost_is_named(folder, place, rank, number, said):
    begun = time.monotonic()
    (done,) = run_jobs(lose(folder, place, rank, number))
    expected = [6, 6, 6]
    expected[rank] = -KILL  # of a hanging one by torchrun, in the end
    assert done.codes == expected, done.message
    assert done.message.count("error:") == 1, done.message
    assert f"error: rank {rank} {said}" in done.message
    assert time.monotonic() - begun < 600  # much less, on a machine with nothing else to do


RESUME = (
    "hint: resume with: torchrun --standalone --nproc-per-node 3 -m quantcfg "
    "{} model.py config.yaml -o run -q --resume\n"
)


@pytest.mark.parametrize(
    "place",
    ["model", *(pytest.param(place, marks=pytest.mark.slow) for place in ("rendezvous", "evaluation"))],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_ends_all_of_them_before_training_too(folder, place, number):
    (done,) = run_jobs(lose(folder, place, 1, int(number)))
    assert (done.codes, done.message) == (
        [128 + number] * 3,
        f"error: stopped by {number.name}\n{RESUME.format('qat')}",
    )


def test_a_rank_that_is_lost_before_it_has_come_is_named(folder):
    job = Job(str(folder.path), ["calib", "model.py", "config.yaml", "-o", "run", "-q"], 3, bug="never_come")
    (done,) = run_jobs(job)
    assert (done.codes, done.message) == (
        [143, 143, -KILL],
        f"error: stopped by SIGTERM before rank 2 had come\n{RESUME.format('calib')}",
    )


def test_a_rank_that_was_still_starting_is_not_blamed(folder):
    arguments = ["calib", "model.py", "config.yaml", "-o", "run", "-q", "--timeout", "5"]
    (done,) = run_jobs(Job(str(folder.path), arguments, 3, bug="lose_while_others_start"))
    assert done.codes == [-KILL, 6, -KILL]
    assert done.message.startswith("error: rank 0 ") and "in the rendezvous\n" in done.message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["calib", "model.py"],
            "error: missing argument 'CONFIG'\n"
            "hint: quantcfg calib [OPTIONS] {MODEL} {CONFIG}; -h shows more\n",
        ),
        (
            ["train"],
            "error: no such command 'train'\nhint: quantcfg [OPTIONS] COMMAND [ARGS]...; -h shows more\n",
        ),
    ],
)
def test_a_wrong_command_line_is_said_once(folder, arguments, said):
    (done,) = run_jobs(Job(str(folder.path), arguments, 3))
    assert (done.codes, done.err) == ([2, 2, 2], [said, "", ""])


OTHER_DATA = """
def calib_data():
    return DataLoader(dataset(1 + RANK), batch_size=BATCH)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "this command works in one process"),
        (["calib", "-o", "run"], "calib_data() is another one on rank 1 than on rank 0"),
    ],
)
def test_what_all_ranks_know_is_said_though_the_one_that_says_it_is_late(folder, arguments, said):
    projects.write(folder.path, projects.small(), OTHER_DATA)
    command, *more = arguments
    (done,) = run_jobs(Job(str(folder.path), [command, "model.py", "config.yaml", *more], 3, bug="late"))
    assert done.message.count("error:") == 1 and said in done.err[0], done.message
    assert set(done.codes) == {done.codes[0]} and done.codes[0] in (2, 5)
