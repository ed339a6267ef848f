"""Hugging Face's Trainer, with a plain module.

https://huggingface.co/docs/transformers/trainer (checkpoints, `resume_from_checkpoint`) and the reference of
TrainingArguments (`save_steps`, `seed`, `data_seed`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.resume.problem import BATCH, EPOCHS, EVERY, SEED, Net, Task, asked


class Rows(Dataset):
    """One dict per sample."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.task.inputs[index], "labels": self.task.targets[index]}


class WithLoss(nn.Module):
    """A model as Trainer wants it: it takes `labels` and returns its loss."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.net(inputs), labels)}


class StopAfterSave(TrainerCallback):
    """Stops the run as its callbacks do: by the control, when the checkpoint of a step has been written."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
        control.should_training_stop = control.should_training_stop or state.global_step == self.step
        return control


def main() -> None:
    task = asked()
    set_seed(SEED)
    arguments = TrainingArguments(
        output_dir=str(task.folder / "checkpoints"), per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS,
        save_strategy="steps", save_steps=EVERY, seed=SEED, data_seed=SEED, max_grad_norm=0.0, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    optimizer = task.optimizer()
    trainer = Trainer(
        WithLoss(task.net), arguments, train_dataset=Rows(task), callbacks=[StopAfterSave(task.stop_after)],
        optimizers=(optimizer, LambdaLR(optimizer, lambda _: 1)),
    )  # fmt: skip
    # True instead of the path means this very call, but is an error where there is no checkpoint yet.
    begun = task.resume and Path(arguments.output_dir).exists()
    found = get_last_checkpoint(arguments.output_dir) if begun else None
    trainer.train(resume_from_checkpoint=found)
    task.finish()


if __name__ == "__main__":
    main()
