"""The command line's front door: the table of verbs, and how errors reach a person.

What belongs here: names, one-line helps, exit codes. What does not: any verb. A verb's module is
imported when it is used, so that `compalign --help` answers at once.

Exit codes: 0 done; 1 done, with something quarantined, under `--strict`; 2 wrong usage, or input that
cannot be read at all, with one line on stderr that says which and why.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import click

from compalign_dagster.errors import CompalignError

_NAME = "compalign"
_REFUSED = 2
_INTERRUPTED = 130


class Verb(NamedTuple):
    """Where a verb's click command is, and what it does in one line."""

    module: str
    command: str
    summary: str


_CLI = "compalign_dagster.cli"
VERBS = {  # in the order of a first acquaintance
    "demo": Verb(f"{_CLI}.demo", "command", "Land the sample crawl and materialise the whole graph."),
    "ui": Verb(f"{_CLI}.ui", "command", "Open the Dagster UI on the same instance."),
    "doctor": Verb(f"{_CLI}.doctor", "command", "Check what this machine needs and say what to do."),
    "sample-crawl": Verb(f"{_CLI}.sample_crawl", "command", "Write a sample crawl with simulated labelers."),
    "photo-crawl": Verb(f"{_CLI}.photo_crawl", "photo_crawl", "Make a noisy crawl from the data pack's photos."),
    "land": Verb(f"{_CLI}.land", "command", "Land img2dataset's downloads, or a list of URLs."),
    "index": Verb(f"{_CLI}.index", "command", "List the pairs of shards, and what was refused and why."),
    "replay-quarantine": Verb(f"{_CLI}.replay_quarantine", "command", "Read again what was refused, after a fix."),
    "train": Verb(f"{_CLI}.train", "command", "Train a reward model on human judgements."),
    "promote": Verb(f"{_CLI}.promote", "command", "Promote a reward model through the gate, or roll back."),
    "score": Verb(f"{_CLI}.score", "command", "Give every pair of shards its reward."),
    "keep": Verb(f"{_CLI}.keep", "command", "Keep the best fraction of scored pairs."),
    "what-if": Verb(f"{_CLI}.what_if", "command", "Say what another fraction or policy would keep."),
    "policy": Verb(f"{_CLI}.policy", "command", "Show, change and compare the selection policy in force."),
    "browse": Verb(f"{_CLI}.browse", "command", "Print pairs of a dataset version by decision and order."),
    "diff": Verb(f"{_CLI}.diff", "command", "Say what entered and left between two versions, and why."),
    "restore": Verb(f"{_CLI}.restore", "command", "Make any version of the dataset current again."),
    "prune": Verb(f"{_CLI}.prune", "command", "Remove old versions, and the lists that only they need."),
    "trace": Verb(f"{_CLI}.trace", "command", "Say where a pair comes from and what was decided about it."),
    "impact": Verb(f"{_CLI}.impact", "command", "Say what a URL, image, labeler, batch or model touches."),
    "takedown": Verb(f"{_CLI}.takedown", "command", "Block pairs on request, and purge them where asked."),
    "audit-db": Verb(f"{_CLI}.audit_db", "command", "Build a DuckDB database over all that the store holds."),
    "export": Verb(f"{_CLI}.export", "command", "Write a version of the dataset as files."),
    "verify": Verb(f"{_CLI}.verify", "command", "Verify a version of the dataset from the files alone."),
    "openlineage": Verb(f"{_CLI}.openlineage", "command", "Write a version's lineage as OpenLineage events."),
    "seal": Verb(f"{_CLI}.seal", "command", "Sign what a version is made of, for strangers to check."),
}


def _unraw(command: click.Command) -> click.Command:
    r"""Turn the two characters of a raw docstring's \b into click's mark for a paragraph left as it is."""
    command.help = (command.help or "").replace("\\b\n", "\b\n")
    return command


class _Verbs(click.Group):
    """A group that imports a verb only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        return _unraw(getattr(importlib.import_module(verb.module), verb.command))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compalign-dagster", prog_name=_NAME)
def cli() -> None:
    r"""Turn web-crawled image-text shards into a compact, well-aligned training set.

    \b
    Everything, through Dagster, on a sample crawl:
      compalign demo
    \b
    Step by step on shards of your own, without Dagster:
      compalign index --shards crawl/ --out index/
      compalign train --annotations labels.jsonl --shards judged/ --shards crawl/ --out model/
      compalign score --model model/ --shards crawl/ --out scores.parquet
      compalign keep  --scores scores.parquet --fraction 0.3 --out kept.parquet

    `compalign VERB --help` explains a verb. Exit codes: 0 done; 1 done, with something quarantined,
    under --strict; 2 wrong usage or input that cannot be read.
    """


_unraw(cli)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code. Errors a person can mend are one line on stderr."""
    log = logging.getLogger("compalign_dagster")
    handlers, level = log.handlers, log.level
    try:
        return _run(arguments)
    finally:
        log.handlers = handlers
        log.setLevel(level)  # a verb's progress ends with it, whoever has called


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = cli.main(arguments, prog_name=_NAME, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return _REFUSED
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else _NAME
        return _complain(f"{error.format_message()} See `{where} --help`.")
    except click.ClickException as error:
        return _complain(error.format_message())
    except CompalignError as error:
        return _complain(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{_NAME}: interrupted", err=True)
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


def _complain(text: str) -> int:
    click.echo(f"{_NAME}: {' '.join(text.split())}", err=True)
    return _REFUSED


if __name__ == "__main__":
    main()
