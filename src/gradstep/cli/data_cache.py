"""`gradstep data cache [--clear [NAME...]]`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from gradstep.data.shelf import Kept

_NAME = 12  # characters of a cache's name that are shown, and asked for


def cache(
    names: list[str] = typer.Argument(None, metavar="[NAME]...", help="With --clear: only these, as the list shows."),
    clear: bool = typer.Option(False, "--clear", help="Remove all caches, or those that are named."),
) -> None:
    """Show the decoded images that are kept on disk ($GRADSTEP_CACHE, else the user's cache), or remove them."""
    from gradstep.data.places import cache_folder
    from gradstep.data.shelf import kept_in, limit
    from gradstep.errors import OutputError, RecipeError

    folder = cache_folder()
    if folder is None:
        print(f"{'cache':<10}off (GRADSTEP_CACHE)")
        return
    if names and not clear:
        raise RecipeError(f"'{names[0]}' alone says nothing. To remove it: gradstep data cache --clear {names[0]}")
    try:
        found = kept_in(folder)
        if clear:
            _clear(found, names or [])
            return
        for kept in found:
            print(f"{kept.path.name[:_NAME]}  {_described(kept)}")
        most = limit(folder) if folder.exists() else None
    except OSError as error:
        raise OutputError(f"'{folder}' can't be read or changed ({error.strerror}).") from error
    print(f"{'folder':<10}{folder}")
    of = f" of at most {_bytes(most)}" if most is not None else ""
    print(f"{'total':<10}{len(found):,} kept, {_bytes(sum(kept.size for kept in found))}{of}")


def _clear(found: list[Kept], names: list[str]) -> None:
    from gradstep import disk
    from gradstep.data.shelf import remove_left
    from gradstep.errors import RecipeError, listed

    for name in names:
        if len([kept for kept in found if kept.path.name.startswith(name)]) != 1:
            known = listed(kept.path.name[:_NAME] for kept in found) if found else "none"
            raise RecipeError(f"--clear: '{name}' is not the name of one cache. There are: {known}.")
    freed = 0
    for kept in found:
        if names and not any(kept.path.name.startswith(name) for name in names):
            continue
        if kept.whole:
            disk.remove(kept.path)
        elif not remove_left(kept.path):  # it is being made
            continue
        freed += kept.size
    print(f"{'freed':<10}{_bytes(freed)}")


def _described(kept: Kept) -> str:
    from gradstep.data.cache import about

    if not kept.whole:
        return f"{_bytes(kept.size)}, in the making, or left by a process that was killed"
    try:
        header, _, shape = about(kept.path)
    except (OSError, ValueError):
        return f"{_bytes(kept.size)}, damaged: the next use makes it anew"
    size = "×".join(map(str, shape[1:]))
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.used / 1e9))
    return f"{shape[0]:,} images of {size}, {_bytes(kept.size)}, last used {used}, from {header['folder']}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 10**9 else f"{count / 1e6:,.1f} MB"
