"""`kumi`: the root command, its help, and the one place where failures become a line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from cli import nouns, plugins, tracing
from cli.apply import apply
from cli.care import capabilities, drift
from cli.completion import completion
from cli.errors import ERROR, EXIT_CODES, INTERRUPTED, USAGE, CliError
from cli.export import export
from cli.history import history
from cli.kinds import kinds
from cli.profile import profile
from cli.settings import Settings
from cli.status import status, wait
from cli.trace import trace
from cli.tracing import Trace

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Root(click.Group):
    """Nouns from the descriptors, own commands, and commands that other packages bring by entry point."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(dict.fromkeys([*kinds(), *super().list_commands(ctx), *_plugins()]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if own := super().get_command(ctx, cmd_name):
            return own
        if cmd_name in kinds():
            return nouns.group(kinds()[cmd_name])
        plugin = _plugins().get(cmd_name)
        return plugins.load(plugin, quiet=ctx.resilient_parsing) if plugin else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every verb of every noun; a plug-in is named without loading it."""
        with formatter.section("Nouns and their verbs"):
            formatter.write_dl(
                [(noun, ", ".join([*nouns.verbs(kind), *plugins.found(noun)])) for noun, kind in kinds().items()]
            )
        own = []
        for name, command in self.commands.items():
            below = f" ({', '.join(command.commands)})" if isinstance(command, click.Group) else ""
            own.append((name, command.get_short_help_str(limit=100) + below))
        with formatter.section("Commands"):
            formatter.write_dl(own)
        if others := _plugins():
            with formatter.section("Commands of other packages"):
                formatter.write_dl([(name, f"from {plugin.module}") for name, plugin in sorted(others.items())])


def _plugins() -> dict[str, EntryPoint]:
    return plugins.found()


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n"
    "  kumi network create testnet --type vxlan --segment 100\n"
    "  kumi subnet create testnet 10.0.0.0/24 --name testnet_subnet\n"
    "  kumi port create testnet --wait\n\n"
    f"Exit codes: {EXIT_CODES}. KUMI_DEBUG=1 shows where a failure came from.",
)
@click.version_option(package_name="kumihimo", message="%(prog)s %(version)s")
@click.option("--profile", metavar="NAME", envvar="KUMI_PROFILE", help="Use this profile instead of the current one.")
@click.option("--project", metavar="ID", envvar="KUMI_PROJECT", help="Work in this project.")
@click.pass_context
def root(ctx: click.Context, profile: str | None, project: str | None) -> None:
    """Networks, subnets and ports of a Kumihimo installation. Objects are named by id or name."""
    ctx.obj = Settings(profile or "", project or "", ctx.find_object(Trace) or Trace.begin())


@click.command("help", epilog="\b\nExample:\n  kumi help network create")
@click.argument("words", nargs=-1, metavar="[NOUN [VERB]]")
@click.pass_context
def help_(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show help of kumi, a noun or a verb."""
    at = ctx.find_root()
    for word in words:
        known = at.command.get_command(at, word) if isinstance(at.command, click.Group) else None
        if known is None:
            raise CliError(f"there is no command '{at.command_path} {word}'; `kumi help` lists all", USAGE)
        at = click.Context(known, parent=at, info_name=word)
    click.echo(at.get_help())


for _command in (apply, export, history, status, wait, trace, drift, capabilities, profile, completion, help_):
    root.add_command(_command)


def run(arguments: Sequence[str], trace: Trace) -> int:
    """Run one command line. Every failure ends here, as lines on stderr and an exit code."""
    try:
        result = root.main(list(arguments), prog_name="kumi", standalone_mode=False, obj=trace)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "kumi"
        message = " ".join(error.format_message().split())
        click.echo(f"kumi: {message if message.endswith('...') else message.rstrip('.')}; see `{path} --help`", err=True)
        return error.exit_code
    except CliError as error:
        _debug()
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"kumi: {' '.join(error.format_message().split())}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("kumi: interrupted", err=True)
        return INTERRUPTED
    except OSError as error:
        # What a command reads and writes itself it tells itself; this is its output.
        _debug()
        return _output_failed(error)
    except Exception as error:
        # The last resort: a person at a terminal gets a sentence, whatever went wrong.
        _debug()
        told = " ".join(f"{type(error).__name__}: {error}".split())
        click.echo(f"kumi: unexpected failure: {told} (KUMI_DEBUG=1 shows where)", err=True)
        return ERROR
    return result if isinstance(result, int) else 0


def _output_failed(error: OSError) -> int:
    """Tell why standard output cannot be written. What waits to be written is dropped, or Python would try it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    click.echo(f"kumi: the output cannot be written: {error.strerror}", err=True)
    return ERROR


def _debug() -> None:
    if os.environ.get("KUMI_DEBUG") == "1":
        traceback.print_exc()


def main() -> NoReturn:
    """The entry point of the `kumi` command."""
    trace = Trace.begin()
    code = run(sys.argv[1:], trace)
    tracing.record(trace, code)
    sys.exit(code)
