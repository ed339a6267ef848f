"""Lightning's Trainer.

Checkpoints and resuming: https://lightning.ai/docs/pytorch/stable/common/checkpointing_intermediate.html
(`every_n_train_steps`) and checkpointing_basic.html (`fit(ckpt_path=...)`); `ckpt_path="last"` and `save_last=True` are
in the reference of Trainer.fit and ModelCheckpoint. Where a run is resumed within an epoch, Lightning warns that the
data loader should have `state_dict`, as torchdata's StatefulDataLoader has: the variant `stateful`.
"""

from __future__ import annotations

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.resume.problem import BATCH, EPOCHS, EVERY, SEED, Task, asked


class Module(lightning.LightningModule):
    """The smallest module: a loss and an optimizer."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.net, self.optimizer = task.net, task.optimizer()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:  # noqa: ARG002
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> optim.Optimizer:
        return self.optimizer


def main() -> None:
    task = asked()
    lightning.seed_everything(SEED, verbose=False)
    kind = StatefulDataLoader if task.variant == "stateful" else DataLoader
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=EPOCHS, max_steps=task.stop_after or -1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=task.folder,
        callbacks=[ModelCheckpoint(dirpath=task.folder / "checkpoints", every_n_train_steps=EVERY, save_last=True)],
    )  # fmt: skip
    loader = kind(TensorDataset(task.inputs, task.targets), batch_size=BATCH, shuffle=True)
    # With nothing to resume from, "last" says so and begins at 0.
    trainer.fit(Module(task), loader, ckpt_path="last" if task.resume else None)
    task.finish()


if __name__ == "__main__":
    main()
