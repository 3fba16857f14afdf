"""The command line: `modelmount`, one file a command.

Rule of this room: a command reads options, calls the rooms below, and prints; what it does works the same in the
daemon. Errors of ours become one sentence and an exit code of `exits`, never a traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click

import modelmount
from modelmount.cli import exits
from modelmount.cli.output import Output
from modelmount.content.diskerrors import disk_error, is_full
from modelmount.errors import Internal, ModelMountError

COMMANDS: Mapping[str, str] = {
    "serve": "serve.serve",
    "pull": "pull.pull",
    "mount": "mount.mount",
    "umount": "umount.umount",
    "status": "status.status",
    "ls": "ls.ls",
    "inspect": "inspect.inspect",
    "push": "push.push",
    "export": "export.export",
    "import": "importing.import_",
    "du": "du.du",
    "gc": "gc.gc",
    "pin": "pin.pin",
    "unpin": "pin.unpin",
    "verify": "verify.verify",
    "doctor": "doctor.doctor",
    "config": "config.config",
}
"""By name, in the order of the help: which file has it, and what it is called there. A new command is one new file and
one line here. A file is loaded when its command is asked for: all of them take longer than what most commands do.
"""


class _Commands(click.Group):
    """A group that turns errors into sentences and exit codes, and keeps its commands in their order."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(".")
        found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], COMMANDS, 1)
        if near and args[0] not in COMMANDS:
            raise click.UsageError(f"No such command {args[0]!r}; did you mean {near[0]}?", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        output = ctx.ensure_object(Output)
        try:
            return super().invoke(ctx)
        except ModelMountError as e:
            output.error(e)
            ctx.exit(exits.code_of(e))
        except KeyboardInterrupt:
            output.failure("Cancelled", "interrupted")
            ctx.exit(exits.Exit.INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as e:
            error = disk_error(e, "go on") if is_full(e) else Internal(_sentence(e))
            output.error(error)
            ctx.exit(exits.code_of(error))


def _sentence(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    remedy = "run it as root" if isinstance(error, PermissionError) else "`modelmount doctor` looks for the cause"
    return f"{place}{error.strerror or error}; {remedy}"


EPILOG = f"""\b
Examples:
  modelmount doctor                                   is this machine ready?
  modelmount inspect harbor.example.com/llm/llama3:v1 what is in a model?
  modelmount pull harbor.example.com/llm/llama3:v1    have it on this node
  modelmount mount harbor.example.com/llm/llama3:v1 /mnt/llama3
  modelmount umount /mnt/llama3
  modelmount status                                   how does this node stand?
  modelmount ls                                       what is here, who uses it?
  modelmount push ./llama3 harbor.example.com/llm/llama3:v1
  modelmount gc --free 50GB                           make room
  modelmount serve --mode node                        the CSI driver itself

\b
Exit codes:
{exits.table()}

Every command has examples of its own: modelmount COMMAND --help.
"""


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(modelmount.__version__, prog_name="modelmount")
def cli() -> None:
    """Models from OCI registries as read-only directories: pulled once, every byte verified.

    The CSI driver is `serve`; all other commands work on the same store, beside a running driver or without one.
    """


def main() -> None:
    """Run the command line of this process; ends it."""
    cli(prog_name="modelmount")
