"""The accelerator resource: which device computes, and at which precision scores are made."""

import dagster as dg

from compalign_dagster.compute import pick_device
from compalign_dagster.settings import Settings


class Accelerator(dg.ConfigurableResource):
    """Explicit choice of device and precision. Only the precision and the pixel budget change bytes."""

    device: str
    precision: str
    image_pixels: int
    batch_images: int

    @classmethod
    def from_settings(cls, settings: Settings) -> "Accelerator":
        """The accelerator that the settings name."""
        return cls(
            device=settings.device,
            precision=settings.precision,
            image_pixels=settings.image_pixels,
            batch_images=settings.score_batch_images,
        )

    def changes_bytes(self) -> dict[str, str | int]:
        """The configuration that belongs in the work key of scores; the device does not."""
        return {"precision": self.precision, "image_pixels": self.image_pixels}

    def pick(self) -> str:
        """The device this step uses; an error where an explicit one is missing."""
        return pick_device(self.device)
