"""`compalign what-if`: what another fraction or policy would keep, before anything is run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import load

if TYPE_CHECKING:
    from compalign_dagster.selection.hand import Hand
    from compalign_dagster.selection.policy import Policy
    from compalign_dagster.selection.version import Version
    from compalign_dagster.selection.whatif import Outcome
    from resources.storage import Storage

_USUAL = ("0.05", "0.1", "0.2", "0.3", "0.5", "0.7")


@click.command("what-if")
@click.option("--fraction", "fractions", metavar="F", multiple=True, help="Keep fraction to try. May be repeated.")
@click.option(
    "--corpus", "corpora", metavar="NAME=F", multiple=True, help="Keep fraction of a corpus to try. May be repeated."
)
@click.option(
    "--policy", "file", type=click.Path(dir_okay=False, path_type=Path), help="Policy file to try (TOML or JSON)."
)
@click.option("--dataset", "name", default="current", show_default=True, help="Version whose lists are counted.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON array, on stdout.")
@click.option(
    "--pairs",
    "side",
    type=click.Choice(["above", "below", "rungs"]),
    help="The pairs just above or below the cut, or at the cut of each fifth percent, in place of counts.",
)
@click.option(
    "--page", type=click.Path(dir_okay=False, path_type=Path), help="Also write the page with pictures to this file."
)
def command(
    fractions: tuple[str, ...],
    corpora: tuple[str, ...],
    file: Path | None,
    name: str,
    as_json: bool,
    side: str | None,
    page: Path | None,
) -> None:
    r"""Say what would be kept: counts, mean reward, expected fit, shares of corpora, domains, lengths, sizes.

    Nothing is scored and nothing published. The numbers are exact: a run with the same policy keeps them. A policy
    with other rules (floors, languages, patterns, sampling) needs lists that only a run makes, and is refused.
    Expected fit is the share of kept captions of which a person says that they fit, by the calibrated probability of
    each pair.

    \b
    compalign what-if --fraction 0.2 --fraction 0.25
    compalign what-if --corpus cc12m=0.3 --corpus laion=0.1
    compalign what-if --policy policy.toml --json
    compalign what-if --page what-if.html
    """
    from compalign_dagster.selection.hand import Hand
    from compalign_dagster.selection.versions import resolve
    from compalign_dagster.selection.whatif import what_if
    from resources.storage import Storage

    storage = Storage.from_settings(load())
    version = resolve(storage.store, name)
    if page is not None:
        _write(version, storage, page)
    hand = Hand(version)
    base = _base(version, file, corpora)
    if side is not None:
        _pairs(hand, base, side, as_json)
        return
    found = [what_if(hand, policy) for policy in _tried(base, fractions, given=file is not None or bool(corpora))]
    if as_json:
        click.echo(json.dumps([outcome.as_json() for outcome in found], indent=2))
        return
    show(found)
    if len(found) == 1:
        _groups(found[0])


def show(outcomes: Sequence["Outcome"]) -> None:
    """A table with one line for each outcome."""
    from compalign_dagster.cli.terminal import figure, share, table

    corpora = outcomes[0].groups.filter(dimension="corpus")["group"].to_list()[:6]
    rows = []
    for outcome in outcomes:
        kept = {row["group"]: row for row in outcome.groups.filter(dimension="corpus").to_dicts()}
        short = "  short" if any(row["short"] for row in outcome.budgets) else ""
        rows.append(
            [
                _asked(outcome.policy) + short,
                f"{outcome.kept:,}",
                share(outcome.kept, outcome.pairs),
                figure(outcome.mean_reward),
                "-" if outcome.expected_fit is None else f"{100 * outcome.expected_fit:.1f} %",
                *(share(kept[corpus]["kept"], kept[corpus]["candidates"]) for corpus in corpora),
            ]
        )
    click.echo(table(["keep", "kept", "of all", "mean reward", "expected fit", *corpora], rows))


def _asked(policy: "Policy") -> str:
    shared = str(policy.keep_count) if policy.keep_fraction is None else format(policy.keep_fraction, "f")
    own = [f"{name} {format(value, 'f')}" for name, value in policy.per_corpus.items()]
    own += [f"{name} {count}" for name, count in policy.count_per_corpus.items()]
    return ", ".join([shared, *own[:4], *(["..."] if len(own) > 4 else [])])


def _groups(outcome: "Outcome") -> None:
    from compalign_dagster.cli.terminal import share, table

    for (dimension,), rows in outcome.groups.partition_by("dimension", as_dict=True, maintain_order=True).items():
        lines = [
            [
                row["group"] or "(none)",
                f"{row['kept']:,}",
                f"{row['candidates']:,}",
                share(row["kept"], row["candidates"]),
            ]
            for row in rows.iter_rows(named=True)
        ]
        click.echo("\n" + table([str(dimension).replace("_", " "), "kept", "candidates", "share"], lines))


def _base(version: "Version", file: Path | None, corpora: Sequence[str]) -> "Policy":
    from compalign_dagster.selection import policy_file
    from compalign_dagster.selection.whatif import at_fraction

    pairs = [entry.rpartition("=") for entry in corpora]
    for corpus, equals, _ in pairs:
        if not (corpus and equals):
            raise click.UsageError("--corpus takes NAME=F, such as cc12m=0.3.")
    base = policy_file.read(file) if file else version.policy
    return at_fraction(base, None, {corpus: fraction for corpus, _, fraction in pairs})


def _tried(base: "Policy", fractions: Sequence[str], *, given: bool) -> list["Policy"]:
    from compalign_dagster.selection.policy import parse_fraction
    from compalign_dagster.selection.whatif import at_fraction

    wanted = fractions or ([] if given else _USUAL)
    return [at_fraction(base, parse_fraction(value, "option --fraction")) for value in wanted] or [base]


def _pairs(hand: "Hand", policy: "Policy", side: str, as_json: bool) -> None:
    from compalign_dagster.cli.terminal import tabbed
    from compalign_dagster.selection.margin import pairs
    from compalign_dagster.selection.select import TIE_BREAK

    rows = pairs(hand, policy, side)
    if as_json:
        click.echo(json.dumps(rows.to_dicts(), indent=2))
        return
    for row in rows.select(*TIE_BREAK, "reward", "kept_from").iter_rows():
        click.echo(tabbed(row))


def _write(version: "Version", storage: "Storage", page: Path) -> None:
    from compalign_dagster.cli.files import unwritable
    from compalign_dagster.pages.what_if import what_if_view

    data = what_if_view(version, storage.landing, version.artifact.work_key[:12], served=False)
    try:
        page.write_bytes(data)
    except OSError as error:
        raise unwritable(page, error) from error
    click.echo(f"page {page} ({len(data):,} bytes)", err=True)
