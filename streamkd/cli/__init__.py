"""The commands, a module for each group. Each is a few lines that read arguments, call a room, and print; nothing
heavy is imported before a command runs, so ``--help`` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

import sys

import click

from streamkd import __version__, logs
from streamkd.cli import bench, configuring, exporting, kept, serving, smaller, teachers, training, tune
from streamkd.errors import StreamkdError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="streamkd")
def cli() -> None:
    """A continual learner that lives on a data stream.

    `streamkd serve` without arguments learns from an embedded stream and answers on http://127.0.0.1:8470.
    """


for command in (
    serving.serve,
    configuring.init,
    training.run,
    training.meta_train,
    tune.tune,
    serving.push,
    serving.predict,
    configuring.check,
    kept.inspect,
    configuring.plugins,
    teachers.teachers,
    kept.migrate,
    kept.models,
    exporting.export,
    smaller.distil,
    kept.dlq,
    serving.tokens,
    bench.bench,
):
    cli.add_command(command)


def main() -> None:
    """The entry point: our errors are said in words, with the exit code that they carry."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as fault:
        fault.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except StreamkdError as fault:
        click.echo(logs.lines(f"error: {fault}"), err=True)
        sys.exit(fault.exit_code)
    except BrokenPipeError:
        sys.exit(1)
