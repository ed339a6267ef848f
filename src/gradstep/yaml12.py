"""YAML 1.2's core schema on top of PyYAML, whose own is YAML 1.1: `1e-3` is a number here, and `no` a word."""

from __future__ import annotations

import re
from typing import Any

import yaml

from gradstep.errors import RecipeError

_DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """Safe: it makes plain values only."""


class _Dumper(yaml.SafeDumper):
    """Writes so that `_Loader` reads the same back: a word that looks like a number of YAML 1.2 is quoted."""


_SCALARS = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
]
_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {}
for _kind in (_Loader, _Dumper):
    for _tag, _pattern, _first in _SCALARS:
        _starts = [None if c == "\0" else c for c in _first]
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _starts)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)  # YAML 1.2: 010 is ten


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            mark = node.value[place][0].start_mark
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", mark)
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(text: str, name: str) -> Any:
    """A YAML 1.2 document. RecipeError gives the line.

    Aliases and deep nests are refused: a few bytes of either can fill the memory or the afternoon.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                raise RecipeError(f"{name}: YAML aliases (*name) are not read. Write the value out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise RecipeError(f"{name}: it is nested more than {_DEEPEST} deep, as no recipe is.")
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{name}{where}: not YAML ({getattr(error, 'problem', None) or error}).") from None


def write_yaml(document: Any) -> str:
    """A document that `read_yaml` reads the same back."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
    return text
