"""Bugs to plant: each makes a run lose or repeat something, or breaks a rule by which it does not.

A bug is one or several places where a text of src/gradstep is replaced, and the test that must fail for it.
"""

from __future__ import annotations

from dataclasses import dataclass

MIDWAY = "tests/invariance/test_resume_midway.py::test_paused_at_every_step_and_resumed_is_as_never_paused"
MOMENTUM = f"{MIDWAY}[momentum, dropout, augmentation-changes0]"
AVERAGE = f"{MIDWAY}[Adam, average, cosine-changes1]"
PLATEAU = f"{MIDWAY}[plateau, best, early stop-changes2]"
REWIND = f"{MIDWAY}[steps left out-changes5]"
STREAM = f"{MIDWAY}[Adam, average, cosine-changes6]"
SIGNAL = (
    "tests/invariance/test_resume_midway.py::test_a_signal_in_any_evaluation_leaves_the_rest_of_its_step_to_the_resume"
)
ORDER = "tests/invariance/test_disk_order.py::"
POWER = "tests/test_crash_model.py::test_no_crash_at_any_operation_loses_what_was_acknowledged"
FLIPPED = (
    "tests/test_checkpoint.py::test_one_flipped_bit_anywhere_is_rejected_by_the_files_name_and_the_one_before_is_used"
)


@dataclass(frozen=True, slots=True)
class Edit:
    """`text`, which stands once in `file`, becomes `instead`."""

    file: str
    text: str
    instead: str


@dataclass(frozen=True, slots=True)
class Bug:
    """`name` says what is wrong, `test` is the one that must fail."""

    name: str
    test: str
    edits: tuple[Edit, ...]


def _bug(name: str, test: str, *places: tuple[str, str, str]) -> Bug:
    return Bug(name, test, tuple(Edit(*place) for place in places))


