"""A line for each interval of training, for those who want to see the loss go by."""

from __future__ import annotations

from typing import Any

from gradstep.record.journal import Row


class PrintLoss:
    """A hook that prints the running loss and the samples seen of the epoch: `loss: 2.302585  [  640/50000]`.

    A line comes for each `log_every`, and for what is left at an epoch's end. The loss is the mean over the batches
    since the last line. Lines are printed when losses are read from the device, so they may come several at once.
    """

    def on_train_start(self, state: Any, about: Any) -> None:  # noqa: ARG002
        self._size = about.samples

    def on_row(self, row: Row) -> None:
        if row["kind"] == "train":
            of = "" if self._size is None else f"/{self._size:>5d}"
            seen = row["samples"] - (row["epoch"] - 1) * (self._size or 0)
            print(f"loss: {row['train/running_loss']:>7f}  [{seen:>5d}{of}]", flush=True)
