"""Every artifact kind x every file x every field x every edit, made from the schemas: found, and named."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compalign_dagster import artifacts, decisions, latest
from compalign_dagster.artifacts import Artifact
from compalign_dagster.lineage import chain, comparing, erase, keys, pointers, redaction, seal, takedown
from compalign_dagster.lineage.chain import Checked
from compalign_dagster.lineage.manifests import Fault
from compalign_dagster.lineage.redaction import Change, redactions, unfounded
from compalign_dagster.lineage.verify import Report, Wanted, verify_version
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.scoring import in_force as scoring
from compalign_dagster.selection import blocks, current, prune
from compalign_dagster.selection.policy import Policy
from compalign_dagster.store import LocalStore, seekable
from compalign_dagster.versions import canonical_json, digest_bytes
from tests.support.small_clusters import small_clusters
from tests.support.small_version import SmallStore, small_store
from tests.support.tampering import (
    Tampered,
    edited_bytes,
    edited_columns,
    edited_rows,
    edited_values,
    forge,
    parquet_bytes,
    table_of,
)

pytestmark = [pytest.mark.slow]

_POLICY = Policy(keep_fraction="0.4", per_corpus={"shop": "0.25"}, reward_floor=-1.5, most_per_domain=3,
                 most_per_duplicate_group=1, most_per_semantic_cluster=4)  # fmt: skip
_DECIDING = ("filtered_dataset", "ranked_pairs", "score_ledger")


@dataclass
class World:
    """A store with an older and a newer version, both sealed when they were the newest."""

    small: SmallStore
    older: Artifact
    newer: Artifact
    seals: Path
    trusted: dict[str, keys.TrustedKey]
    chain: Checked = field(init=False)

    def __post_init__(self) -> None:
        self.chain = chain.check(self.newer)

    @property
    def store(self) -> LocalStore:
        return self.small.store

    def verify(self, *, sealed: bool = False, seal_of: str = "newer.json", key: str | None = None) -> Report:
        path = self.seals / seal_of
        wanted = Wanted(seal=path, trusted=self.trusted) if sealed else Wanted()
        return verify_version(self.store, key or self.newer.manifest_key, wanted)

    def look(self, *, sealed: bool = False) -> list[Fault]:
        """Faults of files, links and facts; decisions are not made again."""
        found = chain.check(self.newer)
        faults = [*found.faults, *pointers.check(self.store, found.artifacts.values(), self.newer)]
        return [*faults, *self.sealed_by(self.seals / "newer.json", self.trusted)] if sealed else faults

    def sealed_by(self, path: Path, trusted: dict[str, keys.TrustedKey]) -> list[Fault]:
        """Faults of a seal of what the store holds now."""
        found = chain.check(self.newer)
        now = found.artifacts.get(self.newer.manifest_key, self.newer)
        return seal.check(str(path), seal.read(path), trusted, now, found)

    def tables(self) -> Iterator[tuple[Artifact, str, pa.Table]]:
        """Every Parquet file of one artifact of each kind."""
        for made in self.one_of_each_kind():
            for name in made.names():
                if name.endswith(".parquet"):
                    yield made, name, table_of(made, name)

    def one_of_each_kind(self) -> list[Artifact]:
        """The first artifact of each kind in the chain."""
        found: dict[str, Artifact] = {}
        for made in self.chain.artifacts.values():
            found.setdefault(made.kind, made)
        return list(found.values())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from assets.duplicate_groups import publish_groups

    small = small_store(tmp_path_factory.mktemp("matrix"), batches=1, shards=2, pairs=10)
    publish_groups(small.storage, 4)
    small_clusters(small)
    seals = tmp_path_factory.mktemp("seals")
    keys.new_key(seals / "key.pem", "release team")
    older = small.filter(_POLICY.model_copy(update={"keep_count": 3, "keep_fraction": None})).artifact
    _seal(small, older, seals, "older.json")
    small.land_more()
    publish_groups(small.storage, 4)
    small_clusters(small)
    blocked = small.filter(_POLICY, move=False).kept(small.batches[0])["pair_id"][0]
    takedown.request(small.store, [blocks.entry("pair_id", blocked, request="r-1")], Reason("ada", "they asked"))
    _decide_the_rest(small)
    newer = small.filter(_POLICY).artifact
    _seal(small, newer, seals, "newer.json")
    return World(small, older, newer, seals, keys.load_trusted(seals / "key.pem.trusted.json"))


def _decide_the_rest(small: SmallStore) -> None:
    """A fact of every kind that such a store does not come by: a purge of a page, a cascade, a prune."""
    gone = asdict(blocks.entry("image_sha256", "e" * 64, request="r-1"))
    model = small.model
    cheap = {"model": model.manifest_key, "model_version": model.facts["model_version"], "reject_below": {"web": 0.5}}
    plan = {"plan": small.ledger.manifest_key, "plan_sha256": small.ledger.manifest_sha256}
    for name, value in (
        (takedown.DECISION, {"action": "purge", "entries": [gone], "by": "ada", "why": "they asked"}),
        (scoring.DECISION, {"action": "adopt", **plan, "cascade": cheap, "bound": 0.01, "by": "ada", "why": "faster"}),
        (prune.DECISION, {"versions": ["filtered_dataset/gone/manifest.json"], "by": "ada", "why": "space"}),
    ):
        decisions.move(small.store, name, lambda _, value=value: value)
    redaction.record(small.store, [Change("gone/page.html", "e" * 64, None, 0)], request="r-1")
    blocks.add(small.store, takedown.on_record(small.store))


def _seal(small: SmallStore, version: Artifact, folder: Path, name: str, key: str = "key.pem") -> Path:
    said = seal.statement(version, chain.check(version))
    (folder / name).write_bytes(seal.sign(said, keys.load_signer(folder / key)))
    return folder / name


class Mutant(NamedTuple):
    """An edit, the faults that were found of it, and what one of them must name."""

    what: str
    faults: list[Fault]
    names: tuple[str, ...]

    @property
    def missed(self) -> bool:
        return not any(all(name in str(fault) for name in self.names) for fault in self.faults)


Mutants = Iterator[Mutant]


def require(mutants: Mutants, least: int) -> None:
    """All of at least so many mutants are found under their names."""
    made = list(mutants)
    missed = [f"{mutant.what}: {[str(fault) for fault in mutant.faults[:2]]}" for mutant in made if mutant.missed]
    assert not missed, (len(missed), missed[:5])
    assert len(made) >= least


def plain_files(world: World) -> Mutants:
    """Every file of every kind, edited where it lies."""
    for made in world.one_of_each_kind():
        for name in made.manifest["files"]:
            key = made.file_key(name)
            data = world.store.read(key)
            for edit in ("flip", "cut", "duplicate", "reorder", "delete", "swap"):
                with Tampered(world.store) as tampered:
                    if edit == "delete":
                        tampered.delete(key)
                    elif edit == "swap":
                        tampered.write(key, world.store.read(world.newer.file_key("policy.json")) + data[:1])
                    else:
                        tampered.write(key, edited_bytes(data, edit))
                    yield Mutant(f"{edit} {key}", chain.check(world.newer).faults, (key,))


def plain_columns(world: World) -> Mutants:
    """Every column of every table of every kind, edited inside the file, which is Parquet still."""
    for made, name, table in world.tables():
        key = made.file_key(name)
        for column in table.column_names:
            for edit, changed in edited_columns(table, column):
                with Tampered(world.store) as tampered:
                    tampered.write(key, parquet_bytes(changed))
                    yield Mutant(f"{edit} {key} {column}", chain.check(world.newer).faults, (key,))


def forged(world: World, kinds: tuple[str, ...], *others: str) -> Iterator[tuple[str, str, str]]:
    """Every column of every table of these kinds flipped, and whole rows, with all that hangs on it made to agree.

    Of each column one of the `others` in turn, too.
    """
    for made, name, table in world.tables():
        if made.kind not in kinds:
            continue
        edits = [("", *found) for found in edited_rows(table)]
        for at, column in enumerate(table.column_names):
            wanted = {"flip", others[at % len(others)] if others else "flip"}
            edits += [(column, *found) for found in edited_columns(table, column) if found[0] in wanted]
        for column, edit, changed in edits:
            with Tampered(world.store) as tampered:
                forge(tampered, world.chain.artifacts, made, {name: parquet_bytes(changed)})
                yield f"forged {edit} {made.kind} {name} {column}", name, column


def forged_decisions(world: World, kinds: tuple[str, ...] = _DECIDING) -> Mutants:
    """Without a seal: making the decisions again must name table and column."""
    for what, name, column in forged(world, kinds, "swap", "delete"):
        yield Mutant(what, world.verify().faults, (f"/{name}", column))


def forged_sources(world: World) -> Mutants:
    """What no decision can tell: the seal must say that it is another release."""
    for what, _, _ in forged(
        world, ("scored_shards_shards", "raw_crawl_shards", "reward_model", "coco_hf_annotations")
    ):
        yield Mutant(what, world.look(sealed=True), (world.newer.manifest_key, "sealed"))


def manifest_fields(world: World) -> Mutants:
    """Every field of the manifest of every kind: flipped and deleted; another artifact's manifest in its place."""
    for made in world.one_of_each_kind():
        whole = world.store.read(made.manifest_key)
        edits = [
            (f"{edit} {'.'.join(path)}", canonical_json(changed))
            for path, edit, changed in edited_values(made.manifest)
        ]
        edits += [
            ("reorder", json.dumps(dict(reversed(made.manifest.items()))).encode()),
            ("cut", whole[:100]),
            ("duplicate", whole * 2),
            ("swap", world.store.read(world.older.manifest_key)),
        ]
        for what, data in edits:
            with Tampered(world.store) as tampered:
                tampered.write(made.manifest_key, data)
                yield Mutant(f"{what} of {made.manifest_key}", world.look(), (made.path,))
        with Tampered(world.store) as tampered:
            tampered.delete(made.manifest_key)
            yield Mutant(f"delete {made.manifest_key}", world.verify().faults, (made.manifest_key,))


