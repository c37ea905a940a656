"""What a user can do wrong, one class per exit code.

    EdgepruneError        1   internal
    ├── UsageError        2   flags that make no sense, an output that exists
    ├── InfeasibleBudget  3   no plan meets the budget
    ├── InputRejected     4   not a model, damaged, unsupported, unsafe
    ├── WrongWeights      5   a plan or scores made for other weights
    └── OutOfResources    6   disk or memory

130 is an interrupt (Ctrl-C). A message says what was asked, what was found and what to do, in one line.
"""

from __future__ import annotations


class EdgepruneError(Exception):
    """Shown to the user as one line, without a traceback."""

    exit_code = 1


class UsageError(EdgepruneError):
    exit_code = 2


class InfeasibleBudget(EdgepruneError):
    """`nearest` maps a budget line to the nearest value that works, e.g. {"max_mem_bytes": 123456}; `nearest_plan` is the
    plan (types.Plan) then made. Both are empty when no budget on this device works."""

    exit_code = 3

    def __init__(self, message: str, nearest: dict[str, float] | None = None, nearest_plan: object = None):
        super().__init__(message)
        self.nearest = nearest or {}
        self.nearest_plan = nearest_plan


class InputRejected(EdgepruneError):
    exit_code = 4


class WrongWeights(EdgepruneError):
    exit_code = 5


class OutOfResources(EdgepruneError):
    exit_code = 6
