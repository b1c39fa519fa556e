"""Claims about `coco_hf_annotations`: enough judgements in every split, values in their ranges."""

import dagster as dg
import pyarrow as pa

from assets import keys
from assets.checks.expectations import seeded_sample, validate
from compalign_dagster import latest, parquet
from resources.storage import Storage

_SPLITS = ["test", "train", "validation"]
_CRITERIA = ("accuracy", "completeness", "vividness", "context")


@dg.asset_check(
    asset=keys.COCO_HF_ANNOTATIONS,
    name="judgements_meet_expectations",
    blocking=True,
    description="Great Expectations: one row per split (complete) and a seeded sample of ranks.",
)
def judgements(storage: Storage) -> dg.AssetCheckResult:
    """Every split has images; ranks count from 1; ratings lie between 1 and 5."""
    import great_expectations.expectations as gxe

    artifact = latest.require(storage.store, keys.COCO_HF_ANNOTATIONS.to_user_string())
    images = parquet.read(artifact.fetch("images.parquet"))
    splits = pa.TableGroupBy(images, "split").aggregate([("image_id", "count_distinct"), ("image_id", "count")])
    ranks, covers = seeded_sample(parquet.read(artifact.fetch("ranks.parquet")))
    return validate(
        [
            (
                "splits",
                splits,
                f"all {images.num_rows:,} images",
                [
                    gxe.ExpectColumnDistinctValuesToEqualSet(column="split", value_set=_SPLITS),
                    gxe.ExpectColumnValuesToBeBetween(column="image_id_count", min_value=1),
                    gxe.ExpectColumnPairValuesToBeEqual(column_A="image_id_count", column_B="image_id_count_distinct"),
                ],
            ),
            (
                "ranks",
                ranks,
                covers,
                [
                    gxe.ExpectColumnValuesToBeBetween(column="rank", min_value=1),
                    *(
                        gxe.ExpectColumnValuesToBeBetween(column=criterion, min_value=1, max_value=5)
                        for criterion in _CRITERIA
                    ),
                ],
            ),
        ],
        severity=dg.AssetCheckSeverity.ERROR,
    )
