"""What the processes of a run tell each other while it trains: sums, common decisions, waiting. One process alone needs no network."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


class Processes:
    """The processes of a run as one of them sees them. Every method is called by all of them, in the same order."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.size = accelerator.process_index, accelerator.num_processes
        self._device = accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def total(self, value: int) -> int:
        """The sum of a whole number over all processes."""
        return self._reduced(value, torch.distributed.ReduceOp.SUM) if self.size > 1 else value

    def largest(self, value: int) -> int:
        """The largest of a whole number over all processes."""
        return self._reduced(value, torch.distributed.ReduceOp.MAX) if self.size > 1 else value

    def agreed(self, value: T) -> T:
        """What the main process has for `value`, in all of them."""
        return broadcast_object_list([value])[0] if self.size > 1 else value

    def gathered(self, value: T) -> list[T]:
        """The value of each process, in their order."""
        return gather_object([value]) if self.size > 1 else [value]

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.size > 1:
            self.total(0)

    def _reduced(self, value: int, how: torch.distributed.ReduceOp.RedOpType) -> int:
        number = torch.tensor(value, dtype=torch.int64, device=self._device)
        torch.distributed.all_reduce(number, op=how)
        return int(number)
