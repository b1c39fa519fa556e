"""Policy files: TOML or JSON as people write it, checked before anything runs; written with every field explained.

What belongs here: reading, writing and comparing policies. What does not: what a policy means (`policy.py`),
which one is in force (`in_force.py`).
"""

import difflib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compalign_dagster.errors import InputError
from compalign_dagster.selection.policy import Policy, Rules

_MOST_BYTES = 1 << 20
_SHOWN = 120
_ORDER = ("version", "keep_fraction", "keep_count", "reward_floor", "languages", "unknown_language",
          "caption_patterns", "most_per_domain", "most_per_duplicate_group", "most_per_semantic_cluster",
          "per_corpus", "count_per_corpus", "floors", "sampling")  # fmt: skip
"""As written: tables last, because a TOML table ends where the next begins."""


@dataclass(frozen=True)
class Difference:
    """One field of two policies, as JSON values."""

    field: str
    old: Any
    new: Any
    meaning: str

    @property
    def remakes_lists(self) -> bool:
        """Whether ranked lists are made under this field, and not only cut by it."""
        return self.field in Rules.model_fields


def read(path: Path) -> Policy:
    """The policy of a file: `.toml`, else JSON. `InputError` names every field that is wrong, in one line."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MOST_BYTES else b""
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    if size > _MOST_BYTES:
        raise _unreadable(path, f"{size:,} bytes")
    return parse(data, str(path), toml=path.suffix.lower() == ".toml")


def parse(data: bytes, name: str, *, toml: bool) -> Policy:
    """The policy in the bytes of a file called `name`. Numbers are read as the decimals they are."""
    try:
        text = data.decode()
        found = tomllib.loads(text, parse_float=Decimal) if toml else _json(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, str(error).splitlines()[0]) from None
    if not isinstance(found, dict):
        raise _unreadable(name, f"{type(found).__name__} where fields were expected")
    return checked(found, name)


def checked(fields: dict[str, Any], name: str) -> Policy:
    """The policy of these fields. Raises `InputError` for `name` with all that is wrong."""
    problems = [*_unknown(fields), *_booleans(fields)]
    try:
        policy = Policy.model_validate({key: value for key, value in fields.items() if key in Policy.model_fields})
    except ValidationError as error:
        problems += [_problem(entry) for entry in error.errors()]
    except InputError as error:  # of the policy's own checks, which stop at the first
        problems.append(f"{error.what.removeprefix('policy: ')} should be {error.expected}, found {error.found}")
    if problems:
        raise _wrong(name, problems)
    return policy


def written(policy: Policy) -> str:
    """TOML that reads back as this policy: each field with its meaning, fields without effect as comments."""
    values = policy.model_dump(mode="json")
    lines = ["# A selection policy. Order of application: block list, languages, caption patterns, floors, reward"]
    lines.append("# floor, sampling, then caps, then the cut; a dropped pair has the first reason that applies.")
    for name in _ORDER:
        lines += ["", f"# {Policy.model_fields[name].description}"]
        value = values.get(name, {} if name == "sampling" else None)
        lines += _table(name, value) if isinstance(value, dict) else [_line(name, value)]
    return "\n".join(lines) + "\n"


def differences(old: Policy, new: Policy) -> list[Difference]:
    """The fields in which two policies differ, in the order in which files have them."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [
        Difference(name, before.get(name), after.get(name), Policy.model_fields[name].description or "")
        for name in _ORDER
        if before.get(name) != after.get(name)
    ]


def _line(name: str, value: Any) -> str:
    if value is None or value == []:
        return f"# {name} ="
    bare = name == "keep_fraction"  # a decimal in JSON is a string
    return f"{name} = {value if bare else _toml(value)}"


def _table(name: str, values: dict[str, Any]) -> list[str]:
    if not values:
        return [f"# [{name}]"]
    bare = name == "per_corpus"
    return [f"[{name}]", *(f"{_toml(key)} = {value if bare else _toml(value)}" for key, value in values.items())]


def _toml(value: Any) -> str:
    """JSON's strings, numbers and lists are TOML's, but for one character."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text.replace("e+", "e") if isinstance(value, float) else text


def _json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant}, which is no number")

    return json.loads(text, parse_float=Decimal, parse_constant=refuse, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _unknown(fields: dict[str, Any]) -> Iterator[str]:
    for name in fields:
        if name not in Policy.model_fields:
            close = difflib.get_close_matches(name, Policy.model_fields, n=1)
            hint = f", did you mean {close[0]}" if close else f" among {', '.join(Policy.model_fields)}"
            yield f"{_shown(name)} is no field{hint}"


def _booleans(fields: dict[str, Any]) -> Iterator[str]:
    """Pydantic takes true for 1; no field of a policy is a truth value."""
    for name, value in fields.items():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) for item in inner):
            yield f"{name} is true or false, which no field is"


def _problem(entry: Any) -> str:
    place = ".".join(str(part) for part in entry["loc"]) or "policy"
    said = entry["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return f"{_shown(place)} {said[:1].lower()}{said[1:]}, found {_shown(entry['input'])}"


def _wrong(name: str, problems: list[str]) -> InputError:
    return InputError(
        f"policy {name}",
        expected="fields as `compalign policy show` explains them",
        found="; ".join(problems),
        remedy="Nothing was changed: correct the file.",
    )


def _unreadable(name: Path | str, found: str) -> InputError:
    return InputError(
        f"policy {name}",
        expected="a TOML (.toml) or JSON file of at most 1 MiB",
        found=found,
        remedy="`compalign policy show > policy.toml` writes one to start from.",
    )


def _shown(value: Any) -> str:
    """A value from a file, short and unable to steer a terminal."""
    text = repr(value) if isinstance(value, str) else str(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
