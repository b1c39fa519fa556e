"""`compalign audit-db`: a DuckDB database over everything the store holds."""

from pathlib import Path

import click


@click.command("audit-db")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--version", "name", default="current", show_default=True, metavar="VERSION",
    help="The dataset version that decided, kept and dropped show.",
)  # fmt: skip
def command(out: Path, name: str) -> None:
    r"""Build OUT.duckdb: views over the store's Parquet files, and tables of what was decided.

    pairs, scores, quarantine, decided, kept, dropped, shards, batches, models, judges, decisions, versions,
    cuts, all_cuts, ledger, block_list, reasons. docs/auditing.md has queries.

    \b
    compalign audit-db audit.duckdb
    duckdb audit.duckdb "select reason, count(*) from decided group by all order by 2 desc"
    """
    from compalign_dagster.cli.terminal import table
    from compalign_dagster.lineage.audit_db import build
    from compalign_dagster.selection import versions
    from compalign_dagster.settings import load
    from resources.storage import Storage

    store = Storage.from_settings(load()).store
    version = versions.resolve(store, name) if versions.history(store) else None
    counts = build(store, out, version)
    click.echo(table(("table or view", "rows"), [(what, f"{rows:,}") for what, rows in counts.items()]))
    click.echo(f"{out}" + ("" if version else "; no version was published yet, so nothing is decided"))