def decided_facts(world: World) -> Mutants:
    """Every version of every decided fact, with a seal that remembers them."""
    for name in pointers.DECIDED:
        found = [item.key for item in world.store.list(f"decisions/{name}/")]
        for key in found:
            value = json.loads(world.store.read(key))
            for path, edit, changed in edited_values(value):
                with Tampered(world.store) as tampered:
                    tampered.write(key, canonical_json(changed))
                    yield Mutant(f"{edit} {key} {'.'.join(path)}", world.look(sealed=True), (key,))
            with Tampered(world.store) as tampered:
                tampered.delete(key)
                yield Mutant(f"delete {key}", world.look(sealed=True), (key,))
        for earlier, later in pairwise(found):
            with Tampered(world.store) as tampered:
                tampered.write(later, world.store.read(earlier))
                yield Mutant(f"replay {earlier} as {later}", world.look(sealed=True), (later,))


def forged_redactions(world: World) -> Mutants:
    """A file of every kind altered, and a record that a takedown was to do that."""
    following = f"decisions/redactions/{len(list(world.store.list('decisions/redactions/'))) + 1:08d}.json"
    for made in world.one_of_each_kind():
        for name in made.names():
            key = made.file_key(name)
            with seekable(world.store, key) as stream:
                if name.endswith(".parquet") and erase.identifying(pq.read_schema(stream).names):
                    continue  # such a table is redacted: the requests are to be compared with one's own register
            data = edited_bytes(world.store.read(key), "flip")
            for request, now in (("r-1", data), ("r-1", None), ("nobody", data)):
                change = Change(key, made.manifest["files"][name]["sha256"], now and digest_bytes(now), 1)
                value = {"request": request, "changes": [asdict(change)]}
                number = int(following[-13:-5])
                with Tampered(world.store) as tampered:
                    tampered.write(following, canonical_json(
                        {"version": number, "value": value, "decided": "2026-01-01T00:00:00+00:00"}))  # fmt: skip
                    tampered.write(key, now) if now else tampered.delete(key)
                    yield Mutant(f"{request}: {key}", chain.check(world.newer, None, redactions(world.store)).faults,
                                 (key,))  # fmt: skip
                    if request == "nobody":
                        found = [Fault(where, "value.request", who) for where, who in unfounded(world.store)]
                        yield Mutant(f"unordered: {key}", found, (following, "nobody"))


