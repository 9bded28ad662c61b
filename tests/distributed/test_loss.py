"""A rank that is lost, wherever it is, is named by one message, and the others end in time."""

import signal
import time

import pytest

from tests.distributed.bugs import PLACES
from tests.distributed.forking import Job, run_jobs

KILL, STOP = int(signal.SIGKILL), int(signal.SIGSTOP)


def lose(folder, place, rank, number):
    arguments = ["qat", "model.py", "config.yaml", "-o", "run", "-q", "--timeout", "5"]
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
