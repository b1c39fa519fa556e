import json
from dataclasses import replace

import pyarrow as pa
import pytest

from benchmarks.evidence.__main__ import ABLATIONS, ALL, CONTRASTIVE, REWARD, main, measure
from benchmarks.evidence.pack import Pack
from benchmarks.evidence.tables import page
from tests.support.tiny_reward import TINY, tiny_data

pytestmark = [pytest.mark.slow]


def as_experts(table: pa.Table) -> pa.Table:
    names = pa.array([f"flickr8k-expert-{labeler}" for labeler in table["labeler"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("labeler"), table.schema.field("labeler"), names)


def test_without_the_data_pack_it_says_so_and_exits_with_2(tmp_path, capsys):
    assert main(["--datapack", str(tmp_path)]) == 2
    assert "judged-00000.tar" in capsys.readouterr().err


def test_every_arm_is_measured_beside_the_contrastive_cosine_and_told_in_tables(tmp_path):
    data = tiny_data(tmp_path, judged=16, rated=True)
    data = replace(data, ranks=as_experts(data.ranks), comparisons=as_experts(data.comparisons))
    own = {
        image: [f"a square {at}", "a square"] for at, image in enumerate(sorted(data.images["image_id"].to_pylist()))
    }
    result = measure(Pack(data, own), {**TINY, "seed": 7}, folds=2)
    json.dumps(result, allow_nan=False)
    expert = result["runs"][0]
    assert {CONTRASTIVE, REWARD, ALL, *ABLATIONS, "caption_length", "text_only"} <= set(expert["scorers"])
    lead = expert["scorers"][REWARD][f"minus {CONTRASTIVE}"]["tau_c"]
    values = [expert["scorers"][name]["tau_c"]["value"] for name in (REWARD, CONTRASTIVE)]
    assert lead["value"] == pytest.approx(values[0] - values[1])
    assert expert["scorers"][CONTRASTIVE]["cross_image_auc"]["n"] > 16
    assert [run["set"] for run in result["runs"]] == ["expert", "near misses"]  # the others are not in this pack
    told = page(result)
    assert "CLIPScore, published, on all judged images: a reference line" in told
    assert all(f"| {name} " in told or f"| {name} (best" in told for name in ABLATIONS)