def replays(world: World) -> Mutants:
    """An older valid release put in the place of the newer one, more and more carefully."""
    listed = [item.key for item in world.store.list("decisions/current/")]
    newest = json.loads(world.store.read(listed[-1]))
    old = json.loads(world.store.read(listed[0]))["value"]
    numbers = {name: newest["value"][name] for name in ("policy", "ledger")}
    following = f"decisions/current/{len(listed) + 1:08d}.json"
    bodies = {
        "as it was": (listed[-1], world.store.read(listed[0])),
        "under the newest number": (listed[-1], canonical_json({**newest, "value": old})),
        "with the newest policy and ledger": (listed[-1], canonical_json({**newest, "value": {**old, **numbers}})),
        "behind it": (following, canonical_json({**newest, "version": len(listed) + 1, "value": old})),
    }
    for what, (key, body) in bodies.items():
        with Tampered(world.store) as tampered:
            tampered.write(key, body)
            yield Mutant(f"replay {what}", world.verify(key=world.older.manifest_key).faults, ("decisions/",))
    with Tampered(world.store) as tampered:  # the store as it once was: nothing inside of it can tell
        for key in listed[1:]:
            tampered.delete(key)
        assert current.read(world.store).manifest_key == world.older.manifest_key
        found = world.verify(sealed=True, key=world.older.manifest_key).faults
        yield Mutant("the store as it once was", found, ("the seal is of", world.newer.manifest_key))
        yield Mutant("forgotten decisions", world.verify(sealed=True).faults, (listed[-1],))


