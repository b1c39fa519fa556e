"""`compalign ui`: the Dagster UI with its daemon, and the store's pages beside it."""

import os
import signal
import subprocess
import sys
import threading

import click

from compalign_dagster.cli.instance import prepare, workspace
from compalign_dagster.errors import InputError
from compalign_dagster.settings import load

_STOP_SECONDS = 20


@click.command("ui")
@click.option("--port", default=3000, show_default=True, help="Port of the Dagster UI on 127.0.0.1.")
def command(port: int) -> None:
    """Open the Dagster UI on this profile's instance.

    Starts the webserver and the daemon, so that the arrival sensor and the automation run, and serves
    the store's pages on loopback: links in metadata open. Stops everything on Ctrl-C.
    """
    if not workspace().is_file():
        raise InputError(
            f"workspace file {workspace()}",
            expected="a checkout of the repository",
            found="none beside this installation",
            remedy="Run `compalign ui` from a checkout, or `dagster dev -m compalign_dagster.definitions`.",
        )
    settings = load()
    prepare(settings)
    from compalign_dagster.pages.browse import Browser
    from compalign_dagster.pages.server import serve
    from compalign_dagster.store import open_store

    store = open_store(settings.store)
    server = serve(store, settings.pages_port, Browser(store, open_store(settings.landing)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    click.echo(f"Dagster UI  http://127.0.0.1:{port}")
    click.echo(f"pages       {settings.pages_url}")
    arguments = ["-m", "dagster", "dev", "-w", str(workspace()), "-h", "127.0.0.1", "-p", str(port)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script may have started us with it ignored
    # A group of its own: whatever its children do with signals, none outlives this command.
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, *arguments], cwd=workspace().parent, start_new_session=True
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        raise SystemExit(process.wait())
    except KeyboardInterrupt:
        click.echo("stopping")
    finally:
        server.shutdown()
        _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """Ask politely, then stop the whole group."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            click.echo("dagster did not stop in time; killing it", err=True)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
