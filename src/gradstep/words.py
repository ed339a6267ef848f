"""What people type who come from elsewhere, and what it is called here: used only to answer them."""

from __future__ import annotations

SYNONYMS = {
    **dict.fromkeys(("learning_rate", "lr", "lr0"), "optimizer.lr"),
    **dict.fromkeys(("momentum", "weight_decay", "betas", "nesterov"), "optimizer.{}"),
    **dict.fromkeys(("clip_grad_norm", "max_grad_norm", "gradient_clip_val", "grad_clip"), "clip"),
    **dict.fromkeys(("initialization", "initialisation", "initialize", "weight_init"), "init"),
    **dict.fromkeys(("param_groups", "parameter_groups"), "groups"),
    **dict.fromkeys(("ema_decay", "model_ema"), "ema"),
    **dict.fromkeys(("batch", "bs", "batchsize", "train_batch_size", "per_device_train_batch_size"), "batch_size"),
    **dict.fromkeys(("microbatch", "device_train_microbatch_size", "iter_size"), "micro_batch"),
    **dict.fromkeys(("max_epochs", "num_epochs", "num_train_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("max_steps", "iterations", "max_iters"), "steps"),
    **dict.fromkeys(("loss", "loss_fn", "objective"), "criterion"),
    **dict.fromkeys(("dataset", "train_data", "train"), "data.train"),
    **dict.fromkeys(("val", "validation", "valid", "val_data"), "data.valid"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), "workers"),
    **dict.fromkeys(("early_stopping", "early_stop"), "patience"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_scheduler_type", "sched"), "schedule"),
    **dict.fromkeys(("accelerator", "gpu", "use_cpu"), "device"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("amp", "dtype", "mixed_precision", "fp16", "bf16"), "precision"),
    **dict.fromkeys(("compile", "memory_format"), "plan.{}"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("save_every", "save_steps"), "checkpoint.every"),
    **dict.fromkeys(("save_total_limit", "save_top_k", "keep_checkpoints"), "checkpoint.keep"),
    **dict.fromkeys(("detect_anomaly", "terminate_on_nan", "nan_policy", "skip_nan", "on_nan"), "on_nonfinite"),
    **dict.fromkeys(("callbacks", "callback"), "hooks"),
    **dict.fromkeys(("warmup", "warmup_steps", "warmup_epochs"), "schedule.warmup"),
    **dict.fromkeys(("eval_every", "eval_steps", "val_check_interval"), "evaluate_every"),
    **dict.fromkeys(("log_interval", "logging_steps", "log_every_n_steps"), "log_every"),
    **dict.fromkeys(("metric",), "metrics"),
    **dict.fromkeys(("net", "arch", "architecture"), "model"),
    **dict.fromkeys(("augment", "augmentation", "augmentations"), "data.augment"),
    **dict.fromkeys(("transforms", "images", "columns", "targets", "on_bad", "transform", "limit"), "data.{}"),
    **dict.fromkeys(("image_size", "img_size", "imgsz", "resolution"), "data.images.size"),
    **dict.fromkeys(("mixup", "cutmix"), "data.augment=[{}]"),
}


# What is said another way here.
_ACCUMULATION = (
    "batch_size counts all the samples of an optimizer step, and micro_batch how many of them are in memory at once: "
    "for 4 times 16 samples, batch_size=64 micro_batch=16"
)
OTHERWISE = dict.fromkeys(
    ("gradient_accumulation_steps", "accumulate_grad_batches", "accumulation_steps", "grad_accum"), _ACCUMULATION
) | dict.fromkeys(("freeze", "frozen"), "what is frozen is a group's: groups='{features: {freeze: 2 epochs}}'")
