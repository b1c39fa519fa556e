"""Whether an exported folder is what its Croissant description says: every key, every file, every digest.

Validators of Croissant follow JSON-LD, where a key that nobody knows means nothing, so a misspelt one passes; and they
compare digests only of files whose records they read. What belongs here: refusing both. What does not: whether tools
can load the dataset, which `mlcroissant` tells.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from compalign_dagster.selection import croissant
from compalign_dagster.versions import digest_file

RECORD = "export.json"
_MOST_BYTES = 64 << 20
_REFERENCE = frozenset({"@id"})
_KEYS = {
    "sc:Dataset": frozenset(
        {
            "@context", "@type", "citeAs", "conformsTo", "datePublished", "description", "distribution", "identifier",
            "license", "name", "recordSet", "url", "version",
            "prov:wasDerivedFrom", "prov:wasGeneratedBy",
            "rai:dataBiases", "rai:dataCollection", "rai:dataLimitations", "rai:dataPreprocessingProtocol",
            "rai:machineAnnotationTools", "rai:personalSensitiveInformation",
        }
    ),
    "cr:FileObject": frozenset(
        {"@id", "@type", "contentSize", "contentUrl", "description", "encodingFormat", "name", "sha256"}
    ),
    "cr:RecordSet": frozenset({"@id", "@type", "description", "field", "key", "name"}),
    "cr:Field": frozenset({"@id", "@type", "dataType", "description", "name", "source"}),
    "prov:Entity": frozenset({"@id", "@type", "name"}),
    "prov:Activity": frozenset({"@id", "@type", "description", "name", "prov:endedAtTime", "softwareVersion"}),
}  # fmt: skip
"""Every key that a description may have, by `@type`: those that `croissant.describe` writes, all of them."""
_UNTYPED = {
    "source": frozenset({"extract", "fileObject"}),
    "extract": frozenset({"column"}),
    "fileObject": _REFERENCE,
    "key": _REFERENCE,
}


def check(folder: Path) -> list[str]:
    """What is wrong with an exported folder, one line for each fault: where, expected, found. Empty when nothing is.

    Files are read whole. The folder may be a stranger's: nothing outside it is opened.
    """
    path = folder / croissant.NAME
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return [f"{croissant.NAME}: expected a description of at most {_MOST_BYTES >> 20} MiB, found none"]
    try:
        told = json.loads(path.read_bytes())
        found = misspelt(told)
    except (ValueError, RecursionError) as error:
        return [f"{croissant.NAME}: expected JSON of a few levels, found {str(error)[:200]}"]
    return [*found, *_files(folder, told if isinstance(told, dict) else {})]


def misspelt(told: Any) -> list[str]:
    """The keys and types of a description that none is meant to have, and the missing ones."""
    if not isinstance(told, Mapping) or told.get("@type") != "sc:Dataset":
        return [f"{croissant.NAME}: expected an object of @type sc:Dataset, found another"]
    found = [] if told.get("@context") == croissant.CONTEXT else ["@context: expected the one that exports have"]
    body = {name: value for name, value in told.items() if name != "@context"}
    return [*found, *_walk(body, "", "@context")]


def _walk(value: Any, where: str, known: str = "", name: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for at, item in enumerate(value):
            yield from _walk(item, f"{where}[{at}]", name=name)
    elif isinstance(value, Mapping):
        kind = value.get("@type")
        allowed = _KEYS.get(kind) if isinstance(kind, str) else _UNTYPED.get(name)
        if allowed is None:
            yield f"{where or '/'}: expected an object of {', '.join(sorted(_KEYS))}, found @type {kind!r}"
            return
        for key in sorted(set(value) - allowed):
            near = get_close_matches(key, allowed, 1)
            yield f"{where}/{key}: expected a term that is known here{f', such as {near[0]}' if near else ''}"
        for key in sorted(allowed - set(value) - {known}):
            yield f"{where}/{key}: expected, found none"
        for key in sorted(set(value) & allowed):
            yield from _walk(value[key], f"{where}/{key}", name=key)


def _files(folder: Path, told: Mapping[str, Any]) -> Iterator[str]:
    listed = told.get("distribution")
    entries = [item for item in listed if isinstance(item, Mapping)] if isinstance(listed, list) else []
    names = [str(item.get("contentUrl")) for item in entries]
    for name, count in sorted(Counter(names).items()):
        if count > 1:
            yield f"{name}: expected one description, found {count}"
    for item, name in zip(entries, names, strict=True):
        yield from _file(folder, item, name)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    for name in sorted(there - set(names) - {croissant.NAME, RECORD}):
        yield f"{name}: expected no file that the description does not name"


def _file(folder: Path, item: Mapping[str, Any], name: str) -> Iterator[str]:
    path = folder / name
    inside = not Path(name).is_absolute() and path.resolve() == folder.resolve() / name
    if not inside or not path.is_file():
        yield f"{name}: expected a file of the folder, found none"
        return
    if {item.get("@id"), item.get("name")} != {name}:
        yield f"{name}: expected its path as @id and name, found {item.get('@id')!r} and {item.get('name')!r}"
    size, digest = f"{path.stat().st_size} B", digest_file(path)
    if item.get("contentSize") != size:
        yield f"{name}: expected {item.get('contentSize')!r}, found {size}"
    if item.get("sha256") != digest:
        yield f"{name}: expected SHA-256 {item.get('sha256')!r}, found {digest}"
