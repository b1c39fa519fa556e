"""The model card of a reward model: `README.md`, generated, from which alone the model can be picked up.

YAML front matter in the field names of Hugging Face's model cards, then text. Plain strings, because a
bare GPU machine writes cards too. What does not belong here: any figure that metrics or record do not hold.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from compalign_dagster.markdown import code, inert, table
from compalign_dagster.reward.config import reward_config, sources
from compalign_dagster.reward.manifest import METRICS, RECORD, Manifest
from compalign_dagster.versions import digest_json

_LICENSE = "follows-its-training-data"
_FIGURES = {  # key of an estimate: name for people
    "preference_accuracy": "agrees with people on two captions of one image",
    "tau_b": "Kendall's tau-b with people's ratings",
    "tau_c": "Kendall's tau-c with people's ratings",
    "spearman": "Spearman correlation with people's ratings",
    "cross_image_auc": "matched above mismatched pairs, across images (AUC)",
    "human_auc": "people's yes above their no, across images (AUC)",
}
_INDEXED = ("preference_accuracy", "tau_c", "cross_image_auc", "human_auc")  # in the front matter


def model_card(manifest: Manifest, metrics: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The text of the card; the same model, metrics and record give the same text."""
    parts = [
        _front_matter(manifest, metrics),
        _what(manifest),
        _how_to_use(manifest),
        _intended_use(),
        _training_data(manifest, record),
        _configuration(manifest),
        _figures(metrics),
        _calibration(metrics),
        _uncertainty(record),
        _shortcuts(metrics),
        _over_long(manifest, metrics, record),
        _environment(manifest, record),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front_matter(manifest: Manifest, metrics: Mapping[str, Any]) -> str:
    """YAML; every value is written as JSON, which YAML reads."""
    name = f"compalign-reward-{manifest.backbone}-{manifest.model_version[:12]}"
    lines = [
        "---",
        'license: "other"',
        f'license_name: "{_LICENSE}"',
        'library_name: "compalign-dagster"',
        'tags: ["reward-model", "image-text", "data-filtering", "human-preferences", "safetensors"]',
    ]
    source = manifest.config.get("model")
    if source and manifest.config.get("revision"):
        lines.append(f"base_model: {_quoted(source)}")
    figures = _headline(metrics)
    if figures:
        # A result without a metric is no result to readers of model cards.
        lines += ["model-index:", f"- name: {_quoted(name)}", "  results:", "  - task:"]
        lines += ['      type: "image-text-preference"', "    dataset:", '      type: "human-judgements"']
        lines += [f'      name: "held-out images of data version {_short(manifest.about.get("training_data"))}"']
        lines.append("    metrics:")
        for key, figure in figures.items():
            lines += [f"    - type: {_quoted(key)}", f"      name: {_quoted(_FIGURES[key])}"]
            lines += [f"      value: {figure['value']:.4f}"]
    return "\n".join([*lines, "---"])


def _what(manifest: Manifest) -> str:
    return f"""# Reward model {manifest.model_version[:12]} ({manifest.backbone})

A network that gives an image and a caption one number, larger where people would prefer the caption for
the image. It has learned from human comparisons, with anchors across images, so that one cut can hold for
a whole crawl (after "Compress & Align", arXiv 2312.06726). This card was written by the training.

- version: `{manifest.model_version}`
- backbone: `{manifest.backbone}`; weights are safetensors; loading executes nothing from this folder"""


def _how_to_use(manifest: Manifest) -> str:
    return f"""## Use it

With {_requirement(manifest)} installed in a Python 3.11, put this folder somewhere as `model/` and webdataset
tars below `shards/`:

```bash
compalign score --model model --shards shards/ --out scores.parquet
```

`scores.parquet` has one row for each image and caption: `pair_id, shard, key, caption_index, caption, reward,
model_version`, and the label-free scores that the backbone has. What could not be scored is in
`scores.quarantine.parquet` with a reason. Or in Python, one image at a time:

```python
from pathlib import Path

import torch

from compalign_dagster.images import decode
from compalign_dagster.reward.folder import load_model

model = load_model(Path("model"))
with torch.inference_mode():
    image = model.prepare(decode(Path("image.jpg").read_bytes(), side=model.image_side))
    states = model.encode_images(image[None].to(model.device))
    captions = ["a caption", "another caption of the same image"]
    scores = model(states, captions, torch.zeros(len(captions), dtype=torch.int64))
print(scores.reward.tolist())
print(model.human_fit(scores.reward).tolist())  # probability that a person says the caption fits
```

Both refuse a folder of which one byte was changed, and name the file."""


def _requirement(manifest: Manifest) -> str:
    version = (manifest.about.get("libraries") or {}).get("compalign-dagster") or ""
    extra = "[photos]" if manifest.backbone == "offline" else ""
    return f"`compalign-dagster{extra}{f'=={version}' if version else ''}`"


def _intended_use() -> str:
    return """## Intended use and limits

- Meant for: ranking and filtering image-text pairs of a crawl, with people choosing the cut.
- Not meant for: judging people, moderation, deciding what is true, or any use where one wrong pair matters.
- A reward is relative to this version: rewards of two models do not compare.
- It is as good as its judges: their languages, cultures and blind spots are its own. Captions in languages
  that nobody judged are scored, and such scores mean little.
- The figures below hold for images like those that were held out. Measure again on your own."""


def _training_data(manifest: Manifest, record: Mapping[str, Any]) -> str:
    rows = [("data version", _code(manifest.about.get("training_data")))]
    counts = record.get("counts") or {}
    rows += [(name.replace("_", " "), f"{value:,}") for name, value in counts.items() if type(value) is int]
    data = record.get("data") or {}
    rows += [(name.replace("_", " "), inert(_listed(value))) for name, value in sorted(data.items())]
    weights = record.get("labeler_weights") or manifest.config.get("labeler_weights") or {}
    rows.append(("labeler weights", inert(_listed(weights)) if weights else "all 1"))
    return f"""## Training data

{table(("fact", "value"), rows)}

Images are split by a hash of their bytes into train, validation and test: no image is in two splits. The
licence of the weights follows the judgements, images and pretrained weights they were made from: ask whoever
trained this model before you pass it on. The code is Apache-2.0."""


def _configuration(manifest: Manifest) -> str:
    provenance = sources(reward_config(manifest.config))
    rows = [
        (code(name), _code(value), inert(provenance.get(name, "")))
        for name, value in sorted(manifest.config.items())
        if value not in (None, {}, [])
    ]
    pretrained, seeds, versions = (
        inert(_listed(manifest.about.get(name) or {})) for name in ("pretrained", "seeds", "code_versions")
    )
    return f"""## Configuration

{table(("setting", "value", "where it comes from"), rows)}

Pretrained weights: {pretrained or "none, trained from scratch"}. Seeds: {seeds or "not recorded"}. Code versions:
{versions or "not recorded"}."""


def _figures(metrics: Mapping[str, Any]) -> str:
    scorers = (metrics.get("evidence") or {}).get("scorers") or _first_figures(metrics)
    rows = []
    for scorer, figures in scorers.items():
        row = [_estimate(figures.get(key)) for key in (*_FIGURES, "reward_minus_this")]
        if any(cell != "-" for cell in row):
            rows.append((_words(scorer), *row))
    if not rows:
        return "## Held-out figures\n\nNone were measured: no images were held out. Do not rely on this model."
    head = ("scorer", *_FIGURES.values(), "reward minus this (paired, first column)")
    images = metrics.get("test_images")
    held_out = f"{images:,} images" if type(images) is int else "images"
    ceiling = (metrics.get("evidence") or {}).get("ceiling")
    above = f"\n\nHuman ceiling: {_estimate(ceiling)}." if _measured(ceiling) else ""
    return f"""## Held-out figures

On {held_out} that training never saw: value (95 % interval over images, n). Cosine, ITM and the label-free
score used no human label and were taken before training on judgements; text only learned from the same judgements
and never saw an image.

{table(head, rows)}{above}

Every figure, also by caption source, length and criterion, is in `{METRICS}`."""


def _first_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {"reward": metrics, **(metrics.get("baselines") or {})}


def _headline(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    reward = {**metrics, **((metrics.get("evidence") or {}).get("scorers") or {}).get("reward", {})}
    return {key: reward[key] for key in _INDEXED if _measured(reward.get(key))}


def _calibration(metrics: Mapping[str, Any]) -> str:
    found = (metrics.get("evidence") or {}).get("calibration") or {}
    if not _measured(found.get("ece")):
        return "## Calibration\n\nNot measured: `human_fit` is NaN where no ratings were held out."
    return f"""## Calibration

P(a person says the caption fits) = sigmoid(slope x reward + offset), slope {_number(found.get("slope"))}, offset
{_number(found.get("offset"))}, fitted on the validation split. Expected calibration error on the test split:
{_estimate(found["ece"])}."""


def _uncertainty(record: Mapping[str, Any]) -> str:
    found = record.get("uncertainty")
    if not found:
        return "## How sure a reward is\n\nNot measured: `reward_std` is NaN where no comparisons were held out."
    return f"""## How sure a reward is

`reward_std` is a standard deviation of the reward, given the judgements above: they decide some
{_number(found.get("effective_weights"))} weights of the last layer, and the rest is left to a prior of precision
{_number(found.get("precision"))}. It knows nothing of errors below the last layer, nor of those that all judges
share."""


def _shortcuts(metrics: Mapping[str, Any]) -> str:
    found = (metrics.get("evidence") or {}).get("shortcuts") or {}
    if not found:
        return "## Shortcut checks\n\nNot measured."
    rows = [
        (
            _words(name),
            "passed" if check.get("passed") else "FAILED" if _measured(check.get("figure")) else "not measured",
            _estimate(check.get("figure")),
            _number(check.get("least")),
            inert(check.get("meaning", "")),
        )
        for name, check in found.items()
    ]
    return f"## Shortcut checks\n\n{table(('check', 'outcome', 'figure', 'least', 'meaning'), rows)}"


def _over_long(manifest: Manifest, metrics: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    counts = record.get("counts") or {}
    parts = [
        f"{counts[name]:,} {meaning}"
        for name, meaning in (
            ("judged_captions_over_long", "judged captions"),
            ("crawl_captions_over_long", "crawl captions"),
        )
        if type(counts.get(name)) is int
    ]
    found = (metrics.get("evidence") or {}).get("over_long")
    held_out = f" On the held-out images: {inert(_listed(found))}." if found else ""
    limit = manifest.config.get("max_caption_tokens")
    seen = f"In training, {' and '.join(parts)} were longer." if parts else ""
    return f"""## Long captions

The model reads the first {limit} tokens of a caption, and `compalign score` counts the captions of which it
read only the beginning. {seen}{held_out}"""


def _environment(manifest: Manifest, record: Mapping[str, Any]) -> str:
    libraries = manifest.about.get("libraries") or {}
    rows = [(name, _code(value)) for name, value in libraries.items()]
    rows += [(f"training {name}", _code(value)) for name, value in (record.get("environment") or {}).items()]
    files = [(code(name), code(facts["sha256"]), f"{facts['bytes']:,}") for name, facts in manifest.files.items()]
    return f"""## Environment

{table(("what", "version"), rows)}

## Files

`model.json` lists every file with its digest; loading verifies all of them. How training went, step by step,
is in `{RECORD}`. Digest of the configuration: `{digest_json(manifest.config)}`.

{table(("file", "SHA-256", "bytes"), files)}"""


def _measured(figure: Any) -> bool:
    return isinstance(figure, Mapping) and figure.get("value") is not None


def _estimate(figure: Any) -> str:
    if not _measured(figure):
        return "-"
    low, high = figure.get("low"), figure.get("high")
    interval = f"{_number(low)} to {_number(high)}, " if low is not None and high is not None else ""
    return f"{_number(figure['value'])} ({interval}n = {figure.get('n', 0):,})"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _listed(value: Any) -> str:
    return "; ".join(_items(value)) if value not in (None, {}, []) else ""


def _items(value: Any) -> Iterator[str]:
    """Nested facts as short text."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            inner = _listed(item) if isinstance(item, Mapping | list) else str(item)
            yield f"{name} {inner}" if inner else f"no {name}"
    elif isinstance(value, list | tuple):
        yield ", ".join(_listed(item) if isinstance(item, Mapping | list) else str(item) for item in value)
    else:
        yield str(value)


def _code(value: Any) -> str:
    return code(value if isinstance(value, str) else json.dumps(value)) if value is not None else "not recorded"


def _short(version: Any) -> str:
    return str(version)[:12] if version else "unknown"


def _words(name: str) -> str:
    return inert(name.replace("_", " "))


def _quoted(text: str) -> str:
    return json.dumps(text)
