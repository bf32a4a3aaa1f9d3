"""What training returns, and what it raises: the errors carry the result as far as it goes.

`fit` returns the process with the history of its training. Where training cannot go on, since a number is not finite or
a file cannot be written, the error carries the result up to there, so that no hours of work are lost. No mathematics is
done here.
"""

from typing import Any, NamedTuple

from .._display import shown_by_facts
from ..process import ReverseProcess
from .resume import History


@shown_by_facts
class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        process: the trained process, with the averaged (EMA) weights of the last step; with `patience`, those of the
            best validation, that of the start among them.
        history: ``step`` and ``loss`` (nats, mean over the steps since the entry before); ``validation_step`` (0
            first), ``validation`` (the K bound in nats) and ``validation_error`` (its standard error over the
            examples).
        steps: optimiser steps taken.
        stopped: ``"finished"``, ``"early"``, ``"ended"`` where a stream of batches did, ``"diverged"`` in a
            `TrainingDiverged`, or ``"unsaved"`` in a `CheckpointNotWritten`.
    """

    process: ReverseProcess
    history: History
    steps: int
    stopped: str

    def _facts(self) -> dict[str, object]:
        scores = [f"{score:.3f}" for score in self.history["validation"]]
        judged = {"validation": f"{scores[0]} to {scores[-1]} nats"} if scores else {}
        return self.process.facts() | {"steps": self.steps, "stopped": self.stopped} | judged


class TrainingDiverged(FloatingPointError):
    """The loss or its gradient became NaN or infinite.

    Attributes:
        step: the first step, counted from 1, whose loss or new weights were not finite.
        result: the `FitResult` of the step before.
    """

    def __init__(self, step: int, result: FitResult) -> None:
        super().__init__(
            f"training: expected a finite loss and gradient, got NaN or infinity at step {step}; the state of step "
            f"{result.steps} is kept in `.result` (and in the checkpoint, if there is one). A smaller learning_rate "
            "usually helps."
        )
        self.step, self.result = step, result


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written in the middle of training, because the disk is full, say.

    Attributes:
        result: the `FitResult` of the steps taken so far, whose `stopped` is ``"unsaved"``.
    """

    def __init__(self, path: Any, result: FitResult, error: OSError) -> None:
        reason = error.strerror or str(error)
        message = f"checkpoint: expected to write {str(path)!r}, got {reason}; the state of step {result.steps} is kept"
        super().__init__(error.errno, f"{message} in `.result`")
        self.result = result
