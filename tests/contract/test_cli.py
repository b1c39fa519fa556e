"""The command line as the contract has it: verbs, options, columns, exit codes, one-line errors."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compalign_dagster.cli import main as front
from compalign_dagster.crawl.shards import find_shards, read_member
from compalign_dagster.parquet import from_rows, write
from compalign_dagster.scoring.tables import SCORES
from compalign_dagster.versions import digest_bytes
from tests.support import shard_builder as build

_TINY = {
    "image_size": 16, "patch_size": 8, "hidden_size": 16, "vision_layers": 1, "text_layers": 1, "heads": 2,
    "joint_size": 8, "vocabulary_size": 300, "max_caption_tokens": 16, "pretrain_steps": 2,
    "pretrain_batch": 8, "steps": 2, "batch_images": 4, "validate_every": 1,
}  # fmt: skip


class Ran:
    """What a command left: its exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def complaint(self) -> str:
        """The one line on stderr of a refused command."""
        assert self.code == 2, (self.code, self.err)
        lines = [line for line in self.err.splitlines() if line.startswith("compalign: ")]
        assert len(lines) == 1
        assert self.err.splitlines()[-1] == lines[0]
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def compalign(capsys):
    def call(*arguments: object) -> Ran:
        try:
            code = front.run([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def landing(tmp_path):
    """Two good shards of two corpora, and one with trouble in it."""
    build.place(tmp_path / "landing", build.good_shard(4), "cc3m/00000.tar")
    build.place(tmp_path / "landing", build.tar(build.samples(3, start=10)), "laion/00000.tar")
    build.place(tmp_path / "landing", build.cut_image(), "laion/00001.tar")
    return tmp_path / "landing"


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def scores(path: Path, rewards: list[float], model: str = "m" * 64, **columns: object) -> Path:
    """A score table with one row for each reward."""
    row = {"shard": "cc3m/0.tar", "caption_index": 0, "caption": "x", "model_version": model, "corpus": "cc3m"}
    return write(
        from_rows(
            [{**row, **columns, "pair_id": f"{at:032x}", "key": f"{at:05d}", "reward": reward}
             for at, reward in enumerate(rewards)],
            SCORES,
        ),
        path,
    )  # fmt: skip


class TestFrontDoor:
    def test_help_lists_every_verb_without_importing_any(self):
        code = (
            "import sys; from compalign_dagster.cli.main import run; run(['--help']);"
            "heavy = {'torch', 'pyarrow', 'polars', 'dagster', 'PIL', 'numpy'} & set(sys.modules);"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for verb in ("demo", "ui", "doctor", "sample-crawl", "index", "train", "score", "keep"):
            assert f"  {verb} " in done.stdout

    @pytest.mark.parametrize("verb", front.VERBS)
    def test_every_verb_explains_itself(self, verb, compalign):
        ran = compalign(verb, "--help")
        assert ran.code == 0
        assert "Usage: compalign" in ran.out
        assert "\\b" not in ran.out

    @pytest.mark.parametrize("verb", ["sample-crawl", "index", "train", "score", "keep"])
    def test_verbs_teach_with_an_example(self, verb, compalign):
        assert f"  compalign {verb} " in compalign(verb, "--help").out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["nonsense"], "nonsense"),
            (["index"], "--shards"),
            (["index", "--shards", "x"], "--out"),
            (["index", "--wrong"], "--wrong"),
            (["keep", "--scores", "x", "--out", "y"], "--fraction"),
            (["train", "--annotations", "x", "--shards", "y", "--out", "z", "--backbone", "gpt"], "gpt"),
        ],
    )
    def test_wrong_usage_is_one_line_and_exit_code_2(self, arguments, said, compalign):
        assert said in compalign(*arguments).complaint

    def test_the_installed_command_ends_with_the_exit_code(self, tmp_path):
        command = [sys.executable, "-m", "compalign_dagster.cli.main", "index", "--shards", str(tmp_path / "none"),
                   "--out", str(tmp_path / "out")]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "none" in done.stderr