def seals(world: World, folder: Path) -> Mutants:
    """Every field of the seal, and seals by keys that nobody trusts."""
    keys.new_key(folder / "foreign.pem", "somebody")
    envelope = json.loads((world.seals / "newer.json").read_bytes())
    said = json.loads(seal.statement(world.newer, chain.check(world.newer)))
    release, foreign = keys.load_signer(world.seals / "key.pem"), keys.load_signer(folder / "foreign.pem")
    payload, at = envelope["payload"], len(envelope["payload"]) // 2
    flipped = payload[:at] + ("A" if payload[at] != "A" else "B") + payload[at + 1 :]
    lent = json.loads(seal.sign(canonical_json(said), foreign))
    lent["signatures"][0]["keyid"] = release.public_key.keyid
    revoked = {key: entry.model_copy(update={"revoked": "laptop lost"}) for key, entry in world.trusted.items()}

    def mutant(what: str, data: bytes, *names: str, trusted: dict[str, keys.TrustedKey] | None = None) -> Mutant:
        (folder / "seal.json").write_bytes(data)
        return Mutant(what, world.sealed_by(folder / "seal.json", trusted or world.trusted), names)

    fits = ("release team", "does not fit")
    yield mutant("flip payload", canonical_json({**envelope, "payload": flipped}), *fits)
    yield mutant("flip type", canonical_json({**envelope, "payloadType": "text/plain"}), *fits)
    yield mutant("delete signatures", canonical_json({**envelope, "signatures": []}), "nobody signed it")
    yield mutant("re-sign", seal.sign(canonical_json(said), foreign), foreign.public_key.keyid, "not among the trusted")
    yield mutant("re-sign under a trusted name", canonical_json(lent), *fits)
    yield mutant("revoked", canonical_json(envelope), "release team", "revoked: laptop lost", trusted=revoked)
    yield mutant("replay", (world.seals / "older.json").read_bytes(), "the seal is of", world.older.manifest_key)
    for path, edit, changed in edited_values(said):
        decided = path[:2] == ("predicate", "decisions") and (edit == "flip" or len(path) > 2)
        if decided or (edit == "flip" and path[-1] in ("sealed", "software")):
            continue  # true if the signature is: a clock, a release, and fewer decisions are those of an earlier day
        yield mutant(f"{edit} {'.'.join(path)}", seal.sign(canonical_json(changed), release))
    for at, subject in enumerate(said["subject"]):
        others = [*said["subject"][:at], *said["subject"][at + 1 :]]
        wrong = {**subject, "digest": {"sha256": "0" * 64}}
        for edit, subjects in (("delete", others), ("flip", [*others, wrong])):
            data = seal.sign(canonical_json({**said, "subject": subjects}), release)
            yield mutant(f"{edit} subject {subject['name']}", data, subject["name"])


