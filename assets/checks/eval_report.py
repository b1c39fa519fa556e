"""Claims about `eval_report`: its comparison is fair."""

import dagster as dg

from assets import keys
from assets.eval_report import KIND
from compalign_dagster import latest
from resources.storage import Storage


@dg.asset_check(
    asset=keys.EVAL_REPORT,
    name="the_comparison_is_fair",
    description="Subsets of equal size, a random control, and no evaluation image that was trained on.",
)
def report_is_sound(storage: Storage) -> dg.AssetCheckResult:
    """A filter beats another only when both kept equally many pairs and neither saw the test."""
    report = latest.require(storage.store, KIND).facts["report"]
    problems = unfair(report)
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(problems) or "the subsets are of equal size and the test is held out",
        metadata={"leaked images": dg.MetadataValue.json(report["leakage"]["leaked_images"])},
    )


def unfair(report: dict) -> list[str]:
    """What makes the downstream comparison unfair."""
    arms = report["downstream"]["arms"]
    sizes = {name: arm["pairs"] for name, arm in arms.items() if name != "everything"}
    problems = []
    if len(set(sizes.values())) > 1:
        problems.append(f"subsets differ in size: {sizes}")
    problems += [f"no {name} arm" for name in ("everything", "random", "reward") if name not in arms]
    if sum(report["leakage"]["leaked_images"].values()) and not report["leakage"]["removed_pairs"]:
        problems.append("leaked evaluation images were not left out")
    return problems
