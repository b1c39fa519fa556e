import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compalign_dagster.errors import InputError
from compalign_dagster.reward import checkpoints
from compalign_dagster.reward.checkpoints import Checkpoints
from compalign_dagster.reward.record import data_version, work_of
from tests.support.tiny_reward import tiny_config, tiny_data

ROOT = Path(__file__).parents[3]
WORK, OTHER = "a" * 64, "b" * 64


def saved(folder, *numbers, work=WORK):
    """Checkpoints that hold these numbers, written in this order."""
    kept = Checkpoints(folder, work)
    for number in numbers:
        kept.save({"model/w": torch.full((50,), float(number))}, {"step": number, "curve": [0.1, 1 / 3]})
    return kept


def files(folder):
    return sorted(folder.glob("*.safetensors"))


def test_what_was_kept_comes_back_bit_for_bit(tmp_path):
    kept = Checkpoints(tmp_path / "new" / "folder", WORK)
    tied = torch.tensor([[1.5, float("nan")], [0.1, -0.0]])
    tensors = {
        "model/w": tied,
        "model/same": tied,
        "best/flag": torch.tensor(True),
        "optimiser/0.step": torch.tensor(3),
    }
    kept.save(tensors, {"curve": [0.1 + 0.2], "none": None, "nan": float("nan")})
    found = Checkpoints(tmp_path / "new" / "folder", WORK).newest()
    assert {name: value.numpy().tobytes() for name, value in found.tensors.items()} == {
        name: value.numpy().tobytes() for name, value in tensors.items()
    }
    assert found.facts["curve"] == [0.1 + 0.2] and found.facts["nan"] != found.facts["nan"]
    assert set(found.part("model")) == {"w", "same"}


def test_the_two_newest_are_kept_and_the_newest_is_read(tmp_path):
    kept = saved(tmp_path, 1, 2, 3)
    assert len(files(tmp_path)) == 2
    assert kept.newest().facts["step"] == 3


def damaged(path, how):
    data = path.read_bytes()
    if how == "cut short":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = b""
    elif how == "one bit":
        data = data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut short", "empty", "one bit"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, caplog, how):
    kept = saved(tmp_path, 1, 2)
    newest = files(tmp_path)[-1]
    damaged(newest, how)
    with caplog.at_level(logging.WARNING):
        assert kept.newest().facts["step"] == 1
    assert newest.name in caplog.text and "ignored" in caplog.text
    damaged(files(tmp_path)[0], how)
    assert kept.newest() is None


def test_without_the_digest_a_flipped_bit_would_be_believed(tmp_path, monkeypatch):
    kept = saved(tmp_path, 1)
    (path,) = files(tmp_path)
    damaged(path, "one bit")
    monkeypatch.setattr(checkpoints, "digest_file", lambda path: path.name.split(".")[2])
    assert not torch.equal(kept.newest().part("model")["w"], torch.full((50,), 1.0))


def test_a_file_whose_name_proves_it_but_that_is_no_checkpoint_is_passed_over(tmp_path, caplog):
    saved(tmp_path, 1)
    for number, make in enumerate((lambda p: p.write_bytes(b"\x80\x04pickle"), lambda p: save_file({}, p)), start=5):
        path = tmp_path / "x"
        make(path)
        path.rename(tmp_path / f"{WORK[:16]}.{number:010d}.{checkpoints.digest_file(path)}.safetensors")
    assert Checkpoints(tmp_path, WORK).newest().facts["step"] == 1
    assert caplog.text.count("cannot be read") == 2


def test_a_checkpoint_of_another_training_is_named_ignored_and_left_alone(tmp_path, caplog):
    saved(tmp_path, 7, work=OTHER)
    kept = Checkpoints(tmp_path, WORK)
    with caplog.at_level(logging.WARNING):
        assert kept.newest() is None
    assert OTHER[:16] in caplog.text and "another training" in caplog.text
    saved(tmp_path, 1)
    kept.clear()
    assert [path.name[:16] for path in files(tmp_path)] == [OTHER[:16]]


def test_clearing_leaves_nothing_behind(tmp_path):
    kept = saved(tmp_path / "c", 1, 2)
    (tmp_path / "c" / f".{WORK[:16]}.123.part").write_bytes(b"half")
    kept.clear()
    assert not (tmp_path / "c").exists()
    kept.clear()


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="checkpoints .*room for the model"):
        saved(tmp_path / "file" / "inside", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_belongs_to_its_configuration_data_and_device(tmp_path):
    data = tiny_data(tmp_path)
    version = data_version(data)
    same = work_of(tiny_config(), version, "cpu")
    assert same == work_of(tiny_config(checkpoint_every=3), data_version(tiny_data(tmp_path)), "cpu")
    fewer = type(data)(**{**vars(data), "comparisons": data.comparisons.slice(1)})
    others = [
        work_of(tiny_config(seed=8), version, "cpu"),
        work_of(tiny_config(), data_version(fewer), "cpu"),
        work_of(tiny_config(), version, "cuda"),
    ]
    assert len({same, *others}) == 4


def test_the_version_of_data_does_not_depend_on_chunks(tmp_path):
    import pyarrow as pa

    data = tiny_data(tmp_path)

    def chunked(table):
        return pa.concat_tables([table.slice(0, 5), table.slice(5, 3), table.slice(8)])

    other = {name: chunked(table) if isinstance(table, pa.Table) else table for name, table in vars(data).items()}
    assert data_version(type(data)(**other)) == data_version(data)


def killed(folder, *options):
    command = [sys.executable, "-m", "tests.support.killed_training", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["points"]


@pytest.mark.slow
@pytest.mark.system
def test_a_training_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    points = killed(tmp_path / "work")
    assert len(points) == 12
    for point in points:
        assert point["killed"] or point["point"].startswith("after"), point
        assert point["same_model"] and point["same_record"] and point["same_metrics"], point
    assert any(point["checkpoints"] for point in points)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("bug", ["no-optimiser", "no-seeds"])
def test_the_planted_bug_turns_the_test_above_red(tmp_path, bug):
    points = killed(tmp_path / "work", "--bug", bug, "--points", "1", "3", "--random", "0")
    assert [point["point"] for point in points] == ["pretraining steps 5", "training steps 7"]
    assert not any(point["same_model"] for point in points)
