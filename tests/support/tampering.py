"""What somebody with write access could do to a store: mutants of files, columns and manifests, undone afterwards.

A plain edit changes one file. A forgery also makes everything that hangs on the file agree with it: its manifest, the
manifests and tables that name it, the facts that point at them. `Tampered` undoes either.
"""

import io
import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster.artifacts import Artifact
from compalign_dagster.lineage.chain import manifest_key_of
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import canonical_json, digest_bytes, digest_json

_SOMETHING = {"string": "x", "int32": 1, "int64": 1, "float": 1.0, "double": 1.0}  # in place of a null
COLUMN_EDITS = ("flip", "swap", "cut", "delete", "reorder", "duplicate")


class Tampered:
    """A store whose changes are undone at the end of the `with`."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self._before: dict[str, bytes | None] = {}

    def __enter__(self) -> "Tampered":
        return self

    def __exit__(self, *_: object) -> None:
        for key, data in self._before.items():
            path = self.store.path(key)
            if data is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def write(self, key: str, data: bytes) -> None:
        """Put these bytes at a key, over what is there."""
        self._remember(key)
        path = self.store.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def delete(self, key: str) -> None:
        self._remember(key)
        self.store.path(key).unlink()

    def _remember(self, key: str) -> None:
        path = self.store.path(key)
        self._before.setdefault(key, path.read_bytes() if path.exists() else None)


def edited_bytes(data: bytes, edit: str) -> bytes:
    """A file's bytes after a plain edit."""
    middle = len(data) // 2
    return {
        "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "cut": data[:middle],
        "duplicate": data + data,
        "reorder": data[::-1],
    }[edit]


def edited_columns(table: pa.Table, column: str) -> Iterator[tuple[str, pa.Table]]:
    """Every edit of one column that changes the table."""
    at = table.schema.get_field_index(column)
    field = table.schema.field(at)
    values = table[column].to_pylist()
    for edit in COLUMN_EDITS:
        if edit == "delete":
            yield edit, table.drop_columns([column])
            continue
        changed = _edited(list(values), edit)
        if edit == "flip" and values and values[0] is None:
            changed = [_SOMETHING[str(field.type)], *values[1:]]
        if changed is not None and changed != values:
            nullable = pa.field(field.name, field.type, nullable=True, metadata=field.metadata)
            yield edit, table.set_column(at, nullable, pa.array(changed, field.type))


def edited_rows(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Every edit of whole rows that changes the table."""
    rows = table.num_rows
    if not rows:
        return
    changes = {
        "reorder": table.take(list(range(rows))[::-1]),
        "duplicate": pa.concat_tables([table, table.slice(0, 1)]),
        "delete": table.slice(1),
        "cut": table.slice(0, rows // 2),
    }
    yield from ((edit, changed) for edit, changed in changes.items() if not changed.equals(table))


def edited_values(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Every field of a JSON object, and of the objects in it, with an edit: its path, the edit, the whole changed."""
    for name in value:
        for edit, changed in (("flip", _flipped(value[name])), ("delete", None)):
            copy = deepcopy(value)
            if edit == "delete":
                del copy[name]
            else:
                copy[name] = changed
            if copy != value:
                yield (*path, name), edit, copy
        if isinstance(value[name], dict):
            for inner, edit, changed in edited_values(value[name], (*path, name)):
                yield inner, edit, {**value, name: changed}


def forge(tampered: Tampered, chain: dict[str, Artifact], artifact: Artifact, files: dict[str, bytes]) -> None:
    """Give an artifact other files, and make all that is made of it, and every decided fact, agree with them."""
    changes: dict[str, str] = {}
    _publish_over(tampered, artifact, {**_files(artifact), **files}, artifact.manifest, changes)
    for dependent in _upwards(chain, artifact):
        there = _files(dependent)
        replaced = {name: _replaced(name, data, changes) for name, data in there.items()}
        manifest = json.loads(_replaced_text(canonical_json(dependent.manifest).decode(), changes))
        if replaced != there or manifest != dependent.manifest:
            _publish_over(tampered, dependent, replaced, manifest, changes)
    for item in list(tampered.store.list("decisions/")):
        text = tampered.store.read(item.key).decode()
        if _replaced_text(text, changes) != text:
            tampered.write(item.key, _replaced_text(text, changes).encode())


def table_of(artifact: Artifact, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(artifact.store.read(artifact.file_key(name))))


def parquet_bytes(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", row_group_size=16_384)
    return out.getvalue()


def _publish_over(
    tampered: Tampered, artifact: Artifact, files: dict[str, bytes], manifest: dict, changes: dict[str, str]
) -> None:
    made = deepcopy(manifest)
    digests = {name: digest_bytes(data) for name, data in files.items()}
    version = digest_json(digests)
    for name, data in files.items():
        place = f"{version[:16]}/{name}"
        made["files"][name] = {"sha256": digests[name], "bytes": len(data), "path": place, "view": False}
        tampered.write(f"{artifact.path}/{place}", data)
    made["data_version"] = version
    body = canonical_json(made)
    tampered.write(artifact.manifest_key, body)
    changes[artifact.data_version] = version
    changes[f"{artifact.path}/{artifact.data_version[:16]}/"] = f"{artifact.path}/{version[:16]}/"
    changes[artifact.manifest_sha256] = digest_bytes(body)


def _upwards(chain: dict[str, Artifact], artifact: Artifact) -> list[Artifact]:
    """What is made of an artifact, directly or not, each after all that it is made of."""
    made_of = {
        key: {found for source in made.inputs if (found := manifest_key_of(source)) in chain}
        for key, made in chain.items()
    }
    affected, order = {artifact.manifest_key}, []
    waiting = [key for key in chain if key not in affected]
    done = set(affected)
    while waiting:
        ready = [key for key in waiting if not (made_of[key] & set(waiting))]
        for key in ready:
            if made_of[key] & affected:
                affected.add(key)
                order.append(chain[key])
        done |= set(ready)
        waiting = [key for key in waiting if key not in done]
    return order


def _files(artifact: Artifact) -> dict[str, bytes]:
    return {name: artifact.store.read(artifact.file_key(name)) for name in artifact.names()}


def _replaced(name: str, data: bytes, changes: dict[str, str]) -> bytes:
    if not name.endswith(".parquet"):
        return data
    table = pq.read_table(io.BytesIO(data))
    changed = table
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            values = [value and _replaced_text(value, changes) for value in table[field.name].to_pylist()]
            changed = changed.set_column(at, field, pa.array(values, pa.string()))
    return data if changed.equals(table) else parquet_bytes(changed)


def _replaced_text(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def _edited(values: list, edit: str) -> list | None:
    """A column's values after an edit; None where there is nothing to edit."""
    other = next((at for at, value in enumerate(values) if value != values[0]), None) if values else None
    if edit == "flip":
        return [_flipped(values[0]), *values[1:]] if values else None
    if edit == "cut":
        return [_cut(values[0]), *values[1:]] if values else None
    if edit == "reorder":
        return values[::-1]
    if other is None:
        return None
    values[other], values[0] = values[0], values[other] if edit == "swap" else values[0]
    return values


def _flipped(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return (chr(ord(value[0]) ^ 1) + value[1:]) if value else "x"
    if isinstance(value, list):
        return value[1:] if value else ["x"]
    if isinstance(value, dict):
        return {}
    return None


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[: len(value) // 2]
    return None if value is None else type(value)(0)