class TestIndex:
    def test_it_writes_pairs_quarantine_and_summary(self, landing, tmp_path, compalign):
        assert compalign("index", "--shards", landing, "--out", tmp_path / "out").code == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "pairs.parquet", "quarantine.parquet", "summary.json",
        ]  # fmt: skip
        pairs = rows(tmp_path / "out" / "pairs.parquet")
        assert set(pairs[0]) >= {
            "pair_id", "shard", "key", "caption_index", "caption", "image_offset", "image_length", "width", "height",
            "image_sha256",
        }  # fmt: skip
        assert Counter(row["shard"] for row in pairs) == {
            "cc3m/00000.tar": 4, "laion/00000.tar": 3, "laion/00001.tar": 3,
        }  # fmt: skip
        [first, second] = rows(tmp_path / "out" / "quarantine.parquet")
        assert set(first) >= {"shard", "key", "offset", "reason", "detail"}
        assert (first["shard"], first["key"], first["reason"]) == ("laion/00001.tar", "bad", "image_truncated")
        assert second["reason"] == "image_unusable"

    def test_places_in_the_index_lead_to_the_images_bytes(self, landing, tmp_path, compalign):
        compalign("index", "--shards", landing, "--out", tmp_path / "out")
        shards = {shard.name: shard for shard in find_shards([str(landing)])}
        for row in rows(tmp_path / "out" / "pairs.parquet"):
            image = read_member(shards[row["shard"]], row["image_offset"], row["image_length"])
            assert digest_bytes(image) == row["image_sha256"]

    def test_the_summary_has_both_identities_reasons_and_every_shards_status(self, landing, tmp_path, compalign):
        compalign("index", "--shards", landing, "--out", tmp_path / "out")
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        members, captions = summary["members"], summary["captions"]
        assert members["found"] == members["used"] + members["quarantined"] + members["ignored"] == 32
        assert captions["found"] == captions["pairs"] + captions["quarantined"] == 11
        assert members["conserved"]
        assert captions["conserved"]
        assert summary["quarantined_by_reason"] == {"image_truncated": 1, "image_unusable": 1}
        assert {row["shard"]: row["status"] for row in summary["shards"]} == {
            "cc3m/00000.tar": "ok", "laion/00000.tar": "ok", "laion/00001.tar": "ok",
        }  # fmt: skip

    def test_strict_turns_a_quarantine_into_exit_code_1_and_nothing_else(self, landing, tmp_path, compalign):
        assert compalign("index", "--shards", landing, "--out", tmp_path / "1", "--strict").code == 1
        assert rows(tmp_path / "1" / "pairs.parquet")
        assert compalign("index", "--shards", landing / "cc3m", "--out", tmp_path / "2", "--strict").code == 0

    def test_shards_may_be_given_as_globs_and_repeated(self, landing, tmp_path, compalign):
        ran = compalign(
            "index", "--shards", landing / "*" / "00000.tar", "--shards", landing / "laion" / "00001.tar",
            "--out", tmp_path / "out",
        )  # fmt: skip
        assert ran.code == 0
        names = {row["shard"] for row in rows(tmp_path / "out" / "pairs.parquet")}
        assert names == {"cc3m/00000.tar", "laion/00000.tar", "00001.tar"}

    def test_running_again_gives_the_same_bytes(self, landing, tmp_path, compalign):
        found = []
        for _ in range(2):
            compalign("index", "--shards", landing, "--out", tmp_path / "out")
            found.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
        assert found[0] == found[1]

    def test_a_pattern_that_matches_nothing_is_refused_by_name(self, tmp_path, compalign):
        ran = compalign("index", "--shards", tmp_path / "no" / "*.tar", "--out", tmp_path / "out")
        assert "no/*.tar" in ran.complaint
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["empty_file", "gzipped"])
    def test_input_of_which_nothing_can_be_read_is_refused_by_name(self, name, tmp_path, compalign):
        build.place(tmp_path, build.HOSTILE[name]())
        ran = compalign("index", "--shards", tmp_path, "--out", tmp_path / "out")
        assert "cc3m/00000.tar" in ran.complaint
        assert rows(tmp_path / "out" / "quarantine.parquet")

    @pytest.mark.parametrize("name", build.HOSTILE)
    def test_trouble_in_one_shard_costs_no_other(self, name, tmp_path, compalign):
        build.place(tmp_path / "in", build.HOSTILE[name](), "a/bad.tar")
        build.place(tmp_path / "in", build.good_shard(2), "b/good.tar")
        assert compalign("index", "--shards", tmp_path / "in", "--out", tmp_path / "out").code == 0
        found = Counter(row["shard"] for row in rows(tmp_path / "out" / "pairs.parquet"))
        assert found["b/good.tar"] == 2

    def test_a_place_that_cannot_be_written_is_refused_by_name(self, landing, tmp_path, compalign):
        (tmp_path / "file").write_text("in the way")
        assert "file" in compalign("index", "--shards", landing, "--out", tmp_path / "file" / "out").complaint

    @pytest.mark.parametrize("name", ["pairs.parquet", "quarantine.parquet", "summary.json"])
    def test_a_folder_in_the_way_of_a_file_is_refused_by_name(self, name, landing, tmp_path, compalign):
        (tmp_path / "out" / name).mkdir(parents=True)
        assert name in compalign("index", "--shards", landing, "--out", tmp_path / "out").complaint
        assert not list((tmp_path / "out").glob(".*.part"))

    @pytest.mark.parametrize("pattern", ["x" * 5000, "~no-such-user-here/x", ""])
    @pytest.mark.parametrize("verb", [("index", "--shards"), ("land", "--parquet")])
    def test_a_path_that_cannot_be_followed_is_one_line(self, verb, pattern, tmp_path, compalign):
        assert "expected" in compalign(*verb, pattern, "--out", tmp_path / "out").complaint


