"""The data card of a version: `README.md`, generated, from which alone the dataset can be judged and loaded.

YAML front matter in the field names of Hugging Face's dataset cards, then text. What does not belong here: any
figure that the version's facts do not hold, and pictures (`pages/`).
"""

import json
from collections.abc import Mapping
from typing import Any

from compalign_dagster.markdown import code, inert, table
from compalign_dagster.selection.croissant import LICENSE, PAPER
from compalign_dagster.selection.limits import known_limits
from compalign_dagster.selection.policy import REST
from compalign_dagster.selection.reasons import MEANING
from compalign_dagster.selection.version import Version

CARD = "README.md"

_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
_CORPORA_SHOWN = 100
_FILES_SHOWN = 100


def data_card(version: Version, files: Mapping[str, Mapping[str, Any]], plots: Mapping[str, str]) -> str:
    """The text of the card; the same version, files and plots (name -> what it shows) give the same text."""
    parts = [
        _front_matter(version, files),
        _what(version),
        _plots(plots),
        _account(version),
        _origin(version),
        _policy(version),
        _limits(version),
        _load(version, files),
        _terms(),
        _files(files),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front_matter(version: Version, files: Mapping[str, Any]) -> str:
    kept = version.facts["kept"]
    names = ["<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B"]
    lines = [
        "---",
        f'pretty_name: "Kept pairs {version.artifact.work_key[:12]}"',
        'license: "unknown"',
        f'size_categories: ["{names[sum(kept >= size for size in _SIZES)]}"]',
        'tags: ["image-text", "webdataset", "data-filtering", "compalign"]',
    ]
    if "kept.parquet" in files:
        lines.append('configs: [{"config_name": "kept", "data_files": "kept.parquet"}]')
    return "\n".join([*lines, "---"])


def _what(version: Version) -> str:
    facts = version.facts
    kept = f"{facts['kept']:,} of {facts['pairs']:,} image-text pairs ({_share(facts['kept'], facts['pairs'])})"
    return f"""# Kept pairs {version.artifact.work_key[:12]}

{kept}, found on the web and kept because a reward model that learned from human preferences gives them the highest
rewards, by the policy below (after "{PAPER}"). Images lie unchanged in the shards that landed.

- version: `{version.artifact.manifest_key}`
- data version: `{version.artifact.data_version}`
- made: {inert(version.artifact.manifest["created"])}"""


def _plots(plots: Mapping[str, str]) -> str:
    return "\n\n".join(f"![{inert(about)}]({name})" for name, about in plots.items())


def _account(version: Version) -> str:
    facts = version.facts
    whole = facts["pairs"]
    taken = [(name, facts["dropped_by_reason"].get(name, 0), what) for name, what in MEANING.items()]
    taken.append(("quarantined", facts["quarantined"], "could not be scored"))
    rows = [("pairs found", f"{whole:,}", "100 %", "what the crawl's shards hold and could be read")]
    rows += [(f"- {name}", f"{count:,}", _share(count, whole), what) for name, count, what in taken if count]
    rows.append(("kept", f"{facts['kept']:,}", _share(facts["kept"], whole), ""))
    return f"""## What was kept, and why the rest was not

Each dropped pair has exactly one reason, the first that applies in this order; the lines add up.

{table(("pairs", "count", "share", "meaning"), rows)}"""


def _origin(version: Version) -> str:
    facts = version.facts
    corpora = list(facts["corpora"].items())
    rows = [
        (inert(name), f"{of['pairs']:,}", f"{of['kept']:,}", _share(of["kept"], of["pairs"]))
        for name, of in corpora[:_CORPORA_SHOWN]
    ]
    more = f"\n\nAnd {len(corpora) - _CORPORA_SHOWN:,} more corpora." if len(corpora) > _CORPORA_SHOWN else ""
    model = facts.get("model_version")
    return f"""## Where it comes from

{version.shards.height:,} shards in {len(version.batches()):,} batches, scored by reward model
{code(model) if model else "(not recorded)"}. `compalign trace PAIR_ID` tells of a pair where its bytes landed, every
score and decision, and from whose judgements the model learned.

{table(("corpus", "pairs", "kept", "share"), rows)}{more}"""


def _policy(version: Version) -> str:
    told = version.policy.model_dump(mode="json", exclude_defaults=True)
    rules = [(code(name), code(json.dumps(value))) for name, value in told.items()]
    cuts = [
        (
            "all that have none of their own" if row["budget"] == REST else inert(row["budget"]),
            f"{row['n']:,}",
            f"{row['k']:,}",
            f"{row['kept']:,}" + (" (no more candidates)" if row["short"] else ""),
            "-" if row["cut"] is None else f"{row['cut']:.6g}",
        )
        for row in version.cuts.head(_CORPORA_SHOWN).iter_rows(named=True)
    ]
    return f"""## Policy

{table(("rule", "value"), rules)}

{table(("budget", "pairs", "to keep", "kept", "lowest kept reward"), cuts)}"""


def _limits(version: Version) -> str:
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in known_limits(version))


def _load(version: Version, files: Mapping[str, Any]) -> str:
    parts = [
        f"""## Load it

Images by range from the shards where they landed, shuffled, over workers and ranks, resumable
(`pip install compalign-dagster`):

```python
from compalign_dagster.selection.training import KeptPairs, Loader

pairs = KeptPairs.open("STORE", "LANDING", "{version.artifact.work_key}")
for batch in Loader(pairs, batch_size=256):
    batch["image"], batch["caption"]  # bytes as they landed, text
```"""
    ]
    if "kept.parquet" in files:
        parts.append(
            "The table, with `shard`, `image_offset` and `image_length` of each image:\n\n"
            '```python\nimport polars as pl\n\npairs = pl.read_parquet("kept.parquet")\n```'
        )
    if "uids.npy" in files:
        parts.append(
            "The identifiers, for tools that filter by them:\n\n"
            '```python\nimport numpy as np\n\nuids = np.load("uids.npy")  # f0, f1: leading and trailing 64 bits\n```'
        )
    if any(name.endswith(".tar") for name in files):
        parts.append("`shards/*.tar` are webdataset shards: an image and a `.json` with its captions in each sample.")
    return "\n\n".join(parts)


def _terms() -> str:
    return f"""## Licence and citation

The licence is {LICENSE}.

Cite: {PAPER}, and the data version above."""


def _files(files: Mapping[str, Mapping[str, Any]]) -> str:
    if not files:
        return ""
    rows = [
        (code(name), f"{entry['bytes']:,}", code(entry["sha256"]), inert(entry["about"]))
        for name, entry in sorted(files.items())[:_FILES_SHOWN]
    ]
    more = f"\n\nAnd {len(files) - _FILES_SHOWN:,} more, in `export.json`." if len(files) > _FILES_SHOWN else ""
    return f"## Files\n\n{table(('file', 'bytes', 'SHA-256', 'what it is'), rows)}{more}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"
