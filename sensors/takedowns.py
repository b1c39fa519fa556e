"""The takedown sensor: the block list has grown, so the dataset is filtered again, without anybody asking.

A block list is a decision of people outside Dagster, like the policy. A policy waits for its next run; what somebody
has asked to be taken down does not.
"""

import dagster as dg

from compalign_dagster.selection import blocks, current
from resources.storage import Storage
from sensors.jobs import refilter

_INTERVAL_SECONDS = 60


@dg.sensor(
    job=refilter,
    name="takedowns",
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Filters again when the block list is newer than the one that the current dataset was made by.",
)
def takedowns(context: dg.SensorEvaluationContext, storage: Storage) -> dg.RunRequest | dg.SkipReason:
    """One run for each block list; a run that fails is left to people, as every other."""
    made_by, (_, newest) = current.block_list(storage.store), blocks.numbered(storage.store)
    if made_by is None:
        return dg.SkipReason("there is no dataset yet: the first one is made by the block list in force")
    if made_by >= newest:
        return dg.SkipReason(f"the current dataset was made by the newest block list, number {newest}")
    context.log.info("the current dataset was made by block list %d, the newest is %d", made_by, newest)
    return dg.RunRequest(run_key=f"block-list-{newest}", tags={"compalign/started_by": "takedown"})
