"""What torchrun tells a process that it starts: which one of how many it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_KEYS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Launch:
    """This process among ``size``, and among the ``local_size`` of this machine; both count from 0."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    def command(self, program: str) -> tuple[str, ...]:
        """What starts ``program`` again in as many processes; what differs by machine is left to the user."""
        if self.size == self.local_size:
            return ("torchrun", "--standalone", "--nproc-per-node", str(self.size), "-m", program)
        return ("torchrun", "...", "-m", program)


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """What the environment says, or None when nothing like torchrun started this process."""
    if not all(key in environment for key in _KEYS):
        return None
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        return Launch(rank, size, local_rank, int(environment.get("LOCAL_WORLD_SIZE", size)))
    except ValueError:
        return None
