"""A version as SQL: every pair with its decision, for DuckDB, the audit database and the commands that pages show."""

import duckdb

from compalign_dagster.selection.ranked import as_table
from compalign_dagster.selection.tables import CAPPED, CUTS, LISTS, SHARDS_USED
from compalign_dagster.selection.version import Version

DECIDED = """
select f.batch, r.file_row_number as row, r.* exclude (reason, filename, file_row_number),
    case
        when r.reason is not null then r.reason
        when c.reason is not null then c.reason
        when r.file_row_number < l.start + l.taken then null
        when b.k = 0 then 'no_budget'
        when r.reward = b.cut then 'tied_at_cut'
        else 'below_cut'
    end as reason
from ranked r
join list_files f on f.file = r.filename
join lists l on l.batch = f.batch and l.corpus = r.corpus
join cuts b on b.budget = l.budget
left join capped c on c.batch = f.batch and c.row = r.file_row_number
"""


def create_views(connection: duckdb.DuckDBPyConnection, version: Version) -> None:
    """Tables `lists, cuts, capped, shards_used, list_files` and views `ranked, decided, kept, dropped`.

    The views read the lists' own files; those of a bucket are copied to this machine first.
    """
    tables = {"lists": LISTS, "cuts": CUTS, "capped": CAPPED}
    for name, schema in tables.items():
        _table(connection, name, as_table(getattr(version, name), schema))
    _table(connection, "shards_used", as_table(version.shards, SHARDS_USED))
    files = [(str(version.ranked_list(batch).fetch("ranked.parquet")), batch) for batch in version.batches()]
    connection.execute("create or replace table list_files (file text, batch text)")
    connection.executemany("insert into list_files values (?, ?)", files)
    paths = ", ".join(_quoted(path) for path, _ in files)
    read = f"read_parquet([{paths}], filename = true, file_row_number = true)"
    connection.execute(f"create or replace view ranked as select * from {read}")  # noqa: S608 - quoted
    connection.execute(f"create or replace view decided as {DECIDED}")
    connection.execute("create or replace view kept as select * exclude (reason) from decided where reason is null")
    connection.execute("create or replace view dropped as select * from decided where reason is not null")


def _table(connection: duckdb.DuckDBPyConnection, name: str, table: object) -> None:
    connection.register("incoming", table)
    connection.execute(f"create or replace table {name} as select * from incoming")  # noqa: S608 - names of our own
    connection.unregister("incoming")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