class TestKeep:
    def test_it_keeps_exactly_the_rounded_share_of_the_best(self, tmp_path, compalign):
        scores(tmp_path / "scores.parquet", [0.1, 0.5, -1.0, 0.4, 0.3])
        ran = compalign("keep", "--scores", tmp_path / "scores.parquet", "--fraction", "0.5", "--out", tmp_path / "k")
        assert ran.code == 0
        table = pq.read_table(tmp_path / "k")
        assert table.column_names == ["pair_id", "shard", "key", "caption_index", "reward"]
        assert table["key"].to_pylist() == ["00001", "00003", "00004"]
        assert table.schema.field("reward").type == pa.float32()

    @pytest.mark.parametrize(("fraction", "kept"), [("0", 0), ("0.1", 1), ("0.25", 3), ("1", 10), ("0.05", 1)])
    def test_the_fraction_is_a_decimal_and_halves_are_rounded_up(self, fraction, kept, tmp_path, compalign):
        scores(tmp_path / "s.parquet", [float(at) for at in range(10)])
        compalign("keep", "--scores", tmp_path / "s.parquet", "--fraction", fraction, "--out", tmp_path / "k.parquet")
        assert len(rows(tmp_path / "k.parquet")) == kept

    @pytest.mark.parametrize("fraction", ["1.5", "-0.1", "nan", "a third", ""])
    def test_a_fraction_that_is_none_is_refused(self, fraction, tmp_path, compalign):
        scores(tmp_path / "s.parquet", [1.0])
        ran = compalign("keep", "--scores", tmp_path / "s.parquet", f"--fraction={fraction}", "--out", tmp_path / "k")
        assert repr(fraction) in ran.complaint
        assert not (tmp_path / "k").exists()

    def test_scores_of_two_models_are_refused(self, tmp_path, compalign):
        scores(tmp_path / "in" / "a.parquet", [1.0], "a" * 64)
        scores(tmp_path / "in" / "b.parquet", [1.0], "b" * 64, shard="other.tar")
        ran = compalign("keep", "--scores", tmp_path / "in", "--fraction", "1", "--out", tmp_path / "k.parquet")
        assert "2 model versions" in ran.complaint

    def test_a_reward_that_is_no_number_is_refused_by_its_pair(self, tmp_path, compalign):
        scores(tmp_path / "s.parquet", [1.0, float("nan")])
        ran = compalign("keep", "--scores", tmp_path / "s.parquet", "--fraction", "1", "--out", tmp_path / "k.parquet")
        assert f"{1:032x}" in ran.complaint

    def test_globs_take_score_files_and_leave_their_quarantine_aside(self, tmp_path, compalign):
        scores(tmp_path / "in" / "a.parquet", [1.0, 2.0])
        scores(tmp_path / "in" / "b.parquet", [3.0], shard="other.tar")
        (tmp_path / "in" / "a.quarantine.parquet").write_bytes(b"not a score table")
        for pattern in (tmp_path / "in", tmp_path / "in" / "*.parquet", tmp_path / "**" / "*.parquet"):
            out = tmp_path / "kept"
            assert compalign("keep", "--scores", pattern, "--fraction", "1", "--out", out).code == 0
            assert len(rows(out)) == 3
            out.unlink()

    @pytest.mark.parametrize("what", ["missing.parquet", "no/*.parquet", "text.parquet"])
    def test_scores_that_are_none_are_refused_by_name(self, what, tmp_path, compalign):
        (tmp_path / "text.parquet").write_text("no table")
        ran = compalign("keep", "--scores", tmp_path / what, "--fraction", "1", "--out", tmp_path / "k.parquet")
        assert what in ran.complaint


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Forty judged images with three captions each, in the annotation contract, one line malformed."""
    folder = tmp_path_factory.mktemp("judged")
    entries, lines = [], []
    for at in range(40):
        key = f"{at:05d}"
        entries.append((f"{key}.jpg", build.picture(at)))
        entries.append((f"{key}.json", json.dumps({"captions": [f"thing {at}", "a thing", "junk"]}).encode()))
        captions = [{"id": name, "text": text, "source": "human"}
                    for name, text in (("a", f"thing {at}"), ("b", "a thing"), ("c", "junk"))]  # fmt: skip
        image = {"shard": "judged/00000.tar", "key": key, "sha256": None}
        judgements = [{"labeler": "l-1", "ranking": [["a"], ["b"], ["c"]]}]
        lines.append(json.dumps({"image": image, "captions": captions, "judgements": judgements}))
    build.place(folder / "shards", build.tar(entries), "judged/00000.tar")
    (folder / "labels.jsonl").write_text("\n".join([*lines, "{not json"]) + "\n")
    (folder / "tiny.json").write_text(json.dumps(_TINY))
    return folder


@pytest.fixture(scope="module")
def model(judged):
    """A model trained by the command line."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = judged / "model"
    code = front.run(
        ["train", "--annotations", str(judged / "labels.jsonl"), "--shards", str(judged / "shards"),
         "--out", str(out), "--config", str(judged / "tiny.json"), "--device", "cpu"]
    )  # fmt: skip
    yield out, code
    torch.set_num_threads(threads)


