"""Accelerate: one's own loop, written as its guide and its example write it.

https://huggingface.co/docs/accelerate/usage_guides/checkpoint (`save_state`, `load_state`, `skip_first_batches`, and
with `use_stateful_dataloader=True` no skipping) and examples/by_feature/checkpointing.py of its repository (a folder
`step_N` for each checkpoint, the newest is loaded). Variants: `seedable` takes use_seedable_sampler=True, which the
reference of DataLoaderConfiguration recommends for reproducible runs; `stateful` use_stateful_dataloader=True.
"""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.resume.problem import BATCH, EPOCHS, EVERY, PER_EPOCH, SEED, Task, asked


def newest(task: Task) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max((int(path.name.removeprefix("step_")) for path in task.folder.glob("step_*")), default=0)


def train(task: Task) -> None:
    set_seed(SEED)
    stateful = task.variant == "stateful"
    accelerator = Accelerator(
        cpu=True,
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=task.variant == "seedable", use_stateful_dataloader=stateful
        ),
    )
    loader = DataLoader(TensorDataset(task.inputs, task.targets), batch_size=BATCH, shuffle=True)
    net, optimizer, loader = accelerator.prepare(task.net, task.optimizer(), loader)
    step = newest(task) if task.resume else 0
    if step:
        accelerator.load_state(str(task.folder / f"step_{step}"))
    for epoch in range(step // PER_EPOCH, EPOCHS):
        # The example leaves this out; without it the epoch after the one of the resume would have that one's order.
        loader.set_epoch(epoch)
        done = step % PER_EPOCH
        # The guide: a stateful loader is restored by load_state, others are skipped forward.
        batches = accelerator.skip_first_batches(loader, done) if done and not stateful else loader
        for inputs, targets in batches:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(net(inputs), targets))
            optimizer.step()
            step += 1
            if step % EVERY == 0:
                accelerator.save_state(str(task.folder / f"step_{step}"))
            if step == task.stop_after:
                return


def main() -> None:
    task = asked()
    train(task)
    task.finish()


if __name__ == "__main__":
    main()
