"""Configuration files of the `diffusers` library: JSON objects whose missing fields have defaults.

A field that is not known may change what a model computes, and is refused, and so is a value that is not supported,
with all others that are at fault. Fields that begin with an underscore are the library's records, as of its version,
and are passed over but for the class. What JSON holds may be of any type, so that fields are taken through the readers
here: true is no whole number. Errors are ``ValueError``; `folder`, which knows the file, puts its path before them.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

Config: TypeAlias = dict[str, Any]


def complete(config: Mapping[str, Any], classes: Collection[str], defaults: Mapping[str, Any]) -> Config:
    """Return `config` with the library's default for each field that it lacks.

    Args:
        config: the file's content.
        classes: names that its `_class_name` may be.
        defaults: every field that is known, and the value it has if it is missing.

    Raises:
        ValueError: another class, or a field that is not known.
    """
    found = config.get("_class_name")
    if found not in classes:
        raise ValueError(f"_class_name: expected {' or '.join(classes)}, got {found!r}")
    unknown = sorted(name for name in config if name not in defaults and not name.startswith("_"))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: expected only known fields, got {_shown(config, unknown)}")
    return {**defaults, **config}


def require(config: Mapping[str, Any], supported: Mapping[str, Collection[Any]]) -> None:
    """Raise ValueError, with every field that is at fault, unless each has one of its supported values."""
    faults = [
        f"{name}: expected {' or '.join(map(repr, values))}, got {config[name]!r}"
        for name, values in supported.items()
        if config[name] not in values
    ]
    if faults:
        raise ValueError(f"not supported: {'; '.join(faults)}")


def count(config: Mapping[str, Any], name: str, minimum: int = 1) -> int:
    """Return a field that is a whole number of at least `minimum`, or raise ValueError."""
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected a whole number of at least {minimum}, got {value!r}")
    return value


def number(config: Mapping[str, Any], name: str) -> float:
    """Return a field that is a number, or raise ValueError."""
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}: expected a number, got {value!r}")
    return float(value)


def names(config: Mapping[str, Any], name: str) -> list[Any]:
    """Return a field that is a list which is not empty, or raise ValueError."""
    value = config[name]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name}: expected a list, got {value!r}")
    return list(value)


def _shown(config: Mapping[str, Any], fields: list[str]) -> str:
    return ", ".join(f"{name} = {config[name]!r:.40}" for name in fields)