LOST = [
    _bug(
        "momentum is not saved",
        MOMENTUM,
        ("optimizer_state.py", "put(name, dict(held[parameter]), tensors)", "put(name, {}, tensors)"),
    ),
    _bug(
        "an optimizer's second moment is not saved",
        AVERAGE,
        (
            "optimizer_state.py",
            "dict(held[parameter])",
            "{slot: each for slot, each in held[parameter].items() if slot != 'exp_avg_sq'}"
            " | {'exp_avg_sq': torch.zeros_like(parameter)}",
        ),
    ),
    _bug(
        "the order is drawn from torch's live stream",
        MOMENTUM,
        (
            "data/order.py",
            "np.random.Philox(key=key(seed, purpose, epoch)).random_raw(length)",
            "np.random.Philox(key=key(seed, purpose, epoch)).random_raw(length)"
            " if purpose != 'order' else torch.rand(length).numpy()",
        ),
    ),
    _bug(
        "augmentations draw from torch's live stream",
        MOMENTUM,
        (
            "data/draws.py",
            "words.reshape(len(numbers), 4 * blocks.size)[:, :count] / 2.0**32",
            "torch.rand(len(numbers), count, dtype=torch.float64).numpy()",
        ),
    ),
    _bug(
        "the model draws from torch's live stream",
        STREAM,
        (
            "step.py",
            '    seed_model(device, key(state.seed, "model", index=state.step))\n    scale = begin(state, guard)',
            "    scale = begin(state, guard)",
        ),
    ),
    _bug(
        "the feed begins at the epoch's start",
        MOMENTUM,
        (
            "loop.py",
            "training.feed.start(state.step)",
            "training.feed.start(state.step // training.clock.steps_per_epoch * training.clock.steps_per_epoch)",
        ),
    ),
    _bug(
        "schedules count from where this process began",
        AVERAGE,
        (
            "setup.py",
            "            self.scheduled.apply(self.state)",
            "            began, step = _BEGAN.setdefault(id(self), self.state.step), self.state.step\n"
            "            self.state.step -= began\n"
            "            self.scheduled.apply(self.state)\n"
            "            self.state.step = step",
        ),
        (
            "setup.py",
            "@dataclass(slots=True)\nclass Training:",
            "_BEGAN = {}\n\n\n@dataclass(slots=True)\nclass Training:",
        ),
    ),
    _bug(
        "the best is lost",
        PLATEAU,
        ("state.py", '"standing": _spelled_out(self.standing)', '"standing": _spelled_out(Standing())'),
    ),
    _bug(
        "a plateau forgets what it has seen",
        PLATEAU,
        ("state.py", 'zip(self.plateaus, numbers["plateaus"], strict=True)', "zip(self.plateaus, [])"),
    ),
    _bug(
        "the average is not loaded",
        AVERAGE,
        ("state.py", "self._modules() if file in files]", 'self._modules() if file in files and file != "ema"]'),
    ),
    _bug(
        "how many weights the average is of is not known",
        AVERAGE,
        ("state.py", "self.ema.resume(self.step)", "self.ema.resume(0)"),
    ),
    _bug(
        "the epoch's sums are not restored",
        MOMENTUM,
        (
            "record/ledger.py",
            '{name: float(total) for name, total in numbers["sums"].items()}',
            "{}",
        ),
        (
            "record/ledger.py",
            '{name: float(units) for name, units in numbers["units"].items()}',
            "{}",
        ),
    ),
    _bug(
        "the interval's mean is not restored",
        MOMENTUM,
        (
            "record/ledger.py",
            'ExactMean([float(partial) for partial in numbers["interval"]], numbers["count"])',
            "ExactMean()",
        ),
    ),
    _bug(
        "the training metrics' counts are not restored",
        MOMENTUM,
        ("record/recorder.py", 'if name in numbers["metrics"]:', "if False:"),
    ),
    _bug(
        "samples are counted from where this process began",
        MOMENTUM,
        ("state.py", 'numbers["step"], numbers["samples"], list', 'numbers["step"], 0, list'),
    ),
    _bug(
        "what was left out is not saved",
        REWIND,
        ("state.py", '"left_out": list(self.left_out)', '"left_out": []'),
    ),
    _bug(
        "a step that is left out keeps its buffers",
        "tests/invariance/test_left_out.py::test_a_step_left_out_changes_no_weight_no_slot_and_no_buffer",
        ("finite.py", "buffer.copy_(before)", "pass"),
    ),
    _bug(
        "the start of an epoch is recorded again",
        MOMENTUM,
        ("opening.py", "and not begun and not rest", "and not rest"),
    ),
    _bug(
        "the rest of a step is done twice after a signal in its evaluation",
        SIGNAL,
        ("session.py", "self._write(self._rest)", "self._write(self._progress(rest=True))"),
    ),
    _bug(
        "the rest of a step is never done after a signal in its evaluation",
        SIGNAL,
        ("keeper.py", 'bool(numbers.pop("rest"))', 'bool(numbers.pop("rest")) and False'),
    ),
    _bug(
        "the state changes after it was saved",
        PLATEAU,
        (
            "loop.py",
            "                    if session.evaluation_due:\n",
            "                    if session.save_due:\n                        session.save()\n"
            "                    if session.evaluation_due:\n",
        ),
        (
            "loop.py",
            "                    if session.save_due:\n                        session.save()\n"
            "                    if session.over:\n",
            "                    if session.over:\n",
        ),
    ),
    _bug(
        "the snapshot is not a copy",
        "tests/test_state.py::test_a_snapshot_stays_what_it_was_while_training_goes_on",
        ("snapshot.py", 'value.to("cpu", copy=True)', 'value.to("cpu")'),
    ),
]

