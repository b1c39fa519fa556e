"""A reader can pick a model up from its card alone, and the card says nothing that was not measured."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from compalign_dagster.reward.card import model_card
from compalign_dagster.reward.config import sources
from compalign_dagster.reward.folder import model_version, save_model
from compalign_dagster.reward.manifest import Manifest, verified
from compalign_dagster.reward.model import backbone
from tests.conftest import ROOT
from tests.support.tiny_reward import crawl_shard, square, tiny_config, tiny_data
from tests.unit.reward.test_promotion import good

RECORD = {
    "counts": {"train_images": 80, "test_images": 10, "judged_captions_over_long": 4, "crawl_captions_over_long": 12},
    "data": {"labelers": 3, "guideline_versions": ["1", "2 | <b>"], "crawl_pairs_offered": 500},
    "data_version": "d" * 64,
    "seeds": {"training": 7},
    "labeler_weights": {"l-03": 0.5},
    "environment": {"device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    data = tiny_data(tmp_path_factory.mktemp("data"), judged=8)
    torch.manual_seed(1)
    model = backbone("blip-tiny").build(tiny_config(), data)
    return save_model(model, tmp_path_factory.mktemp("saved") / "model", metrics=good(), record=RECORD)


@pytest.fixture
def card(saved) -> str:
    return (saved / "README.md").read_text()


def code(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, flags=re.DOTALL)


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.slow
def test_the_commands_of_a_card_run_in_a_copied_folder(saved, card, tmp_path):
    """What somebody does who has this folder, the package and some shards."""
    shutil.copytree(saved, tmp_path / "model")
    crawl_shard(tmp_path / "shards", 6)
    (tmp_path / "image.jpg").write_bytes(square("red", 1))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    (command,) = code(card, "bash")
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.num_rows == 6
    assert set(scores["model_version"].to_pylist()) == {model_version(saved)}
    assert (tmp_path / "scores.quarantine.parquet").exists()
    (program,) = code(card, "python")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rewards, fits = (json.loads(line.replace("nan", "null")) for line in done.stdout.splitlines())
    assert len(rewards) == len(fits) == 2


def test_the_front_matter_is_a_model_card_that_the_hub_reads(saved, card):
    found = ModelCard(card).data
    assert found.license == "other"
    assert found.library_name == "compalign-dagster"
    assert "reward-model" in found.tags
    assert model_version(saved)[:12] in found.model_name
    values = {result.metric_type: result.metric_value for result in found.eval_results}
    assert values["preference_accuracy"] == pytest.approx(good()["preference_accuracy"]["value"])
    assert values["cross_image_auc"] == pytest.approx(good()["cross_image_auc"]["value"])
    assert found.eval_results[0].dataset_name == f"held-out images of data version {'d' * 12}"
    assert yaml.safe_load(card.split("---")[1])["license_name"]


def test_a_card_says_what_the_model_is_made_of(saved, card):
    data = section(card, "Training data")
    assert "| labelers | 3 |" in data
    assert "| guideline versions | 1, 2 \\| &lt;b> |" in data
    assert "| train images | 80 |" in data
    assert "d" * 64 in data
    assert "l-03 0.5" in data
    settings = section(card, "Configuration")
    for name, source in sources(tiny_config()).items():
        if getattr(tiny_config(), name) not in (None, {}):
            (line,) = [line for line in settings.splitlines() if line.startswith(f"| `{name}` |")]
            assert source in line
    manifest = verified(saved)
    files = section(card, "Files")
    for name, facts in manifest.files.items():
        assert (facts["sha256"] in files) == (name != "README.md"), "a file cannot hold its own digest"


def test_every_held_out_figure_stands_beside_the_baselines_with_its_interval(card):
    figures = section(card, "Held-out figures")
    for scorer in ("reward", "cosine", "itm", "label free", "caption length", "text only"):
        (line,) = [line for line in figures.splitlines() if line.startswith(f"| {scorer} |")]
        assert "(0." in line and "n = 200" in line
    assert "0.060 (0.010 to 0.110, n = 200)" in section(card, "Calibration")
    checks = section(card, "Shortcut checks")
    assert "| fluent wrong | passed | 0.750 (0.700 to 0.800, n = 200) | 0.500 |" in checks
    assert "4 judged captions and 12 crawl captions were longer" in section(card, "Long captions")


def test_what_was_not_measured_is_said_to_be_so(tmp_path):
    manifest = Manifest("blip-tiny", tiny_config().as_dict(), {}, {})
    card = model_card(manifest, {}, {})
    assert "None were measured" in section(card, "Held-out figures")
    assert "Not measured" in section(card, "Calibration")
    assert "Not measured" in section(card, "Shortcut checks")
    assert "not recorded" in section(card, "Training data")
    assert not ModelCard(card).data.eval_results
    lost = {**good(), "evidence": {**good()["evidence"], "shortcuts": {"x": {"passed": False}}}}
    assert "| x | not measured |" in model_card(manifest, lost, {})
    lost["evidence"]["shortcuts"]["x"]["figure"] = good()["preference_accuracy"]
    assert "| x | FAILED |" in model_card(manifest, lost, {})


HOSTILE = "![x](http://evil/x.png) `a` | <img src=x> *b*\n# c"


def test_nothing_that_people_or_a_crawl_wrote_is_markup_in_a_card():
    manifest = Manifest("blip-tiny", tiny_config(model=HOSTILE).as_dict(), {}, {"pretrained": {"model": HOSTILE}})
    record = {"data": {"guideline_versions": [HOSTILE]}, "labeler_weights": {HOSTILE: 0.5}}
    shown = MarkdownIt("commonmark").enable("table").render(model_card(manifest, {}, record))
    assert shown.count("evil") == 4
    assert not re.search(r"<(img|em|a)\b", shown)
    assert "<h1>c" not in shown
    bare = MarkdownIt("commonmark").enable("table").render(f"| a |\n| --- |\n| {HOSTILE} |")
    assert "<img" in bare, "the planted bug: text as it came"


def test_equal_models_have_equal_cards(saved, tmp_path):
    data = tiny_data(tmp_path, judged=8)
    torch.manual_seed(1)
    model = backbone("blip-tiny").build(tiny_config(), data)
    again = save_model(model, tmp_path / "model", metrics=good(), record=RECORD)
    assert (again / "README.md").read_bytes() == (saved / "README.md").read_bytes()
    assert (again / "model.json").read_bytes() == (saved / "model.json").read_bytes()
