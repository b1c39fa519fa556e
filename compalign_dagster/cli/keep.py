"""`compalign keep`: exactly the best fraction of scored pairs."""

from pathlib import Path

import click


@click.command("keep")
@click.option(
    "--scores",
    "patterns",
    metavar="GLOB",
    multiple=True,
    required=True,
    help="Score tables: a file, a folder, a quoted glob or an s3:// prefix. May be repeated.",
)
@click.option("--fraction", required=True, metavar="F", help="Share of the pairs to keep, a decimal from 0 to 1.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Parquet file to write.")
def command(patterns: tuple[str, ...], fraction: str, out: Path) -> None:
    r"""Keep the pairs with the highest rewards: exactly F x n of them, halves rounded up.

    F is read as a decimal: 0.1 is one tenth. Ties are broken by (pair_id, shard, key, caption_index),
    so that the answer never depends on the order of files. Scores of two models do not compare and
    are refused. FILE.parquet holds pair_id, shard, key, caption_index, reward.

    \b
    compalign keep --scores scores.parquet --fraction 0.3 --out kept.parquet
    compalign keep --scores 'scores/*.parquet' --fraction 0.105 --out kept.parquet
    """
    from compalign_dagster.cli.files import find_tables, table_file
    from compalign_dagster.selection.policy import Policy, parse_fraction
    from compalign_dagster.selection.ranked import as_table
    from compalign_dagster.selection.select import decide
    from compalign_dagster.selection.tables import SELECTION

    policy = Policy(keep_fraction=parse_fraction(fraction, "option --fraction"))
    decided = decide(find_tables(patterns), policy)
    kept = as_table(decided.filter("kept"), SELECTION)
    with table_file(out, SELECTION) as table:
        table.write_table(kept)
    rewards = kept["reward"].to_numpy()
    cut = f", rewards from {rewards.min():.4f}" if len(rewards) else ""
    click.echo(f"kept {kept.num_rows:,} of {decided.height:,} pairs{cut}: {out}")
