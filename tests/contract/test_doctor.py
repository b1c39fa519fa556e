import pytest
from click.testing import CliRunner

from compalign_dagster.cli.doctor import command, examine
from compalign_dagster.settings import load


def test_the_sample_profile_needs_nothing_but_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPALIGN_HOME", str(tmp_path))
    done = CliRunner().invoke(command, [])
    assert done.exit_code == 0, done.output
    assert "trained from scratch" in done.output


@pytest.mark.parametrize(
    ("changes", "name", "remedy"),
    [
        ({"profile": "photos"}, "landing", "photo-crawl"),
        ({"profile": "paper"}, "backbone", "COMPALIGN_REVISION"),
        ({"profile": "paper"}, "evaluation network", "COMPALIGN_EVALUATION_ENCODER"),
        ({"backbone": "blip"}, "backbone", "COMPALIGN_MODEL"),
        ({"device": "cuda"}, "device", "CUDA"),
    ],
)
def test_what_is_missing_comes_with_what_to_do(tmp_path, changes, name, remedy):
    import torch

    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has the GPU whose absence is tested")
    findings = {finding.name: finding for finding in examine(load(home=tmp_path, **changes))}
    assert remedy in findings[name].remedy
