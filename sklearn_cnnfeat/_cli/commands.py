"""Commands and groups of commands: options of several values, ``--debug``, sections in the help."""

import re
import sys
from contextlib import redirect_stdout

import click

from sklearn_cnnfeat._cli.options import Many

_NUMBER = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)


class Command(click.Command):
    """A command with ``--debug``, and with options of several values."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_debug,
                help="Show where in the code an error came from.",
            )
        )

    def parse_args(self, ctx, args):
        """Give options of several values as click takes them: each value with its option."""
        names = {name for param in self.params if isinstance(param, Many) for name in param.opts}
        given, last = _repeat_options(args, names)
        try:
            return super().parse_args(ctx, given)
        except click.MissingParameter as error:
            if isinstance(error.param, click.Argument) and last is not None:
                error.message = (
                    f"All that follows {last}, up to the next option, was taken for its values: "
                    f"put {error.param.human_readable_name} first."
                )
            raise

    def invoke(self, ctx):
        """Run the command; what libraries print by the way goes to the error stream."""
        ctx.obj.output = sys.stdout
        with redirect_stdout(sys.stderr):
            return super().invoke(ctx)


class Group(click.Group):
    """Commands listed by what they are for, in the order in which they were added."""

    command_class = Command
    sections = ()
    rest = "Commands"

    def list_commands(self, ctx):
        return list(self.commands)

    def format_commands(self, ctx, formatter):
        listed = {name for _, names in self.sections for name in names}
        rest = [name for name in self.commands if name not in listed]
        for title, names in (*self.sections, (self.rest, rest)):
            rows = [(name, self.commands[name]) for name in names if name in self.commands]
            limit = formatter.width - 6 - max(map(len, self.commands))
            rows = [(name, command.get_short_help_str(limit)) for name, command in rows]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


Group.group_class = Group


def _debug(ctx, param, value):
    if value and ctx.obj is not None:
        ctx.obj.debug = True


def _repeat_options(arguments, names):
    """Write ``--layers a b`` as ``--layers a --layers b``; return that and the last such option."""
    given, current, last, is_first = [], None, None, False
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if argument == "--":
            return given + arguments[position:], last
        if name in names and (equals or not is_first):
            given += [name, value] if equals else [name]
            current = last = name
            is_first = not equals
        elif current and (is_first or not argument.startswith("-") or _NUMBER.fullmatch(argument)):
            given += [argument] if is_first else [current, argument]
            is_first = False
        else:
            current = None
            given.append(argument)
    return given, last


def command(**settings):
    return click.command(cls=Command, **settings)


def group(**settings):
    return click.group(cls=Group, **settings)
