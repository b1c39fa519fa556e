"""`compalign train`: a reward model from human judgements, as an immutable folder."""

import json
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compalign_dagster.cli import options
from compalign_dagster.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from compalign_dagster.crawl.shards import Shard


@click.command("train")
@click.option(
    "--annotations",
    metavar="PATH",
    multiple=True,
    required=True,
    help="Judgements, JSONL or Parquet: a file, a folder, a quoted glob or an s3:// prefix. May be repeated.",
)
@options.shards
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="A new model folder.")
@click.option(
    "--backbone", type=click.Choice(["blip-tiny", "blip", "dual", "offline"]), help="Network.  [default: blip-tiny]"
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Training settings as a JSON object or TOML; the backbone's defaults hold for the rest.",
)
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where a training that is killed goes on from; removed when done.  [default: .NAME.checkpoints beside OUT]",
)
@options.features
@options.device
@options.strict
def command(
    annotations: tuple[str, ...],
    patterns: tuple[str, ...],
    out: Path,
    backbone: str | None,
    config_file: Path | None,
    checkpoints: Path | None,
    features: Path | None,
    device: str,
    strict: bool,
) -> None:
    r"""Train a reward model: image and caption in, a number out that is larger where people prefer it.

    The shards must hold the judged images; other pairs in them are unlabelled material for a network
    that is trained from scratch. Images are split 80/10/10; figures in OUT/metrics.json come from the
    held-out part. A line that cannot be used costs that line, and is listed in OUT.rejected.json.

    \b
    compalign train --annotations labels.jsonl --shards judged/ --shards crawl/ --out model/
    compalign train --annotations labels/ --shards judged/ --out model/ --backbone offline
    compalign train ... --config settings.json        with {"steps": 600, "seed": 1}

    \b
    Networks, by what is at hand:
      blip-tiny  nothing: a small BLIP from scratch, minutes on a CPU; needs crawl pairs
      offline    the extra 'photos': frozen encoders from wheels, minutes on a CPU
      dual       a CLIP or SigLIP as "model": a folder, or a hub id with its "revision"
      blip       a BLIP with matching head as "model"; wants a GPU

    \b
    Settings that are often set (OUT/README.md lists all, and where each value comes from):
      steps, batch_images, lr, frozen_share   how long, how many images at once, how fast, how much rests
      accumulation, processes                 batches in one step; processes that share them, a GPU each
      precision                               fp32, bf16, or fp16 (GPU): of the forward pass
      validate_every, patience                stop after so many validations without better agreement
      anchor_weight, rating_weight, criteria_weight, labeler_weights     terms of the loss; 0 leaves one out

    The same command, run again after a kill, goes on from the newest checkpoint and ends with the same
    bytes; with other settings or data it starts anew.
    """
    from compalign_dagster.annotation.assemble import assemble
    from compalign_dagster.annotation.read import read_annotations
    from compalign_dagster.cli.files import unwritable, write_json
    from compalign_dagster.cli.progress import show_progress
    from compalign_dagster.compute import pick_device
    from compalign_dagster.crawl.shards import find_shards
    from compalign_dagster.reward.config import reward_config

    show_progress()
    config = reward_config(read_config(config_file) | ({"backbone": backbone} if backbone else {}))
    _refuse_taken(out)
    shards = find_shards(patterns)
    judged = assemble(*read_annotations(annotations), shards, seed=config.seed)
    pairs, refused = unlabelled(shards, judged.images)
    from compalign_dagster.evaluation.evidence import evidence_of
    from compalign_dagster.reward.data import TrainingData
    from compalign_dagster.reward.folder import model_version, save_model
    from compalign_dagster.reward.offline_encoders import remember_in
    from compalign_dagster.reward.training import train

    remember_in(features)
    data = TrainingData(
        judged.images,
        judged.captions,
        judged.ranks,
        judged.comparisons,
        pairs,
        {shard.name: shard for shard in shards},
    )
    beside = out.absolute()
    going = checkpoints or beside.with_name(f".{beside.name}.checkpoints")
    trained = train(config, data, device=pick_device(device), progress=options.progress(), checkpoints=going)
    evidence = evidence_of(trained.model, data, split="test", before=trained.before, seed=config.seed)
    metrics = {**trained.metrics, "evidence": evidence}
    temporary = beside.with_name(f".{beside.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        save_model(trained.model, temporary, metrics=metrics, record=trained.record)
        version = model_version(temporary)
        temporary.replace(out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    trained.discard_checkpoints()
    if checkpoints is None:
        shutil.rmtree(going, ignore_errors=True)  # of other settings that were tried for this OUT
    click.echo(f"model {version[:12]}: {out}")
    for line in _summary(metrics, trained.record):
        click.echo(line)
    if judged.rejected.num_rows:
        rejected = out.with_name(f"{out.name}.rejected.json")
        write_json(rejected, {"rejected": judged.rejected.to_pylist()})
        click.echo(f"{judged.rejected.num_rows:,} lines rejected: {rejected}")
    if strict and (judged.rejected.num_rows or refused):
        raise SystemExit(1)


def read_config(path: Path | None) -> dict[str, Any]:
    """Settings from a JSON or TOML file; none without a file."""
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise _bad_config(path, str(error)) from error
    if not isinstance(settings, dict):
        raise _bad_config(path, type(settings).__name__)
    return settings


def _bad_config(path: Path, found: str) -> InputError:
    return InputError(
        f"configuration {path}",
        expected="a JSON object or a TOML table of settings",
        found=found,
        remedy="Correct the file or leave --config out.",
    )


def unlabelled(shards: list["Shard"], images: "pa.Table") -> tuple["pa.Table", Counter[str]]:
    """Pairs that nobody judged, and what the shards' indexes refused, by reason.

    Where the judged images of the training split have more pairs in the shards, those too: a few images that were
    forgotten in a folder of judged ones are no crawl to learn from.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from compalign_dagster.crawl.index import concat, index_shard, reasons_of

    index = concat(map(index_shard, shards))
    trained = pc.equal(images["split"], pa.scalar("train"))

    def of(judged: "pa.Table") -> Any:
        return pc.is_in(index.pairs["image_sha256"], value_set=judged["image_id"].combine_chunks())

    free, learned = pc.invert(of(images)), of(images.filter(trained))
    few = (pc.sum(free).as_py() or 0) < (pc.sum(learned).as_py() or 0)
    return index.pairs.filter(pc.or_(free, learned) if few else free), reasons_of(index.quarantine)


def _refuse_taken(out: Path) -> None:
    """Before any work: a model folder is immutable, so a new one is needed."""
    if out.exists() and any(out.iterdir()):
        raise InputError(
            f"model folder {out}",
            expected="a new or empty folder",
            found="files",
            remedy="Choose another --out.",
        )


def _summary(metrics: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Held-out figures, the reward's gain over each score it replaces, and what the model could not read."""
    for name in ("preference_accuracy", "cross_image_auc"):
        yield _figure(name.replace("_", " "), metrics.get(name))
    scorers = metrics["evidence"]["scorers"]
    yield _figure("Kendall tau-c with single ratings", scorers["reward"].get("tau_c"))
    for name, figures in scorers.items():
        gain = figures.get("reward_minus_this")
        if isinstance(gain, dict) and gain.get("value") is not None and name != "reward":
            yield _figure(f"preference accuracy, minus that of {name.replace('_', ' ')}", gain)
    failed = [name for name, check in metrics["evidence"]["shortcuts"].items() if check["passed"] is False]
    if failed:
        yield f"not shown to be free of shortcuts: {', '.join(sorted(failed))} (see metrics.json)"
    counts, limit = record["counts"], record["config"]["max_caption_tokens"]
    for kind in ("judged", "crawl"):
        if counts.get(f"{kind}_captions_over_long"):
            count = counts[f"{kind}_captions_over_long"]
            yield f"{count:,} {kind} captions are longer than {limit} tokens: only their beginning is read"
    if metrics.get("validation_stuck_at_ln2"):
        yield "the validation loss stayed at ln 2: this model does not tell captions apart"


def _figure(label: str, estimate: Any) -> str:
    if not isinstance(estimate, dict) or estimate.get("value") is None:
        return f"{label}: not measured"
    if estimate.get("low") is None:
        return f"{label}: {estimate['value']:.3f} (n = {estimate.get('n')})"
    interval = f"95 % interval {estimate['low']:.3f} to {estimate['high']:.3f}"
    return f"{label}: {estimate['value']:.3f}, {interval}, n = {estimate['n']}"