class TestTrainAndScore:
    def test_training_writes_a_model_folder_with_its_figures(self, model, judged):
        out, code = model
        assert code == 0
        metrics = json.loads((out / "metrics.json").read_text())
        assert {"preference_accuracy", "cross_image_auc"} <= set(metrics)
        assert list(out.glob("**/*.safetensors"))
        assert not list(out.glob("**/*.bin"))
        rejected = json.loads((judged / "model.rejected.json").read_text())["rejected"]
        assert [row["line"] for row in rejected] == [41]

    def test_a_model_folder_is_never_written_over(self, model, judged, compalign):
        ran = compalign(
            "train", "--annotations", judged / "labels.jsonl", "--shards", judged / "shards", "--out", model[0]
        )
        assert "new or empty folder" in ran.complaint

    def test_scoring_gives_every_pair_one_finite_reward_and_the_baselines(self, model, landing, tmp_path, compalign):
        out = tmp_path / "scores.parquet"
        ran = compalign("score", "--model", model[0], "--shards", landing, "--out", out, "--device", "cpu")
        assert ran.code == 0
        found = rows(out)
        assert set(found[0]) >= {
            "pair_id", "shard", "key", "caption_index", "caption", "reward", "model_version", "cosine", "itm",
        }  # fmt: skip
        compalign("index", "--shards", landing, "--out", tmp_path / "index")
        pairs = rows(tmp_path / "index" / "pairs.parquet")
        names = ("pair_id", "shard", "key", "caption_index", "caption")
        assert [[row[name] for name in names] for row in found] == [[row[name] for name in names] for row in pairs]
        assert all(abs(row["reward"]) < 1e6 for row in found)
        assert len({row["model_version"] for row in found}) == 1
        refused = rows(tmp_path / "scores.quarantine.parquet")
        assert [row["reason"] for row in refused] == ["image_truncated", "image_unusable"]

    @pytest.mark.parametrize("verb", ["train", "score"])
    def test_frozen_features_are_kept_where_the_option_says(self, verb, model, judged, landing, compalign, monkeypatch):
        from compalign_dagster.reward import offline_encoders

        monkeypatch.setattr(offline_encoders, "_folder", None)
        folder, out = judged / f"features-{verb}", judged / f"again-{verb}"
        asked = {
            "train": ["--annotations", judged / "labels.jsonl", "--shards", judged / "shards",
                      "--config", judged / "tiny.json"],
            "score": ["--model", model[0], "--shards", landing],
        }  # fmt: skip
        assert compalign(verb, *asked[verb], "--out", out, "--features", folder, "--device", "cpu").code == 0
        assert folder.is_dir()
        assert offline_encoders._folder == folder
        monkeypatch.undo()
        offline_encoders.encoders.cache_clear()

    def test_scores_can_be_kept_from(self, model, landing, tmp_path, compalign):
        arguments = ("--shards", landing, "--out", tmp_path / "s.parquet", "--strict")
        assert compalign("score", "--model", model[0], *arguments).code == 1
        compalign("keep", "--scores", tmp_path, "--fraction", "0.3", "--out", tmp_path / "kept" / "k.parquet")
        assert len(rows(tmp_path / "kept" / "k.parquet")) == 3

    def test_a_missing_model_folder_is_refused_by_name(self, landing, tmp_path, compalign):
        ran = compalign("score", "--model", tmp_path / "nowhere", "--shards", landing, "--out", tmp_path / "s.parquet")
        assert "nowhere" in ran.complaint
        assert not (tmp_path / "s.parquet").exists()

    @pytest.mark.parametrize(
        ("config", "said"),
        [("[1]", "list"), ("{", "config.json"), ('{"stepz": 1}', "stepz"), ('{"steps": "many"}', "steps")],
    )
    def test_a_configuration_that_is_none_is_refused(self, config, said, judged, tmp_path, compalign):
        (tmp_path / "config.json").write_text(config)
        ran = compalign(
            "train", "--annotations", judged / "labels.jsonl", "--shards", judged / "shards",
            "--out", tmp_path / "m", "--config", tmp_path / "config.json",
        )  # fmt: skip
        assert said in ran.complaint

    def test_annotations_without_any_usable_line_are_refused(self, judged, tmp_path, compalign):
        (tmp_path / "labels.jsonl").write_text("{not json\n")
        ran = compalign(
            "train", "--annotations", tmp_path / "labels.jsonl", "--shards", judged / "shards", "--out", tmp_path / "m"
        )
        assert "labels.jsonl" in ran.complaint


class TestSampleCrawl:
    @pytest.mark.slow
    def test_it_writes_shards_labels_and_evaluation_that_index(self, tmp_path, compalign):
        sizes = ["--pairs", 60, "--judged-images", 20, "--evaluation-pairs", 10, "--shard-pairs", 30]
        assert compalign("sample-crawl", "--out", tmp_path / "s", *sizes).code == 0
        assert (tmp_path / "s" / "labels" / "judgements.jsonl").is_file()
        assert (tmp_path / "s" / "truth" / "captions.parquet").is_file()
        for part in ("landing", "labels/shards", "evaluation"):
            assert compalign("index", "--shards", tmp_path / "s" / part, "--out", tmp_path / "i" / part).code == 0
        assert len(rows(tmp_path / "i" / "landing" / "pairs.parquet")) == 60
        summary = json.loads((tmp_path / "i" / "landing" / "summary.json").read_text())
        assert summary["quarantined_by_reason"]
