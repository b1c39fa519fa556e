"""Run by a test in a process of its own: trains two steps and scores a shard on a "bare GPU machine".

Only the standard library, this repository and what pip would install for the allowed packages can be
imported; everything else behaves as if it were not installed.
"""

import re
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

ALLOWED = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "pillow", "pyarrow")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(names: tuple[str, ...]) -> set[str]:
    """The distributions that pip would install for these."""
    found: set[str] = set()
    waiting = [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in requirements:
            if "extra ==" not in requirement:
                waiting.append(normal(re.match(r"[A-Za-z0-9._-]+", requirement)[0]))
    return found


class OnlyAllowed:
    """A path finder to which everything else is not installed."""

    def __init__(self, tops: set[str]) -> None:
        self.tops = tops

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.tops or name.startswith("_sysconfigdata"):
            return PathFinder.find_spec(name, path, target)
        return None

    def find_distributions(self, context=None):
        return PathFinder.find_distributions(context)

    def invalidate_caches(self):
        PathFinder.invalidate_caches()


def main(root: str, folder: str) -> None:
    distributions = required(ALLOWED)
    owners = metadata.packages_distributions()
    tops = {top for top, names in owners.items() if any(normal(name) in distributions for name in names)}
    tops |= set(sys.stdlib_module_names) | {"compalign_dagster", "tests"}
    sys.path.insert(0, root)
    finder = OnlyAllowed(tops)
    sys.meta_path[:] = [finder if entry is PathFinder else entry for entry in sys.meta_path]
    for name in ("polars", "duckdb", "dagster", "pandas", "matplotlib", "great_expectations", "boto3"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{name} could be imported: the block does not work")
    print("polars-blocked")

    from compalign_dagster.crawl.index import index_shard
    from compalign_dagster.reward.folder import load_model, model_version, save_model
    from compalign_dagster.reward.training import train
    from compalign_dagster.scoring.engine import score_shard
    from tests.support.tiny_reward import tiny_config, tiny_data

    data = tiny_data(Path(folder))
    trained = train(tiny_config(), data)
    saved = save_model(trained.model, Path(folder) / "model", metrics=trained.metrics, record=trained.record)
    shard = data.shards["web/00000.tar"]
    found = score_shard(load_model(saved), model_version(saved), shard, index_shard(shard).pairs)
    print("scored", len(found.scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
