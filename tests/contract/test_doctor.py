from pathlib import Path

import pytest
from click.testing import CliRunner

from compalign_dagster.cli.doctor import command, examine
from compalign_dagster.settings import Settings, load
from tests.support.fault_proxy import denied, without


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
        ({"backbone": "dual"}, "backbone", "COMPALIGN_MODEL"),
        ({"backbone": "dual", "model": "no/where", "revision": "main"}, "backbone", "COMPALIGN_REVISION"),
        ({"device": "cuda"}, "device", "CUDA"),
    ],
)
def test_what_is_missing_comes_with_what_to_do(tmp_path, changes, name, remedy):
    import torch

    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has the GPU whose absence is tested")
    findings = {finding.name: finding for finding in examine(load(home=tmp_path, **changes))}
    assert remedy in findings[name].remedy


@pytest.mark.system
def test_a_bucket_that_can_be_used_is_well(s3, tmp_path, monkeypatch):
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    s3.client.put_object(Bucket=s3.bucket, Key="landing/a.tar", Body=b"x")
    findings = {item.name: item for item in examine(_in_bucket(s3.url, tmp_path))}
    assert not [item for item in findings.values() if item.remedy]
    assert findings["store"].found.endswith("is empty and written, conditionally")
    assert findings["landing"].found.endswith("can be read")
    assert [key for key in sorted(s3.keys()) if not key.startswith("store/.compalign/")] == ["landing/a.tar"]


@pytest.mark.system
@pytest.mark.parametrize(
    ("kind", "action", "name", "found"),
    [
        ("list", denied, "landing", "AccessDenied"),
        ("get", denied, "landing", "AccessDenied"),
        ("put_new", denied, "store", "AccessDenied"),
        ("put_new", without("if-none-match"), "store", "replaces an object"),
    ],
)
def test_what_a_bucket_refuses_comes_with_what_to_do(s3, faults, tmp_path, monkeypatch, kind, action, name, found):
    for variable, value in s3.env(faults.endpoint).items():
        monkeypatch.setenv(variable, value)
    s3.client.put_object(Bucket=s3.bucket, Key="landing/a.tar", Body=b"x")
    faults.inject(kind, action, first=None)
    findings = {item.name: item for item in examine(_in_bucket(s3.url, tmp_path))}
    assert findings[name].remedy and found in findings[name].found


def _in_bucket(url: str, home: Path) -> Settings:
    return load(home=home, **{name: f"{url}/{name}" for name in ("store", "landing", "labels", "evaluation")})