def test_every_plain_edit_of_every_file_is_found_and_named(world):
    require(plain_files(world), 150)


def test_every_plain_edit_of_every_column_is_found_and_named(world):
    require(plain_columns(world), 500)


def test_every_forged_column_of_what_decides_is_found_and_named_without_a_seal(world):
    require(forged_decisions(world), 150)


def test_every_forged_column_of_what_only_a_seal_can_tell_is_found(world):
    require(forged_sources(world), 60)


def test_every_edit_of_a_manifest_is_found_and_named(world):
    require(manifest_fields(world), 300)


def test_every_edit_of_what_people_decided_is_found_and_named(world):
    require(decided_facts(world), 50)


def test_no_forged_record_of_a_redaction_explains_a_file_that_decides(world):
    require(forged_redactions(world), 60)


@pytest.mark.parametrize(
    ("name", "value"),
    [("coverage", []), ("batches", 1), ("live_shards", 9), ("shards_by_batch", {}), ("scored", 1), ("rows", 1)],
)
def test_what_a_ledger_says_of_itself_is_made_again(world, name, value):
    (ledger,) = [made for made in world.chain.artifacts.values() if made.kind == "score_ledger"]
    changed = replace(ledger, manifest={**ledger.manifest, "facts": {**ledger.facts, name: value}})
    with Tampered(world.store) as tampered:
        forge(tampered, {**world.chain.artifacts, ledger.manifest_key: changed}, changed, {})
        assert any(fault.where == ledger.manifest_key for fault in world.verify().faults)


def test_a_cascade_whose_plan_or_model_is_another_one_is_found_without_a_seal(world):
    (key,) = [item.key for item in world.store.list("decisions/cascade/")]
    value = json.loads(world.store.read(key))
    assert world.look() == []
    cheap = {**value["value"]["cascade"], "model_version": "f" * 64}
    for name, forged_value in (("plan_sha256", "f" * 64), ("cascade", cheap)):
        with Tampered(world.store) as tampered:
            tampered.write(key, canonical_json({**value, "value": {**value["value"], name: forged_value}}))
            (fault,) = world.look()
        assert (fault.where, fault.field.split(".")[1]) == (key, name)


def test_a_seal_made_before_a_fact_was_told_of_is_a_seal_still(world, tmp_path):
    said = json.loads(seal.statement(world.newer, chain.check(world.newer)))
    del said["predicate"]["decisions"]["prune"]
    (tmp_path / "seal.json").write_bytes(seal.sign(canonical_json(said), keys.load_signer(world.seals / "key.pem")))
    assert world.sealed_by(tmp_path / "seal.json", world.trusted) == []


