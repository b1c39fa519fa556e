import json
import subprocess
import sys

import dagster as dg
import pytest

from compalign_dagster.definitions import build_defs, defs
from tests.conftest import ROOT

SNAPSHOT = ROOT / "tests" / "wiring" / "definitions.json"


def _snapshot() -> dict:
    graph = build_defs().resolve_asset_graph()
    return {
        "assets": {
            key.to_user_string(): {
                "group": graph.get(key).group_name,
                "deps": sorted(parent.to_user_string() for parent in graph.get(key).parent_keys),
                "partitioned": graph.get(key).is_partitioned,
                "checks": sorted(check.name for check in graph.get(key).check_keys),
                "automated": graph.get(key).automation_condition is not None,
            }
            for key in sorted(graph.get_all_asset_keys())
        },
        "jobs": sorted(job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")),
        "sensors": sorted(sensor.name for sensor in defs.sensors or []),
    }


def test_the_definitions_load():
    dg.Definitions.validate_loadable(build_defs())


def test_the_graph_is_the_one_that_was_reviewed():
    found = json.dumps(_snapshot(), indent=1, sort_keys=True) + "\n"
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(found)
        pytest.fail("wrote a new definitions snapshot: review and commit it")
    assert found == SNAPSHOT.read_text(), "the graph changed: delete tests/wiring/definitions.json and review"


def test_every_asset_says_what_it_is_and_who_owns_it():
    for spec in defs.resolve_all_asset_specs():
        name = spec.key.to_user_string()
        assert spec.description and len(spec.description) > 40, name
        assert spec.owners, name
        assert spec.kinds, name
        assert spec.group_name and spec.group_name != "default", name


def test_every_asset_that_is_made_here_has_a_code_version():
    for definition in defs.assets or []:
        if isinstance(definition, dg.AssetsDefinition) and definition.is_executable:
            assert all(version for version in definition.code_versions_by_key.values())


def test_loading_the_code_location_imports_nothing_heavy():
    probe = (
        "import sys, compalign_dagster.definitions; "
        "print([name for name in ('torch', 'transformers', 'great_expectations', 'matplotlib', 'ray') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_our_top_level_packages_are_not_shadowed():
    import assets
    import resources
    import sensors

    for package in (assets, resources, sensors):
        assert str(package.__file__).startswith(str(ROOT))
