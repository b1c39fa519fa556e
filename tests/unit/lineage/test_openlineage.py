"""OpenLineage events of a version: each as the specification asks, together the whole chain."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compalign_dagster.artifacts import Artifact
from compalign_dagster.lineage import chain
from compalign_dagster.lineage.openlineage import SELECTION, WORK, event, lines
from tests.support.openlineage_spec import RUN_EVENT
from tests.support.small_version import small_store

pytestmark = [pytest.mark.slow]

OURS = json.loads((Path(__file__).parents[3] / "docs/schema/openlineage-v1.json").read_text())


def _check(told: dict[str, Any]) -> None:
    """Raise where an event is not as the specification, or a facet of ours not as its schema, asks."""
    jsonschema.validate(told, RUN_EVENT, format_checker=jsonschema.FormatChecker())
    jsonschema.validate(told["run"]["facets"]["compalign_work"], OURS["$defs"]["work"])
    for item in told["outputs"]:
        if "outputFacets" in item:
            jsonschema.validate(item["outputFacets"]["compalign_selection"], OURS["$defs"]["selection"])


@pytest.fixture(scope="module")
def version(tmp_path_factory) -> Artifact:
    return small_store(tmp_path_factory.mktemp("small"), pairs=20).filter(keep_fraction="0.3").artifact


@pytest.fixture(scope="module")
def events(version) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(version)]


def test_every_event_is_as_the_specification_asks(events):
    for told in events:
        _check(told)
    assert len({told["run"]["runId"] for told in events}) == len(events)


def test_every_artifact_behind_the_version_is_the_output_of_one_event(version, events):
    walked = chain.check(version)
    assert not walked.faults
    outputs = [(told["outputs"][0]["name"], _data_version(told["outputs"][0])) for told in events]
    wanted = [
        (f"{made.store.url}/{'/'.join(part for part in (made.kind, made.partition) if part)}", made.data_version)
        for made in walked.artifacts.values()
    ]
    assert sorted(outputs) == sorted(wanted)
    assert events[-1]["job"]["name"] == "filtered_dataset"
    assert [json.loads(line) for line in lines(version)] == events


def test_every_input_is_the_output_of_another_event_or_lies_outside_the_store(version, events):
    made = {(item["namespace"], item["name"]) for told in events for item in told["outputs"]}
    used = {(item["namespace"], item["name"]) for told in events for item in told["inputs"]}
    assert used & made
    assert all(not name.startswith(version.store.url) for _, name in used - made)


def test_the_dataset_says_how_many_pairs_were_kept_and_why_the_others_were_not(version, events):
    (dataset,) = events[-1]["outputs"]
    said = dataset["outputFacets"]["compalign_selection"]
    assert said["pairs"] == said["kept"] + said["quarantined"] + sum(said["dropped"].values())
    assert dataset["outputFacets"]["outputStatistics"]["rowCount"] == said["kept"] == version.facts["kept"]
    assert {column["name"] for column in dataset["facets"]["schema"]["fields"]} >= {"pair_id", "reward", "reason"}


def test_an_event_comes_after_those_of_what_it_was_made_from(version, events):
    places = {(told["outputs"][0]["name"], _data_version(told["outputs"][0])): at for at, told in enumerate(events)}
    for at, told in enumerate(events):
        for item in told["inputs"]:
            assert places.get((item["name"], _data_version(item)), -1) < at


def _data_version(dataset: dict[str, Any]) -> str:
    return dataset["facets"]["version"]["datasetVersion"]


@pytest.mark.parametrize(
    "bug", ["wrong type", "no run id", "no uuid", "no time", "no producer of a facet", "no count", "space in a URI"]
)
def test_an_event_that_is_not_as_asked_is_refused(events, bug):
    told = deepcopy(events[-1])
    if bug == "wrong type":
        told["eventType"] = "DONE"
    elif bug == "no run id":
        del told["run"]["runId"]
    elif bug == "no uuid":
        told["run"]["runId"] = "run 7"
    elif bug == "no time":
        told["eventTime"] = told["eventTime"].partition("T")[0]
    elif bug == "no producer of a facet":
        del told["outputs"][0]["facets"]["version"]["_producer"]
    elif bug == "no count":
        del told["outputs"][0]["outputFacets"]["compalign_selection"]["kept"]
    else:
        told["producer"] = "urn:a b"
    with pytest.raises(jsonschema.ValidationError):
        _check(told)


class _Bucket:
    url = "s3://ada:secret@bucket/prefix"


def test_hostile_names_stay_data_and_users_of_a_url_are_left_out(version):
    source = replace(version.inputs[0], kind="raw", key='s3://me:pass@land/a"\n?#/\u202e.tar', partition="a\nb")
    inputs = [vars(source), vars(replace(source, key=f"ranked_pairs/x/{'0' * 16}/manifest.json"))]
    made = Artifact(_Bucket(), version.path, {**version.manifest, "inputs": inputs})
    told = event(made)
    _check(told)
    text = json.dumps(told)
    assert "secret" not in text
    assert "pass" not in text
    assert "\n" not in text
    assert json.loads(text)["inputs"][0] == told["inputs"][0]
    assert (told["inputs"][0]["namespace"], told["inputs"][0]["name"]) == ("s3://land", 'a"\n?#/\u202e.tar')
    assert told["outputs"][0]["namespace"] == "s3://bucket"


def test_schemas_of_our_facets_are_schemas_and_are_named_by_them():
    for name, urn in (("selection", SELECTION), ("work", WORK)):
        jsonschema.Draft202012Validator.check_schema(OURS["$defs"][name])
        assert OURS["$defs"][name]["$id"] == urn