DISK = [
    _bug(
        "files are not forced to the disk",
        POWER,
        ("disk.py", "os.fsync(descriptor)  # waits for the disk", "pass"),
    ),
    _bug(
        "a checkpoint's name is not forced to the disk",
        POWER,
        ("checkpoint.py", "disk.sync_folder(target.parent)  # only now is it there for good", "pass"),
    ),
    _bug(
        "the names of a checkpoint's files are not forced to the disk",
        POWER,
        ("checkpoint.py", "disk.sync_folder(temporary)  # files without names are lost", "pass"),
    ),
    _bug(
        "a pruned checkpoint's files go before its name is gone for good",
        POWER,
        ("retention.py", "        if superfluous:\n            disk.sync_folder(folder)\n", ""),
    ),
    _bug(
        "older checkpoints go before the new one is there",
        f"{ORDER}test_no_checkpoint_goes_before_a_newer_one_is_there_for_good",
        (
            "keeper.py",
            "            path = checkpoint.write(folder",
            "            for old in checkpoint.steps(folder):\n"
            '                disk.rename(checkpoint.at(folder, old), folder / f".trash-{old:08d}")\n'
            "            path = checkpoint.write(folder",
        ),
    ),
    _bug(
        "the best is pruned",
        PLATEAU,
        ("keeper.py", "if (best := _best_of(folder, step)) is not None}", "if False}"),
    ),
    _bug(
        "the log is not forced to the disk before a checkpoint that counts on it",
        f"{ORDER}test_the_rows_that_a_checkpoint_counts_on_are_on_the_disk_before_it_has_its_name",
        ("keeper.py", "numbers, before_commit=journal.sync)", "numbers)"),
    ),
    _bug(
        "the log is not cut back on a resume",
        "tests/invariance/test_killed.py::test_killed_and_resumed_is_as_never_killed[deaths1-changes1]",
        ("disk.py", "        os.ftruncate(descriptor, keep)\n", ""),
    ),
    _bug(
        "later checkpoints are set aside after the log was cut",
        f"{ORDER}test_killed_at_any_change_while_going_back_to_an_earlier_checkpoint_a_run_can_be_gone_on_with",
        ("keeper.py", "if aside := retention.set_aside(folder, saved.step, self.place.metrics):", "if aside := []:"),
        (
            "session.py",
            "        self._open_records(progress, whole)\n",
            "        self._open_records(progress, whole)\n"
            "        if place is not None and progress is not None:\n"
            "            retention.set_aside(place.checkpoints, self.state.step)\n",
        ),
    ),
]

BELIEVED = [
    _bug(
        "a tensor file's hash is not looked at",
        FLIPPED,
        ("checkpoint.py", "disk.hashed(path / name) == listed[name][1]", "True"),
    ),
    _bug(
        "the hash of state.json is not looked at",
        FLIPPED,
        ("checkpoint.py", "hashlib.sha256(content).hexdigest() == listed[_STATE][1]", "True"),
    ),
    _bug(
        "the newest name is believed without a manifest",
        "tests/test_checkpoint.py::test_a_file_cut_short_longer_or_missing_is_rejected_by_name",
        (
            "checkpoint.py",
            "    step, listed = _manifest(path)\n",
            "    if (path / _MANIFEST).exists():\n        step, listed = _manifest(path)\n    else:\n"
            "        step = int(path.name[5:])\n"
            "        listed = {name: (disk.size(path / name), disk.hashed(path / name)) for name in found}\n"
            "        found.append(_MANIFEST)\n",
        ),
    ),
    _bug(
        "the journal's hash is not looked at",
        "tests/test_journal.py::test_a_byte_changed_or_missing_before_the_mark_is_refused_and_the_record_left_as_it_is",
        ("record/journal.py", "hashlib.sha256(known).hexdigest() != since.sha256", "False"),
    ),
    _bug(
        "two processes may have one run",
        "tests/invariance/test_killed.py::test_one_run_has_one_process",
        ("rundir.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
    ),
]

SIGNALS = [
    _bug(
        "a second signal is not heard",
        "tests/test_interrupt.py::test_a_second_signal_ends_at_once[SIGINT-SIGINT]",
        ("interrupt.py", "os._exit(128 + number)", "pass"),
    ),
    _bug(
        "a wait is not cut short",
        "tests/test_interrupt.py::test_leaving_while_raising_leaves",
        ("interrupt.py", "        self.depth -= 1\n", "        pass\n"),
    ),
    _bug(
        "workers hear SIGTERM",
        "tests/test_data_workers.py::test_a_signal_to_the_whole_group_leaves_the_workers_at_work",
        ("data/answering.py", '("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")', '("SIGINT", "SIGHUP", "SIGUSR1")'),
    ),
    _bug(
        "workers outlive their process",
        "tests/test_data_workers.py::test_no_worker_outlives_a_process_that_is_killed",
        ("data/answering.py", "        self._die_with_parent()\n", ""),
    ),
]

BUGS = [*LOST, *DISK, *BELIEVED, *SIGNALS]