def test_every_fact_that_people_decide_has_mutants(world):
    decided = [mutant.names[0] for mutant in decided_facts(world)]
    assert all(any(f"/{name}/" in key for key in decided) for name in pointers.DECIDED)


def test_an_older_valid_release_replayed_as_current_is_found_and_named(world):
    require(replays(world), 6)


def test_every_edit_of_a_seal_is_found_and_foreign_and_revoked_keys_are_refused_by_name(world, tmp_path):
    require(seals(world, tmp_path), 50)


def test_clean_copies_raise_no_alarm(world, tmp_path, tmp_path_factory):
    assert world.verify(sealed=True).faults == []
    assert world.verify(sealed=True, key=world.older.manifest_key, seal_of="older.json").faults == []
    shutil.copytree(world.small.home, tmp_path / "copy")
    copy = SmallStore(tmp_path / "copy", 2, 10, 1)
    wanted = Wanted(landing=copy.landing, labels=LocalStore(copy.home / "labels"))
    report = verify_version(copy.store, world.newer.manifest_key, wanted)
    assert report.faults == []
    assert (report.landed.shards, report.landed.exports) == (4, 2)

    trial = copy.filter(Policy(keep_fraction="1"), move=False).artifact
    none = copy.filter(Policy(keep_count=0)).artifact
    copy.remove("web/00000.tar")
    after = copy.filter(Policy(keep_fraction="0.5")).artifact
    newer = artifacts.load(copy.store, world.newer.manifest_key)
    current.restore(
        newer, Reason("ada", "it was better"), policy=1, block_list=latest.numbered(copy.store, blocks.KIND)[1]
    )
    for made in (trial, none, after, world.newer, world.older):
        wanted = Wanted(landing=copy.landing, seal=world.seals / "newer.json", trusted=world.trusted)
        wanted = wanted if made is world.newer else Wanted(landing=copy.landing)
        report = verify_version(copy.store, made.manifest_key, wanted)
        assert report.faults == [], made.manifest_key
        assert report.landed.superseded == ["web/00000.tar"]


def test_the_planted_bugs_turn_the_matrix_red(world, monkeypatch, tmp_path):
    families: list[tuple[object, str, Callable, Callable[[], Mutants]]] = [
        (chain, "_check_files", lambda *_: None, lambda: plain_files(world)),
        (comparing, "differences", lambda *_: iter(()), lambda: forged_decisions(world, ("filtered_dataset",))),
        (chain, "_redactable", lambda *_, **__: True, lambda: forged_redactions(world)),
        (chain, "_faults_of_link", lambda link: iter(()), lambda: manifest_fields(world)),
        (pointers, "moved", lambda *_: iter(()), lambda: decided_facts(world)),
        (pointers, "_going_back", lambda found: iter(()), lambda: replays(world)),
        (seal, "_refused", lambda *_: iter(()), lambda: seals(world, tmp_path)),
        (seal, "_other_subjects", lambda *_: iter(()), lambda: forged_sources(world)),
    ]
    for module, name, bug, family in families:
        with monkeypatch.context() as planted:
            planted.setattr(module, name, bug)
            mutants = family()
            assert any(mutant.missed for mutant in mutants), name
            mutants.close()


def test_what_the_matrix_is_made_of_covers_every_kind_that_a_version_can_be_made_from(world):
    kinds = {made.kind for made in world.one_of_each_kind()}
    assert kinds >= {"filtered_dataset", "ranked_pairs", "score_ledger", "scored_shards", "scored_shards_shards",
                     "raw_crawl", "raw_crawl_shards", "reward_model", "coco_hf_annotations", "block_list",
                     "duplicate_groups", "semantic_clusters"}  # fmt: skip
    assert latest.require(world.store, "filtered_dataset").manifest_key == world.newer.manifest_key
