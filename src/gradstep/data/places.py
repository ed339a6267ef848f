"""Where data live on the user's disk: named data sets, and the cache of decoded images."""

from __future__ import annotations

import os
from pathlib import Path

_OFF = ("off", "no", "false", "0")


def data_folder() -> Path:
    """`$GRADSTEP_DATA`, else the user's cache folder."""
    given = os.environ.get("GRADSTEP_DATA")
    return Path(given) if given else _user_cache()


def cache_folder(what: str = "images") -> Path | None:
    """Where decoded images (or the verdicts of plans) are kept: in `$GRADSTEP_CACHE`, else in the user's cache folder.

    None for `off`. Not in `$GRADSTEP_DATA`, which may be shared and read-only: what is kept belongs to this machine.
    """
    given = os.environ.get("GRADSTEP_CACHE")
    if given and given.lower() in _OFF:
        return None
    return ((Path(given) if given else _user_cache()) / what).absolute()


def _user_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "gradstep"
