"""TensorBoard: a hook that writes the rows of metrics.jsonl as scalars, and histograms of weights and gradients.

It is derived from the record and never the record itself.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradstep.clock import Duration
from gradstep.errors import RecipeError
from gradstep.rundir import RunDir

if TYPE_CHECKING:
    from gradstep.state import TrainState


class TensorBoard:
    """Scalars: rate, losses, metrics, epoch, epoch time, samples seen; steps are optimizer steps.

    `folder` is the run's own `tensorboard/` unless given. Histograms of every weight and its gradient are written
    every `histograms` ("100 steps", "1 epoch"), never when it is None: each waits for the device.
    """

    def __init__(self, histograms: str | None = None, folder: str | Path | None = None) -> None:
        self.histograms = None if histograms is None else Duration.positive(histograms, "histograms")
        self.folder = folder
        self._writer: Any = None
        try:
            import tensorboard  # noqa: F401  # now, so that a run does not find out after its first epoch
        except ImportError:
            raise RecipeError("TensorBoard is not installed. Type: pip install 'gradstep[tensorboard]'") from None

    def on_train_start(self, state: TrainState, run: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder or (RunDir(Path(run.path)).tensorboard if run.path else None)
        if folder is None:
            raise RecipeError("TensorBoard has no place to write to: give fit an out=, or TensorBoard a folder=.")
        # A resumed run writes again what was written after its checkpoint; the reader drops the older copies.
        self._writer = SummaryWriter(str(folder), purge_step=state.step + 1 if state.step else None)
        self._clock, self._stopwatch = run.clock, run.stopwatch

    def on_row(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        for name, value in row.items():
            rate = name.split("/")[0] == "lr" and (kind == "train" or (kind == "start" and row["step"] == 0))
            counted = (name, kind) in (("samples", "train"), ("epoch", "epoch"))
            measured = "/" in name and not name.startswith("lr/") and isinstance(value, (int, float))
            if rate or counted or measured:
                self._writer.add_scalar(name, value, row["step"])

    def on_train_batch_end(self, state: TrainState, outcome: Any) -> None:  # noqa: ARG002
        if self._clock.due(state.step, self.histograms):
            for name, parameter in state.model.named_parameters():
                for kind, values in (("weights", parameter.detach()), ("gradients", parameter.grad)):
                    if values is not None:
                        with suppress(
                            ValueError
                        ):  # nan, or beyond TensorBoard's last bucket: the run itself will say so
                            self._writer.add_histogram(f"{kind}/{name}", values.cpu(), state.step)

    def on_train_epoch_end(self, state: TrainState, metrics: dict[str, Any]) -> None:  # noqa: ARG002
        self._writer.add_scalar("epoch_time", self._stopwatch.last_epoch, state.step)

    def on_train_end(self, state: TrainState) -> None:  # noqa: ARG002
        self._writer.close()

    def on_exception(self, state: TrainState, error: BaseException) -> None:  # noqa: ARG002
        if self._writer is not None:
            self._writer.close()
