"""The accelerator resource: which devices compute, where scoring runs, and at which precision scores are made."""

from typing import TYPE_CHECKING

import dagster as dg

from compalign_dagster.compute import Needs, pick_device
from compalign_dagster.scoring.config import ScoringConfig, check_precision
from compalign_dagster.settings import Settings

if TYPE_CHECKING:
    from compalign_dagster.scoring.where import Where


class Accelerator(dg.ConfigurableResource):
    """Explicit choice of device, engine and precision. Only the precision and the pixel budget change bytes."""

    device: str
    precision: str
    image_pixels: int
    batch_images: int | None
    engine: str
    workers: int | None
    stall_minutes: float
    ray_address: str | None
    worker_memory_gib: float
    device_hour_cost: float

    @classmethod
    def from_settings(cls, settings: Settings) -> "Accelerator":
        """The accelerator that the settings name."""
        return cls(
            device=settings.device,
            precision=settings.precision,
            image_pixels=settings.image_pixels,
            batch_images=settings.score_batch_images,
            engine=settings.engine,
            workers=settings.score_workers,
            stall_minutes=settings.score_stall_minutes,
            ray_address=settings.ray_address,
            worker_memory_gib=settings.worker_memory_gib,
            device_hour_cost=settings.device_hour_cost,
        )

    def changes_bytes(self) -> dict[str, str | int]:
        """The configuration that belongs in the work key of scores; the device does not."""
        return {"precision": self.precision, "image_pixels": self.image_pixels}

    def pick(self) -> str:
        """The device this step uses; an error where an explicit one is missing."""
        return pick_device(self.device)

    def scoring_config(self) -> ScoringConfig:
        """How to score.

        Raises `InputError` for a device or a precision that this machine does not have. On a cluster the device stays
        a wish: the actors have it, or not.
        """
        config = ScoringConfig(
            precision=self.precision,
            image_pixels=self.image_pixels,
            device=self.device if self.engine == "ray" else self.pick(),
            batch_images=self.batch_images,
        )
        if self.engine != "ray":
            check_precision(config.precision, config.device)
        return config

    def where(self) -> "Where":
        """The engine, its workers, and what each of them needs on a cluster."""
        from compalign_dagster.scoring.where import Where

        needs = Needs(gpus=int(self.device == "cuda"), memory_gib=self.worker_memory_gib)
        return Where(self.engine, self.workers, self.ray_address, needs, 60 * self.stall_minutes)
