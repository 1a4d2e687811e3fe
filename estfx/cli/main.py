"""The command line. Exit status 0: done, 1: the work failed, 2: bad input, told in one message without a traceback;
3: a training run was told to terminate, and can be resumed; 130: interrupted by Ctrl-C.
"""

import traceback as tracebacks
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from estfx.cli.commands.bench import bench
from estfx.cli.commands.cut import cut
from estfx.cli.commands.dump import dump
from estfx.cli.commands.inspect import inspect
from estfx.cli.commands.models import models
from estfx.cli.commands.plan import plan
from estfx.cli.commands.report import report
from estfx.cli.commands.search import search
from estfx.cli.commands.train import train
from estfx.errors import EstfxError

# what only one command needs is imported in it: transformers takes seconds, and --help should not

__all__ = ["app", "main"]


class _TellsFaults(TyperGroup):
    """Turns the package's errors into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:  # typer carries a click of its own, with its own Context
        try:
            return super().invoke(ctx)
        except EstfxError as error:
            if ctx.params.get("traceback"):
                typer.echo("".join(tracebacks.format_exception(error)), err=True)
            for line in (f"error: {error}", *getattr(error, "__notes__", ()), *_page(error, ctx.invoked_subcommand)):
                typer.echo(line, err=True)
            raise typer.Exit(error.exit_status) from None
        except typer.BadParameter as error:
            error.message = error.message.replace("Value error, ", "")  # as pydantic begins what it has to say
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted.", err=True)
            raise typer.Exit(130) from None


def _page(error: EstfxError, command: str | None) -> list[str]:
    """A line that names the page of the documentation that helps, if there is one."""
    from estfx.settings import SettingsError

    page = error.page
    if isinstance(error, SettingsError):
        page = "reference/settings.md" if command == "train" else "reference/command-line.md"
    return [f"see docs/{page}"] if page else []


app = typer.Typer(
    name="estfx",
    cls=_TellsFaults,
    help="Evolving Subnetwork Training: train a part of a decoder, and let it grow until it is the whole.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (train, models, inspect, plan, dump, bench, report, cut, search):
    app.command()(command)


def main() -> None:
    """The script's entry."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"estfx {version('estfx')}")
        except PackageNotFoundError:
            typer.echo("estfx, from a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from: estfx --traceback train …")
    ] = False,
) -> None:
    pass
