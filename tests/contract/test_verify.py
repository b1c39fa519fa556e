"""`compalign verify` and `compalign seal`, as an auditor uses them."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import polars as pl
import pytest

from compalign_dagster import latest
from compalign_dagster.cli import main as front
from compalign_dagster.lineage import landed, takedown
from compalign_dagster.lineage.trace import Sought, trace
from compalign_dagster.lineage.verify import Wanted, verify_version
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import current
from compalign_dagster.selection.blocks import entry
from compalign_dagster.selection.in_force import adopt
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.sampling import Sampling
from compalign_dagster.signals.language import MODEL
from compalign_dagster.versions import canonical_json
from tests.support.shard_builder import samples, tar
from tests.support.small_version import HOSTS, SmallStore, small_store
from tests.support.tampering import Tampered

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SmallStore:
    made = small_store(tmp_path_factory.mktemp("verify"), batches=2, shards=1, pairs=8)
    made.filter(keep_fraction="0.2")
    made.filter(keep_fraction="0.4")
    return made


@pytest.fixture
def compalign(small, monkeypatch, capsys):
    monkeypatch.setenv("COMPALIGN_HOME", str(small.home))

    def call(*arguments: object) -> tuple[int, str, str]:
        code = front.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_a_clean_version_is_verified_down_to_the_landed_bytes(compalign):
    code, out, err = compalign("verify")
    assert (code, err) == (0, "")
    assert "landed bytes: 2 shards and 2 label exports read" in out
    assert "decisions: 2 of 2 batches made again" in out
    assert out.endswith("no fault found\n")


def test_every_version_is_found_by_the_beginning_of_its_work_key(small, compalign):
    names = {item.key.split("/")[1] for item in small.store.list("filtered_dataset/")}
    assert len(names) == 2
    for name in names:
        code, out, _ = compalign("verify", name[:8])
        assert code == 0
        assert name in out


def test_a_sample_of_the_batches_says_how_much_it_leaves_open(compalign):
    code, out, _ = compalign("verify", "--sample", "0.5")
    assert code == 0
    assert "decisions: 1 of 2 batches made again" in out
    assert "0 of 1 batches wrong, so at most 95 % of 2 at 95 %" in out


def test_a_flipped_byte_is_named_and_ends_with_exit_code_1(small, compalign):
    index = next(item.key for item in small.store.list("raw_crawl_shards/") if item.key.endswith("pairs.parquet"))
    with Tampered(small.store) as tampered:
        tampered.write(index, small.store.read(index)[:-1] + b"!")
        code, out, _ = compalign("verify")
    assert code == 1
    assert f"FAULT {index}" in out
    assert out.endswith("1 faults\n")


def test_a_landed_shard_that_was_written_over_is_named(small, compalign):
    path = next((small.home / "landing").rglob("*.tar"))
    before = path.read_bytes()
    path.write_bytes(before.replace(b"picture", b"forgery"))
    try:
        code, out, _ = compalign("verify")
        assert code == 1
        assert f"FAULT {path}" in out
        assert compalign("verify", "--no-landing")[0] == 0
    finally:
        path.write_bytes(before)


def test_landed_shards_that_cannot_be_looked_at_are_never_taken_for_sound(small, compalign, tmp_path):
    landing, away = small.home / "landing", tmp_path / "away"
    shutil.move(landing, away)
    try:
        code, out, err = compalign("verify")
        assert (code, "no fault found" in out) == (2, False)
        assert "landed shards" in err
        keys = tmp_path / "key.pem"
        compalign("seal", "--new-key", keys, "--name", "release team")
        assert compalign("seal", "current", "--key", keys, "--out", tmp_path / "seal.json")[0] == 2
        code, out, _ = compalign("verify", "--store", small.home / "store")  # not this profile's landing
        assert code == 0
        assert "landed bytes: not looked at" in out
        assert compalign("verify", "--store", small.home / "store", "--landing", away)[0] == 0
    finally:
        shutil.move(away, landing)


def test_label_exports_that_are_gone_are_named(small, compalign, tmp_path):
    shutil.move(small.home / "labels", tmp_path / "labels")
    try:
        code, out, _ = compalign("verify")
    finally:
        shutil.move(tmp_path / "labels", small.home / "labels")
    assert code == 1
    assert "label_export: it is gone" in out


def test_a_version_is_not_sealed_while_a_landed_shard_is_another_one(small, compalign, tmp_path):
    compalign("seal", "--new-key", tmp_path / "key.pem", "--name", "release team")
    path = next((small.home / "landing").rglob("*.tar"))
    before = path.read_bytes()
    arguments = ("seal", "current", "--key", tmp_path / "key.pem", "--out", tmp_path / "seal.json")
    try:
        path.write_bytes(before.replace(b"picture", b"forgery"))
        code, out, _ = compalign(*arguments)
        assert (code, str(path) in out) == (1, True)
        code, out, _ = compalign(*arguments, "--store", small.home / "store")
        assert (code, "landed bytes were not looked at" in out) == (0, True)
    finally:
        path.write_bytes(before)


def test_what_was_recorded_before_a_version_and_is_not_in_its_block_list_is_a_fault(tmp_path, monkeypatch, capsys):
    small = small_store(tmp_path / "home", batches=1, shards=1, pairs=6)
    dead = asdict(entry("url_host", HOSTS[0], request="dead"))
    said = {"version": 1, "value": {"action": "request", "entries": [dead], "by": "x", "why": "y"}}
    small.store.put_new(
        "decisions/takedowns/00000001.json", canonical_json({**said, "decided": "2001-01-01T00:00:00+00:00"})
    )
    small.filter(keep_fraction="0.5")
    monkeypatch.setenv("COMPALIGN_HOME", str(small.home))
    assert front.run(["verify"]) == 1
    assert f"without url_host {HOSTS[0]} of request dead" in capsys.readouterr().out
    takedown.enforce(small.store)
    small.filter(keep_fraction="0.5")
    assert front.run(["verify"]) == 0, capsys.readouterr().out


def test_a_shard_that_left_and_came_back_is_no_fault_and_not_superseded(tmp_path):
    small = small_store(tmp_path / "home", batches=2, shards=2, pairs=6)
    path = small.home / "landing" / "web" / "00000.tar"
    data = path.read_bytes()
    away = shutil.copy2(path, tmp_path)
    small.remove("web/00000.tar")
    shutil.copy2(away, path)  # of the same time: its index is the one that was made before
    small.settle()
    version = small.filter(keep_fraction="0.5").artifact
    report = verify_version(small.store, version.manifest_key, Wanted(landing=small.landing))
    assert (report.faults, report.landed.superseded) == ([], [])
    (delivery,) = [item for item in landed.deliveries(report.chain) if item.shard == "web/00000.tar"]
    assert delivery.batches == {small.batches[0], small.batches[-1]}
    told = trace(small.store, Sought(shard="web/00000.tar", key="again"))["pairs"]
    assert [(pair["landed"]["batch"], pair["landed"]["live"]) for pair in told] == [(small.batches[-1], True)]
    path.write_bytes(data.replace(b"picture", b"forgery"))
    report = verify_version(small.store, version.manifest_key, Wanted(landing=small.landing))
    assert [fault.where for fault in report.faults] == [str(path)]


def test_names_from_files_do_not_steer_the_terminal(tmp_path, monkeypatch, capsys):
    small = small_store(tmp_path / "home", batches=1, shards=1, pairs=6)
    hostile = small.home / "landing" / "w\x1b[2J\u202eb" / "00076.tar"
    hostile.parent.mkdir()
    hostile.with_name("00078.tar").write_bytes(tar(samples(6, 800)))
    hostile.write_bytes(tar(samples(6, 700)))
    small.settle()
    small.filter(keep_fraction="0.5")
    hostile.unlink()
    small.index()
    monkeypatch.setenv("COMPALIGN_HOME", str(small.home))
    front.run(["verify"])
    out = capsys.readouterr().out
    assert "00076.tar" in out
    assert not any(not character.isprintable() and character != "\n" for character in out)


def test_a_store_whose_pointer_was_destroyed_can_be_verified_by_manifest_key(small, compalign):
    newest = [item.key for item in small.store.list("decisions/current/")][-1]
    manifest = json.loads(small.store.read(newest))["value"]["manifest"]
    with Tampered(small.store) as tampered:
        tampered.write(newest, b"not json")
        code, _, err = compalign("verify")
        assert code == 2
        assert len(err.splitlines()) == 1
        code, out, _ = compalign("verify", manifest)
    assert code == 1
    assert f"FAULT {newest}" in out


def test_a_version_as_the_graph_publishes_it_has_no_fault(tmp_path, monkeypatch, capsys):
    from assets.caption_signals import publish_signals
    from assets.filtered_dataset import publish_dataset

    small = small_store(tmp_path, batches=2, shards=2, pairs=8)
    signals = [publish_signals(small.store, batch)[0] for batch in small.batches]
    languages = ["en", "fr"] if signals[0].facts["language_model"] == MODEL else []
    spoken = Policy(keep_fraction="0.5", languages=languages, per_corpus={"shop": "0.1"}, floors={"human_fit": 0.3},
                    sampling={"floor": -1.5, "full": 1.5, "seed": 3})  # fmt: skip
    for policy, reshard in ((Policy(keep_fraction="0.5"), True), (spoken, False)):
        chosen = adopt(small.store, policy)
        version, _ = publish_dataset(small.storage, small.settings, chosen, small.ledger, reshard=reshard)
        current.move(version, policy=chosen.version, ledger=latest.numbered(small.store, "score_ledger")[1])
        monkeypatch.setenv("COMPALIGN_HOME", str(small.home))
        assert front.run(["verify"]) == 0, capsys.readouterr().out


def test_the_planted_bug_of_pairs_drawn_with_another_seed_is_found(tmp_path, monkeypatch):
    small = small_store(tmp_path, batches=1, shards=2, pairs=8)
    policy = Policy(keep_fraction="1", sampling={"floor": -2.0, "full": 2.0})
    other, number = Sampling(floor=-2, full=2, seed=1), Sampling.number
    with monkeypatch.context() as planted:
        planted.setattr(Sampling, "number", lambda self, pair_id: number(other, pair_id))
        wrong = small.filter(policy).artifact
    faults = verify_version(small.store, wrong.manifest_key, Wanted()).faults
    assert any(fault.where.endswith("ranked.parquet") for fault in faults)


def test_what_a_takedown_emptied_is_redacted_and_not_a_fault_and_stays_sealed(tmp_path, monkeypatch, capsys):
    small = small_store(tmp_path / "home", batches=2, shards=2, pairs=8)
    policy = Policy(keep_fraction="0.5", most_per_domain=4, caption_patterns=["chat noir"], reward_floor=-2)
    version = small.filter(policy)
    monkeypatch.setenv("COMPALIGN_HOME", str(small.home))
    arguments = ["--seal", str(tmp_path / "seal.json"), "--trusted", str(tmp_path / "key.pem.trusted.json")]
    assert front.run(["seal", "--new-key", str(tmp_path / "key.pem"), "--name", "release team"]) == 0
    assert front.run(["seal", "--key", str(tmp_path / "key.pem"), "--out", str(tmp_path / "seal.json")]) == 0
    pairs = version.decided(version.batches()[0])
    by_reason = pairs.unique("reason", maintain_order=True)["pair_id"].to_list()
    entries = [entry("pair_id", pair, request="r-1") for pair in by_reason]
    takedown.request(small.store, entries, Reason("ada", "they asked"))
    done, _ = takedown.destroy(small.store, small.landing, entries, Reason("ada", "they asked"))
    assert done.changes
    capsys.readouterr()
    code = front.run(["verify", *arguments])
    out = capsys.readouterr().out
    assert (code, "FAULT" in out) == (0, False), out
    assert "\nredacted: " in out
    assert "seal: looked at; 1 records of redactions are younger than it" in out

    after = small.filter(policy)
    assert front.run(["verify"]) == 0, capsys.readouterr().out
    decided = after.decided(after.batches()[0]).filter(pl.col("pair_id").is_in(by_reason))
    assert set(decided["reason"]) == {"takedown"}

    emptied = next(change.key for change in done.changes if change.key.endswith("pairs.parquet"))
    with Tampered(small.store) as tampered:  # what the takedown left is redacted, and nothing else is
        tampered.write(emptied, small.store.read(emptied)[:-1] + b"!")
        capsys.readouterr()
        assert front.run(["verify", *arguments]) == 1
    assert f"FAULT {emptied}" in capsys.readouterr().out


def test_sealing_and_verifying_the_seal(compalign, tmp_path):
    key, out = tmp_path / "key.pem", tmp_path / "seal.json"
    assert compalign("seal", "--new-key", key, "--name", "release team")[0] == 0
    code, said, _ = compalign("seal", "current", "--key", key, "--out", out)
    assert code == 0
    assert said.startswith("sealed filtered_dataset/")
    trusted = tmp_path / "key.pem.trusted.json"
    assert compalign("verify", "--seal", out, "--trusted", trusted)[0] == 0

    value = json.loads(trusted.read_bytes())
    for trusted_key in value["keys"].values():
        trusted_key["revoked"] = "the laptop was stolen"
    trusted.write_bytes(canonical_json(value))
    code, said, _ = compalign("verify", "--seal", out, "--trusted", trusted)
    assert code == 1
    assert "release team" in said
    assert "the laptop was stolen" in said

    compalign("seal", "--new-key", tmp_path / "other.pem", "--name", "somebody")
    code, said, _ = compalign("verify", "--seal", out, "--trusted", tmp_path / "other.pem.trusted.json")
    assert code == 1
    assert "not among the trusted" in said

    code, _, err = compalign("seal", "current", "--key", key, "--out", out)
    assert code == 2
    assert "never overwritten" in err


def test_a_version_with_a_fault_is_not_sealed(small, compalign, tmp_path):
    compalign("seal", "--new-key", tmp_path / "key.pem", "--name", "release team")
    cuts = [item.key for item in small.store.list("filtered_dataset/") if item.key.endswith("cuts.parquet")]
    with Tampered(small.store) as tampered:
        for key in cuts:
            tampered.write(key, small.store.read(key)[:-1] + b"!")
        code, out, err = compalign("seal", "current", "--key", tmp_path / "key.pem", "--out", tmp_path / "seal.json")
    assert code == 1
    assert "FAULT" in out
    assert "not sealed" in err
    assert not (tmp_path / "seal.json").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["verify", "nonsense"], "dataset version 'nonsense'"),
        (["verify", "--seal", "x.json"], "--seal and --trusted go together"),
        (["verify", "--sample", "2"], "--sample"),
        (["verify", "--recompute", "0.1", "--no-landing"], "--recompute reads the landed shards"),
        (["verify", "--landing", "/nowhere/at/all"], "/nowhere/at/all"),
        (["seal", "current"], "--key and --out"),
        (["seal", "--new-key", "x.pem"], "--name"),
    ],
)
def test_wrong_usage_is_one_line(compalign, arguments, why):
    code, _, err = compalign(*arguments)
    assert code == 2
    assert why in err.splitlines()[-1]


def test_verifying_imports_no_dagster_and_opens_no_connection(small):
    program = """
import sys
def refused(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        raise OSError("not allowed")
sys.addaudithook(refused)
from compalign_dagster.cli.main import run
code = run(["verify"])
assert not [name for name in sys.modules if name.partition(".")[0] in ("dagster", "torch")], "heavy imports"
sys.exit(code)
"""
    environment = {"COMPALIGN_HOME": str(small.home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no fault found\n")
