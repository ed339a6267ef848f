"""What each tool offers for each case, by which ways it is asked, and what is done: a sentence for every cell.

Where a case has several ways, the first is the table's. Importing this imports none of the tools.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NO_MEMORY = "nothing is said or found about errors of memory"
SKELETON = "the guide's skeleton for samples of variable size: a summed loss over the count of the window's targets"
SAVED = "save_state() after every step with automatic naming, load_state(), "
MEAN = "gradient_accumulation_steps, the model returns its mean loss and takes no loss keywords"
COUNTED = "gradient_accumulation_steps, compute_loss_func divides a summed loss by num_items_in_batch"
NEWEST = "; Ignite looks for no file: the newest by its number is taken, in a line of one's own"
RECIPE = "no option; its FAQ's recipe GradAccNet, which calls itself not complete"


@dataclass(frozen=True)
class Offer:
    """A tool: its name in the table, what is done for each case and way, and why something is not there.

    `undocumented` are cases that the tool's interface accepts though its documentation says nothing of them.
    """

    title: str
    how: dict[str, dict[str, str]]
    not_offered: dict[str, str] = field(default_factory=dict)
    undocumented: frozenset[str] = frozenset()


LIGHTNING = Offer(
    "Lightning",
    {
        "ragged": {"": "Trainer(accumulate_grad_batches=3), automatic optimisation"},
        "short window": {"": "Trainer(accumulate_grad_batches=4), one epoch of 10 batches"},
        "tokens": {"": "Trainer(accumulate_grad_batches=4), the loss is the cross entropy of each micro-batch"},
        "resume": {
            "step": "ModelCheckpoint(every_n_train_steps=1, save_last=True), fit(ckpt_path='last'), seed_everything",
            "step, stateful loader": "the same with torchdata's StatefulDataLoader, as Lightning's warning advises",
            "epoch": "ModelCheckpoint(save_last=True) at epoch ends, fit(ckpt_path='last'), seed_everything",
        },
        "lbfgs": {
            "": "Trainer(accumulate_grad_batches=4), LBFGS from configure_optimizers; Lightning makes the closure"
        },
        "schedule": {"": "Trainer(accumulate_grad_batches=4), scheduler with interval 'step'"},
        "save": {
            "step": "ModelCheckpoint(every_n_train_steps=1, save_last=True); fit(ckpt_path='last') finds the file"
        },
    },
    {"memory": "BatchSizeFinder tries sizes before the training; an error at a later step ends the run"},
)

ACCELERATE = Offer(
    "Accelerate",
    {
        "ragged": {
            "accumulate()": "with accelerator.accumulate(model), gradient_accumulation_steps=3",
            "token skeleton": SKELETON,
        },
        "short window": {
            "accumulate()": "with accelerator.accumulate(model), gradient_accumulation_steps=4",
            "token skeleton": SKELETON,
        },
        "tokens": {
            "token skeleton": SKELETON,
            "accumulate()": "with accelerator.accumulate(model), the loss is the cross entropy of each micro-batch",
        },
        "resume": {
            "step": SAVED + "skip_first_batches()",
            "step, seedable sampler": SAVED + "skip_first_batches(), use_seedable_sampler=True",
            "step, stateful loader": SAVED + "use_stateful_dataloader=True (torchdata)",
            "step, stateful loader, seedable sampler": SAVED + "both of these options",
            "epoch": "save_state() after every epoch, load_state()",
        },
        "lbfgs": {"": "no guide joins the two; optimizer.step(closure) inside accumulate() is accepted, and measured"},
        "schedule": {"": "scheduler.step() inside accumulate(), the scheduler prepared"},
        "save": {"step": "save_state() with automatic naming and total_limit=2; load_state() takes the newest folder"},
        "memory": {
            "": "find_executable_batch_size: the whole function again with 0.9 of the batch, as its guide has it"
        },
    },
    undocumented=frozenset({"lbfgs"}),
)

IGNITE = Offer(
    "Ignite",
    {
        "ragged": {"": "create_supervised_trainer(gradient_accumulation_steps=3)"},
        "short window": {"": "create_supervised_trainer(gradient_accumulation_steps=4), one epoch of 10 batches"},
        "tokens": {"": "create_supervised_trainer(gradient_accumulation_steps=4)"},
        "resume": {
            "step": "DeterministicEngine, Checkpoint on ITERATION_COMPLETED, load_objects" + NEWEST,
            "epoch": "DeterministicEngine, Checkpoint on EPOCH_COMPLETED, load_objects" + NEWEST,
        },
        "schedule": {
            "every iteration": "LRScheduler on ITERATION_STARTED, as its documentation shows",
            "every=4": "LRScheduler(use_legacy=True) on ITERATION_COMPLETED(every=4), one's own arithmetic",
        },
        "save": {"step": "Checkpoint(n_saved=2), DiskSaver (atomic by default), ITERATION_COMPLETED" + NEWEST},
    },
    {"lbfgs": "the supervised step calls optimizer.step() without a closure", "memory": NO_MEMORY},
)

TRANSFORMERS = Offer(
    "HF Trainer",
    {
        "ragged": {"model's loss": MEAN, "compute_loss_func": COUNTED},
        "short window": {"model's loss": MEAN, "compute_loss_func": COUNTED},
        "tokens": {
            "compute_loss_func": COUNTED + "; Transformers' own language models do the same",
            "model's loss": MEAN,
        },
        "resume": {
            "step": "save_strategy='steps', save_steps=1, train(resume_from_checkpoint=True)",
            "epoch": "save_strategy='epoch', train(resume_from_checkpoint=True)",
        },
        "schedule": {"": "gradient_accumulation_steps=4, optimizers=(optimizer, LambdaLR)"},
        "save": {"step": "save_steps=1, save_total_limit=2; get_last_checkpoint() takes the newest folder"},
        "memory": {"": "auto_find_batch_size=True: its inner loop again with 0.9 of the batch"},
    },
    {"lbfgs": "the training loop calls optimizer.step() without a closure"},
)

SKORCH = Offer(
    "skorch",
    {
        "ragged": {"": RECIPE},
        "short window": {"": RECIPE + " for just this case"},
        "tokens": {"": RECIPE},
        "resume": {"epoch": "Checkpoint(monitor=None) with LoadInitState; max_epochs less what is done, by hand"},
        "schedule": {"": RECIPE + ", with LRScheduler(LambdaLR, step_every='batch')"},
        "save": {"epoch": "Checkpoint(monitor=None) at epoch ends with LoadInitState, which finds the files"},
    },
    {
        "lbfgs": "LBFGS alone is offered and exact; the FAQ's recipe for accumulation calls step() without a closure",
        "memory": NO_MEMORY,
    },
)

KERAS = Offer(
    "Keras",
    {
        "ragged": {"": "SGD(gradient_accumulation_steps=3), fit(batch_size=4)"},
        "short window": {"": "SGD(gradient_accumulation_steps=4), fit() for one epoch of 10 batches"},
        "tokens": {"": "SGD(gradient_accumulation_steps=4), SparseCategoricalCrossentropy(ignore_class=-100)"},
        "resume": {
            "step": "BackupAndRestore(save_freq=1): the weights of the step, but the epoch is begun again",
            "epoch": "BackupAndRestore(save_freq='epoch')",
        },
        "schedule": {"": "SGD(LearningRateSchedule, gradient_accumulation_steps=4)"},
        "save": {
            "step": "BackupAndRestore(save_freq=1)",
            "step, double_checkpoint": "BackupAndRestore(save_freq=1, double_checkpoint=True)",
        },
    },
    {"lbfgs": "Keras has optimizers of its own; LBFGS is not among them", "memory": NO_MEMORY},
)

GRADSTEP = Offer(
    "gradstep",
    {
        "ragged": {"": "fit(micro_batch=4) on a batch of 9"},
        "short window": {"": "fit(micro_batch=4), batches of 16, one epoch of 40 samples"},
        "tokens": {"": "fit(micro_batch=2), torch's CrossEntropyLoss"},
        "resume": {
            "step": "fit(out=..., resume=True, checkpoint={'every': '1 step'}); keyed dropout",
            "epoch": "fit(out=..., resume=True, checkpoint={'every': '1 epoch'})",
        },
        "lbfgs": {"": "fit(optimizer=LBFGS, micro_batch=4) on a batch of 16"},
        "schedule": {"": "fit(schedule=..., micro_batch=4)"},
        "save": {"epoch": "fit(out=..., resume=True, checkpoint={'every': '1 epoch'})"},
    },
    {"memory": "an error of memory ends the run; micro_batch is chosen by hand"},
)

OFFERS = {
    "lightning": LIGHTNING,
    "accelerate": ACCELERATE,
    "ignite": IGNITE,
    "transformers": TRANSFORMERS,
    "skorch": SKORCH,
    "keras": KERAS,
    "gradstep": GRADSTEP,
}
