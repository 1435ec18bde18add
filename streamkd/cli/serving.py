"""Commands around a server: ``serve``, ``push``, ``predict``, ``tokens``."""

import sys
from pathlib import Path
from typing import Any

import click

from streamkd.cli.options import CONFIG, EXISTING, FILE, FOLDER, SET, STATE, TOKEN, finite, folder, pairs
from streamkd.cli.terminal import bar, log_to_stderr


@click.command()
@CONFIG
@STATE
@SET
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=int, help="HTTP port (default 8470); 0 picks free ones, the Flight port's too.")
@click.option("--flight-port", type=int, help="Arrow Flight port; 0 picks a free one (default 8815).")
@click.option("--export-every", type=float, help="Seconds between exports of what is served, for devices to fetch.")
@click.option("--insecure", is_flag=True, help="Allow a bind beyond loopback without TLS and tokens.")
@click.option("--tenants", type=FOLDER, help="Serve a folder of tenants, NAME.yaml each; CONFIG says where to listen.")
@click.option("--learners", type=click.IntRange(1), help="With --tenants: how many learn at once (default: cores).")
def serve(
    config: Path | None,
    state: Path,
    overrides: tuple[str, ...],
    tenants: Path | None,
    learners: int | None,
    **serving: Any,
) -> None:
    """Learn from a live stream and answer predictions while learning. Without CONFIG: the embedded stream.

    With --tenants one server learns many small streams; each has its state in a directory of its own below --state.
    """
    if learners is not None and tenants is None:
        raise click.UsageError("--learners needs --tenants")
    if serving["port"] == 0 and serving["flight_port"] is None:
        serving["flight_port"] = 0
    more = [f"serve.{key}={value}" for key, value in serving.items() if value is not None and value is not False]
    from streamkd.serve.processes import child

    log_to_stderr()
    if tenants is not None:
        from streamkd import config as configuration
        from streamkd.serve.tenants.front import serve_tenants

        sys.exit(serve_tenants(configuration.load(config, [*overrides, *more]), tenants, state, learners))
    with child.started(child.LEARNER) as learner:  # both load for seconds: side by side
        from streamkd import config as configuration
        from streamkd.plugins import Registry
        from streamkd.serve import supervisor

        tree = configuration.load(config, [*overrides, *more], Registry.load())
        sys.exit(supervisor.serve(tree, state, learner=learner))


@click.command()
@click.argument("source")
@click.option(
    "--to", "url", required=True, help="grpc://HOST:PORT (Arrow Flight), http://HOST:PORT or kafka://HOST:PORT/TOPIC."
)
@click.option("--stream", default="main", show_default=True)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), callback=finite,
    help="Records per second; default as fast as they are taken.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Send so many records at most.")
@click.option("--batch", type=click.IntRange(1), default=500, show_default=True, help="Records per batch.")
@click.option("--columns", help="Send these columns only, renamed: theirs=ours,...")
@click.option("--labels", is_flag=True, help="SOURCE has labels of predictions that were made, by prediction_id.")
@click.option("--producer", help="Name for deduplication: the same batches again under the same name count once.")
@click.option("--ca", type=EXISTING, help="PEM file of the authorities to trust.")
@click.option("--certificate", type=EXISTING, help="PEM file of a client certificate.")
@click.option("--key", type=EXISTING, help="PEM file of its key.")
@TOKEN
def push(source: str, url: str, **options: Any) -> None:
    """Send SOURCE (a data set's name, a file, or a stream definition) as live records."""
    from streamkd.producer import outgoing
    from streamkd.producer import push as pushing

    opened = outgoing.open_outgoing(source, pairs(options["columns"]), options["limit"], options["batch"])
    what = "labels" if options["labels"] else "records"
    with bar(what, opened.total) as advance:
        done = 0

        def on_ack(ack: pushing.Ack) -> None:
            nonlocal done
            done += ack.records
            advance(done, opened.total)

        summary = pushing.push(
            opened.batches,
            url,
            stream=options["stream"],
            producer=options["producer"],
            token=options["token"],
            rate=options["rate"],
            on_ack=on_ack,
            labels=options["labels"],
            tls=pushing.ClientTls(options["ca"], options["certificate"], options["key"]),
        )
    click.echo(
        f"{summary.sent} {what} sent, {summary.accepted} accepted, {summary.rejected} rejected, "
        f"{summary.duplicates} duplicates, {summary.seconds:.1f} s"
    )
    if summary.early:
        click.echo(f"{summary.early} of them are early: {summary.note}")


@click.command()
@click.argument("file", type=EXISTING)
@click.option("--to", "url", required=True, help="http://HOST:PORT of a running server.")
@click.option("--out", type=FILE, help="Parquet, Arrow or JSON lines; default stdout.")
@TOKEN
def predict(file: Path, url: str, out: Path | None, token: str | None) -> None:
    """Predictions for the records of a FILE; a row that cannot be predicted has an `error`.

    Exit code 1 where no row has a prediction.
    """
    from streamkd.serve.predictions import client

    if out is not None:
        folder(out.parent)
    with bar("records", None) as advance:
        written = client.write(client.predict_file(file, url, token=token, progress=advance), out, click.echo)
    if written.bad:
        said = f"{written.bad} of {written.rows} rows have no prediction, the first: {written.error}"
        click.echo(said, err=True)
    if written.bad == written.rows:
        sys.exit(1)


@click.group()
def tokens() -> None:
    """Bearer tokens of a server."""


@tokens.command("add")
@click.argument("file", type=FILE)
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, required=True, help="predict, ingest, label or admin; may be repeated."
)
def tokens_add(file: Path, name: str, scopes: tuple[str, ...]) -> None:
    """Add a token to FILE (hashed) and print it, once."""
    from streamkd.streams.ingest import tokens as tokening

    click.echo(tokening.create(file, name, scopes))
