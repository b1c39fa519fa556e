"""`compalign seal`: one file that proves to strangers which version was released, and by whom."""

from pathlib import Path

import click

from compalign_dagster.settings import load

_FAULTY = 1


@click.command("seal")
@click.argument("version", default="current")
@click.option("--key", type=click.Path(path_type=Path), help="The private key that signs (PEM, ed25519).")
@click.option("--out", type=click.Path(path_type=Path), help="Where the seal goes; a new file.")
@click.option("--store", "store_url", metavar="URL", help="Where the artifacts lie.  [default: the profile's store]")
@click.option("--new-key", type=click.Path(path_type=Path), help="Make a key instead, and FILE.trusted.json beside it.")
@click.option("--name", metavar="NAME", help="Whose key it is, with --new-key: verifiers are told this name.")
def command(
    version: str, key: Path | None, out: Path | None, store_url: str | None, new_key: Path | None, name: str | None
) -> int:
    r"""Seal a VERSION of the dataset: verify it, then sign what it is made of.

    Landed shards and label exports of the profile are compared too; with --store they are not.

    The seal is a DSSE envelope with an in-toto Statement of the version's manifest, its files and its lists. A
    version in which `compalign verify` finds a fault is not sealed.

    \b
    compalign seal --new-key release.pem --name "release team"
    compalign seal current --key release.pem --out release.dsse.json
    compalign verify current --seal release.dsse.json --trusted release.pem.trusted.json
    """
    from compalign_dagster.lineage import keys

    keys.require_library()
    if new_key is not None:
        if key or out or not name:
            raise click.UsageError("--new-key goes with --name and with nothing else.")
        click.echo(f"private key {new_key}: keep it to yourself")
        click.echo(f"public key {keys.new_key(new_key, name)}: give it to who verifies")
        return 0
    if key is None or out is None:
        raise click.UsageError("Give --key and --out, or --new-key to make a key.")
    return _seal(version, key, out, store_url)


def _seal(version: str, key: Path, out: Path, store_url: str | None) -> int:
    from compalign_dagster.cli.terminal import aligned
    from compalign_dagster.cli.verify import manifest_key, outside
    from compalign_dagster.lineage import keys, seal
    from compalign_dagster.lineage.verify import Wanted, verify_version
    from compalign_dagster.store import open_store

    signer, settings = keys.load_signer(key), load()
    store = open_store(store_url or settings.store)
    landing, labels = (None, None) if store_url else outside(settings)
    report = verify_version(store, manifest_key(store, version), Wanted(landing=landing, labels=labels))
    if report.faults:
        for line in report.lines():
            click.echo(aligned(line))
        click.echo("not sealed", err=True)
        return _FAULTY
    sealed = report.chain.artifacts[report.manifest_key]
    data = seal.sign(seal.statement(sealed, report.chain), signer)
    keys.write_new(out, data, "seal")
    click.echo(f"sealed {report.manifest_key} with key {signer.public_key.keyid}: {out}")
    if landing is None:
        click.echo("landed bytes were not looked at: without --store they are")
    return 0
