"""The command line. One file per command; none imports torch before it must, so that --help is quick."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType

import typer

from gradstep.cli import data_cache, data_get, data_show, evaluate, predict, recipes, resume, train
from gradstep.errors import GradstepError, UserCodeError, user_frames

app = typer.Typer(
    name="gradstep",
    help="Runs the training process of a PyTorch model. Start with: gradstep train digits",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("resume")(resume.resume)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("recipes")(recipes.recipes)
data = typer.Typer(
    name="data", help="Fetch named data sets, look at data, and see what is kept of it.", no_args_is_help=True
)
data.command("get")(data_get.get)
data.command("show")(data_show.show)
data.command("cache")(data_cache.cache)
app.add_typer(data)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        from gradstep import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """The console script: what went wrong goes to standard error, and its kind into the exit code."""
    sys.path.insert(0, os.getcwd())  # module:object is looked for where the user stands first
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA begins, or its sums may differ by run
    _hear_signals()
    try:
        app()
    except GradstepError as error:
        if isinstance(error, UserCodeError) and error.__cause__ is not None:
            _print_user_traceback(error.__cause__)
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if not user_frames(error)[1:]:  # the first frame is the console script's own
            raise
        _print_user_traceback(error)
        sys.exit(1)


def _hear_signals() -> None:
    """Until it trains, and afterwards: while it trains, `fit` hears them itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup
        signal.signal(signal.SIGHUP, _leave)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _nothing_to_save)


def _nothing_to_save(number: int, frame: FrameType | None) -> None:
    """A wish to save, which the system would answer by ending the process."""


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    print(f"{signal.Signals(number).name}: nothing was being trained, and nothing is lost.", file=sys.stderr)
    sys.exit(128 + number)


def _print_user_traceback(error: BaseException) -> None:
    """The traceback through the user's code, without torch's frames and ours."""
    script = os.path.basename(sys.argv[0])
    frames = [frame for frame in user_frames(error) if os.path.basename(frame.filename) != script]
    if frames:
        print("Traceback (most recent call last):", file=sys.stderr)
        print("".join(traceback.format_list(frames)), end="", file=sys.stderr)
    print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr)
