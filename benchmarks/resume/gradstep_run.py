"""gradstep itself: docs/ARCHITECTURE.md, "A run's folder"."""

from __future__ import annotations

from typing import Any

from torch import nn

import gradstep
from benchmarks.resume.problem import BATCH, EPOCHS, EVERY, SEED, asked


class PauseAfter:
    """Asks for the pause: save and leave, to be resumed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state: Any, outcome: Any) -> gradstep.Request | None:  # noqa: ARG002
        return gradstep.Request.PAUSE if state.step == self.step else None


def main() -> None:
    task = asked()
    gradstep.fit(
        task.net, nn.CrossEntropyLoss(), (task.inputs, task.targets), optimizer=task.optimizer(), epochs=EPOCHS,
        batch_size=BATCH, seed=SEED, checkpoint={"every": f"{EVERY} steps"}, plan="plain", device="cpu",
        out=task.folder, name="run", resume=task.resume, quiet=True,
        hooks=[PauseAfter(task.stop_after)] if task.stop_after else [],
    )  # fmt: skip
    task.finish()


if __name__ == "__main__":
    main()
