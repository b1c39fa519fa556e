"""Every setting, what it means and what it may be.

The only reader of the environment. A setting is the variable `COMPALIGN_<NAME>`; a profile is a named
set of defaults. What does not belong here: decisions people take later (the policy in force, the
promoted model), which live in the store as versioned facts.
"""

import difflib
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from compalign_dagster.errors import InputError
from compalign_dagster.profiles import PROFILES

PREFIX = "COMPALIGN_"
Shortcut = Literal["shuffled_words", "fluent_wrong", "length_matched", "text_on_blank", "text_on_photo"]
Fraction = Annotated[Decimal, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """The settings of one code location. Paths may be folders or, for stores, `s3://` URLs."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", protected_namespaces=())

    profile: Literal["sample", "photos", "paper"] = Field("sample", description="Named set of defaults.")
    home: Path = Field(Path("var/{profile}"), description="Folder that holds everything below by default.")
    store: str = Field("{home}/store", description="Where artifacts are published.")
    landing: str = Field("{home}/landing", description="Where crawl shards arrive.")
    checkpoints: Path = Field(
        Path("{home}/checkpoints"), description="Folder of this machine for trainings that may have to go on."
    )
    features: Path | None = Field(
        None,
        description="Folder of this machine where frozen features (offline backbone) outlive a step, at most 1 GiB.",
    )
    labels: str = Field("{home}/labels", description="Label exports (`*.jsonl`) and shards of judged images.")
    evaluation: str = Field("{home}/evaluation", description="Clean held-out shards for retrieval.")
    pages_port: int = Field(3001, ge=1, le=65535, description="Loopback port that serves the store's pages.")

    batch_max_shards: int = Field(100, ge=1, description="Most shards in one batch (one partition).")
    batch_max_pairs: int = Field(
        1_000_000, ge=1, description="Pairs in one batch, estimated: a batch that reaches them is full."
    )
    batch_wait_minutes: float = Field(
        15, ge=0, description="Minutes that a batch which is not full waits for more shards; 0 seals at once."
    )
    settle_seconds: float = Field(
        30,
        ge=0,
        description="Seconds a shard must lie unchanged on a disk before it counts; a bucket has no half files.",
    )
    landing_complete: Literal["settled", "stats", "success"] = Field(
        "settled",
        description="What else a shard needs to count: nothing, its `NAME_stats.json`, or `_SUCCESS` in its folder.",
    )
    arrival_patience_minutes: float = Field(
        60, ge=0, description="Minutes after which an incomplete shard is set aside with a warning."
    )
    arrival_sweep_minutes: float = Field(
        10, ge=0, description="Least minutes between two sweeps of the whole landing folder."
    )
    arrival_tick_seconds: float = Field(
        20, gt=0, le=40, description="Wall clock that one tick of the arrival sensor may use; Dagster kills it at 60."
    )
    arrival_tick_batches: int = Field(
        100, ge=1, description="Most batches that one tick registers; the next goes on with the rest."
    )
    refilter_wait_seconds: float = Field(
        60,
        ge=0,
        description="Seconds without new scores before the dataset is filtered again by itself; after five times "
        "that it is in any case. Half an hour (1800) suits a deployment.",
    )
    member_bytes: int = Field(64 << 20, ge=1, description="Largest member that is read, bytes.")
    image_pixels: int = Field(89_478_485, ge=1, description="Largest image that is decoded, pixels.")
    caption_bytes: int = Field(10_000, ge=1, description="Longest caption that becomes a pair, bytes of UTF-8.")
    shard_members: int = Field(1_000_000, ge=1, description="Most members of a shard that are read.")
    unpacked_bytes: int = Field(16 << 30, ge=1, description="Most bytes that a compressed shard may unpack to.")

    duplicate_bits: int = Field(
        4, ge=0, le=16, description="Bits of 64 in which perceptual hashes of near-duplicates may differ."
    )
    semantic_clusters: int | None = Field(
        None, ge=1, le=16_384, description="Semantic clusters of images; unset, the square root of their number."
    )
    keep_fraction: Fraction = Field(Decimal("0.30"), description="Share of pairs kept by the first policy.")
    keep_per_corpus: dict[str, Fraction] = Field(
        default_factory=dict, description='Keep fraction of named corpora, as JSON: {"cc12m": 0.3}.'
    )
    min_coverage: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of live shards a newly promoted model must have scored to be used.",
    )
    least_group_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="A check warns of a domain, caption length or image size of which less than this times the share "
        "of all candidates is kept.",
    )

    backbone: Literal["blip-tiny", "blip", "dual", "offline"] = Field("blip-tiny", description="Reward model network.")
    model: str | None = Field(None, description="Local folder or hub id of the pre-trained backbone.")
    revision: str | None = Field(None, description="Pinned revision; required with a hub id.")
    image_size: int | None = Field(None, ge=16, le=1024, description="Input side, pixels; backbone's if unset.")
    caption_tokens: int | None = Field(None, ge=8, le=512, description="Caption limit, tokens.")
    learning_rate: float | None = Field(None, gt=0, lt=1, description="Peak learning rate.")
    frozen_share: float | None = Field(None, ge=0, le=1, description="Share of encoder layers kept frozen.")
    batch_images: int | None = Field(None, ge=1, description="Images in a training batch.")
    accumulation: int | None = Field(
        None, ge=1, description="Such batches in one training step; a multiple of the processes."
    )
    processes: int | None = Field(
        None, ge=1, description="Processes that share a training step's batches, each on a GPU of its own."
    )
    train_precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="Precision of the forward pass in training; fp16 needs a GPU."
    )
    pretrain_steps: int | None = Field(None, ge=0, description="Steps of label-free pre-training on the crawl.")
    train_steps: int | None = Field(None, ge=1, description="Steps of training on human judgements.")
    patience: int | None = Field(
        None, ge=0, description="Validations without better preference accuracy before training stops; 0 never stops."
    )
    anchor_weight: float | None = Field(
        None, ge=0, description="Weight of the cross-image anchors, against 1 for comparisons; 0 leaves them out."
    )
    rating_weight: float | None = Field(None, ge=0, description="Weight of ratings as a level; 0 leaves them out.")
    criteria_weight: float | None = Field(
        None, ge=0, description="Weight of the heads of single criteria; 0 leaves them out."
    )
    min_cross_image_auc: float = Field(
        0.6, ge=0.5, le=1, description="Promotion gate: matched above mismatched pairs, pooled over images."
    )
    min_gain: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="Promotion gate: agreement with people minus that of each baseline and of the promoted model, "
        "least lower end of its 95 % interval; -1 asks for nothing.",
    )
    max_ece: float = Field(
        0.15, ge=0, le=1, description="Promotion gate: largest expected calibration error; 1 asks for nothing."
    )
    shortcuts_told: list[Shortcut] = Field(
        default_factory=list,
        description='Promotion gate: shortcut checks that are shown and do not decide, as JSON: ["shuffled_words"].',
    )
    seed: int = Field(7, ge=0, description="Seed of training, splits and random controls.")

    engine: Literal["here", "devices", "ray"] = Field(
        "here",
        description="Where scoring runs: in the step's process, in a process for each GPU of this machine, or by "
        "actors on a Ray cluster. Changes no score.",
    )
    score_workers: int | None = Field(
        None, ge=1, description="Such processes or actors; unset, one for each GPU, or one a machine without GPUs."
    )
    score_stall_minutes: float = Field(
        30, gt=0, description="Minutes without a scored pair after which such a process or actor counts as dead."
    )
    ray_address: str | None = Field(
        None, description="Running Ray cluster, `auto` or `HOST:PORT`; unset, one is started on this machine."
    )
    worker_memory_gib: float = Field(
        4.0, gt=0, description="Memory of one scoring worker, GiB, asked of Ray and Kubernetes."
    )
    device_hour_cost: float = Field(
        0.0, ge=0, description="Cost of one device for an hour, in your currency; 0 leaves costs out of the metadata."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device for training and scoring.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Precision of the scoring forward; a device that cannot do it is an error."
    )
    score_batch_images: int | None = Field(
        None, ge=1, description="Images encoded at once; unset, what suits the device. Changes no score."
    )

    evaluation_encoder: Literal["small", "blip-b16"] = Field("small", description="Network trained downstream.")
    evaluation_steps: int | None = Field(None, ge=1, description="Training steps of every downstream arm.")

    @model_validator(mode="before")
    @classmethod
    def _fill_folders(cls, values: dict[str, Any]) -> dict[str, Any]:
        profile = str(values.get("profile", "sample"))
        home = str(values.get("home", "var/{profile}")).replace("{profile}", profile)
        filled = {**values, "home": home}
        for name in ("store", "landing", "checkpoints", "labels", "evaluation"):
            filled.setdefault(name, f"{home}/{name}")
        return filled

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    @property
    def pages_url(self) -> str:
        """Where the store's pages are served."""
        return f"http://127.0.0.1:{self.pages_port}"

    @property
    def dagster_home(self) -> Path:
        """The Dagster instance of this profile."""
        return self.home / "dagster"


def load(**overrides: Any) -> Settings:
    """The settings in force: overrides, then the environment, then the profile's defaults."""
    _refuse_unknown_variables(os.environ)
    profile = str(overrides.get("profile", os.environ.get(f"{PREFIX}PROFILE", "sample")))
    given = {name.removeprefix(PREFIX).lower() for name in os.environ if name.startswith(PREFIX)}
    defaults = {name: default.value for name, default in PROFILES.get(profile, {}).items() if name not in given}
    try:
        settings = Settings(**{**defaults, **overrides})
    except ValidationError as error:
        raise _explain(error) from None
    except SettingsError as error:
        raise InputError(
            f"settings {PREFIX}*",
            expected='a value that is JSON, such as {"cc12m": 0.3}',
            found=str(error),
            remedy="Correct the variable or unset it for the profile's default.",
        ) from None
    _check_places(settings)
    return settings


def _check_places(settings: Settings) -> None:
    """Refuse credentials in a URL, for Dagster and `doctor` show those, and places that the crawl would swallow."""
    landing = _place(settings.landing)
    for name in ("landing", "store", "labels", "evaluation"):
        url = getattr(settings, name)
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise InputError(
                f"setting {PREFIX}{name.upper()}",
                expected="a folder, s3://bucket or s3://bucket/prefix",
                found="something before an @, which is not repeated here",
                remedy="Credentials do not belong into a URL: set AWS_ACCESS_KEY_ID or AWS_PROFILE.",
            )
        if name != "landing" and _place(url).startswith(landing):
            raise InputError(
                f"setting {PREFIX}{name.upper()}",
                expected="a place outside the landing place, where all is crawl",
                found="one inside it",
                remedy=f"Set {PREFIX}LANDING to a folder or prefix of its own.",
            )


def _place(url: str) -> str:
    path = url if "://" in url else str(Path(url).absolute())
    return path.rstrip("/") + "/"


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(environment):
        if variable.upper().startswith(PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable.upper(), known, n=1)
            hint = f"Did you mean {close[0]}?" if close else "docs/settings.md lists every variable."
            raise InputError(
                f"environment variable {variable}",
                expected="a known setting",
                found="no such one",
                remedy=hint,
            )


def _explain(error: ValidationError) -> InputError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    field = Settings.model_fields.get(name)
    return InputError(
        f"setting {PREFIX}{name.upper()}",
        expected=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
        found=repr(first["input"]),
        remedy=f"{field.description if field else ''} Correct the variable or unset it for the profile's default.",
    )
