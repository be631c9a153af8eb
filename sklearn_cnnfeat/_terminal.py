"""What a shell gets from the command line: tables, messages of one line, exit codes, interrupts."""

import json
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click
from click.shell_completion import get_completion_class, shell_complete

from sklearn_cnnfeat._csv import csv_writer

PROGRAM = "cnnfeat"
# The variable by which a shell asks for completions.
COMPLETE = "_CNNFEAT_COMPLETE"
# What a shell reports for a process that SIGINT or SIGPIPE has ended.
INTERRUPTED, BROKEN_PIPE = 130, 141

# How messages for programmers name things, and how they are named here.
_FUNCTIONS = {
    "list_models()": "'cnnfeat models'",
    "layer_summary(model)": "'cnnfeat layers MODEL'",
    "filter_summary(model)": "'cnnfeat layers MODEL --filters'",
}
_SETTING = re.compile(
    r"\b(model|layer|pooling|weights|preprocessing|input_size|resize|engine|precision|on_error"
    r"|retry_errors|part_size|dtype|method|combine|overlay)=('[^']*'|\w+)"
)

_NUMBER = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)


# --- running --------------------------------------------------------------------------------------


class _Session:
    """What one run of the program has been told."""

    debug = False
    # The standard output: results and nothing else.
    output = None


def run(program, arguments=None):
    """Run a click program as a process of its own does, and return its exit code.

    Errors end in one message on the error stream, without a traceback unless ``--debug`` asks for
    one.
    """
    # TensorFlow tells its developers much; a level that the user has chosen stays.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Pictures go to files: a window system, or its absence, must not matter.
    os.environ["MPLBACKEND"] = "Agg"
    if os.name == "posix" and hasattr(sys.stdout, "reconfigure"):
        # Names of files are bytes, and need not be text.
        sys.stdout.reconfigure(errors="surrogateescape")
    session = _Session()
    with warnings.catch_warnings(), _tidy_interrupts() as interrupts:
        warnings.showwarning = _warning_shower(session)
        try:
            code = _perform(program, arguments, session)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except (KeyboardInterrupt, EOFError, click.Abort):
            pass
        except click.UsageError as error:
            error.show()
            return error.exit_code
        except click.ClickException as error:
            say(f"error: {error.format_message()}")
            return error.exit_code
        except BrokenPipeError:
            _forget_output()
            return BROKEN_PIPE
        except Exception as error:
            # Libraries interrupted in the middle of something raise what they like.
            if not interrupts:
                if session.debug:
                    traceback.print_exc()
                else:
                    say(f"error: {_as_typed(_describe(error))}")
                _forget_unwritten()
                return 1
        click.echo(err=True)  # behind the ^C of the terminal
        say("interrupted")
        _forget_unwritten()
        return INTERRUPTED


def _perform(program, arguments, session):
    if instruction := os.environ.get(COMPLETE):
        return shell_complete(program, {}, PROGRAM, COMPLETE, instruction)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with program.make_context(PROGRAM, arguments, obj=session) as context:
            program.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


@contextmanager
def _tidy_interrupts():
    """Let Ctrl-C end the work with its cleaning up, and a second one end it at once."""
    interrupts = []

    def interrupt(number, frame):
        interrupts.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    # A shell that starts a process in the background may have it ignore interrupts.
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if is_ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        # After an interrupt, another one must not meet an interpreter that is closing down.
        if is_ours and not interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _describe(error):
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    message = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError):
        return f"not enough memory. {message}"
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, RuntimeError, Warning)):
        return message
    return (
        f"{type(error).__name__}: {message}. This should not happen: run the command again with "
        "--debug, and report what it prints."
    )


def _as_typed(message):
    """Write what a message for programmers advises as it is typed in a shell."""
    for spoken, typed in _FUNCTIONS.items():
        message = message.replace(spoken, typed)
    return _SETTING.sub(_option, message)


def _option(setting):
    name, value = setting.groups()
    option = f"--{name.replace('_', '-')}"
    if value == "True":
        return option
    return f"{option} random" if setting[0] == "weights=None" else f"{option} {value}"


def _forget_output():
    """Let nothing more be written to a standard output that nobody reads."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def _forget_unwritten():
    """Write what is left for the standard output; where that fails, Python must not try again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _forget_output()


# --- saying ---------------------------------------------------------------------------------------


def say(sentence):
    """Print a sentence for people on the error stream, above a progress bar if there is one."""
    line = f"{PROGRAM}: {sentence}"
    if "tqdm" in sys.modules and sys.stderr is not None:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        click.echo(line, err=True)


def _warning_shower(session):
    def show_warning(message, category, filename, lineno, file=None, line=None):
        # What programmers have to change some day is no business of those who type commands.
        is_for_programmers = issubclass(
            category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
        )
        if session.debug:
            say(f"warning: {category.__name__} from {filename}:{lineno}: {message}")
        elif not is_for_programmers:
            say("warning: " + " ".join(str(message).split()))

    return show_warning


# --- tables ---------------------------------------------------------------------------------------


def table_options(function):
    """Add ``--csv`` and ``--json``; the command gets ``style``, for `show_table`."""
    for style, text in (("json", "as a JSON list of objects"), ("csv", "as CSV")):
        function = click.option(
            f"--{style}",
            "style",
            flag_value=style,
            default=None,
            show_default=False,
            help=f"Print {text}.  [default: columns in a terminal, CSV in a pipe]",
        )(function)
    return function


def results():
    """Return the stream that results go to; None if there is none."""
    return click.get_current_context().obj.output


def is_terminal():
    """Whether a person reads the results as they come."""
    return results() is not None and results().isatty()


def show(text):
    """Print a line of results."""
    if results() is not None:
        click.echo(text, file=results())


def show_table(rows, style=None):
    """Print rows, dictionaries with the same keys."""
    rows = list(rows)
    style = style or ("text" if is_terminal() else "csv")
    if style == "json":
        show(json.dumps(rows, indent=1, default=str, ensure_ascii=False))
    elif style == "csv":
        writer = csv_writer(show)
        writer.writerow(rows[0] if rows else [])
        for row in rows:
            writer.writerow([_plain(value) for value in row.values()])
    elif rows:
        columns = [[name, *_readable([row[name] for row in rows])] for name in rows[0]]
        is_number = [all(_is_number(row[name]) for row in rows) for name in rows[0]]
        widths = [max(map(len, column)) for column in columns]
        for cells in zip(*columns, strict=True):
            aligned = (
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(cells, widths, is_number, strict=True)
            )
            show("  ".join(aligned).rstrip())


def show_record(record, style=None):
    """Print one dictionary, in a terminal with a line for each value."""
    if style is None and is_terminal():
        width = max(map(len, record))
        for name, value in record.items():
            show(f"{name:{width}}  {_readable([value])[0]}")
    else:
        show_table([record], style)


def _is_number(value):
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _plain(value):
    if isinstance(value, (list, tuple)):
        return "x".join("?" if one is None else str(one) for one in value)
    return "" if value is None else value


def _readable(values):
    """Return the values of a column as text for people."""
    floats = [value for value in values if isinstance(value, float)]
    if all(float(f"{value:g}") == value for value in floats):
        form = "g"  # what was typed, such as 0.1 and 10
    elif any(0 < abs(value) < 1e-3 for value in floats):
        form = ".3g"
    else:
        form = ".3f"
    texts = []
    for value in values:
        if isinstance(value, float):
            texts.append(f"{value:{form}}")
        elif isinstance(value, (list, tuple)):
            texts.append(" x ".join("?" if one is None else str(one) for one in value))
        else:
            texts.append("" if value is None else str(value))
    return texts


# --- arguments ------------------------------------------------------------------------------------


class Many(click.Option):
    """An option that takes all values up to the next option: ``--layers a b c``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, multiple=True, **kwargs)

    def make_metavar(self, **context):  # click 8.1 gives none
        """Return what help shows for the values."""
        return f"{super().make_metavar(**context)}..."


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
        """Return the names of the commands."""
        return list(self.commands)

    def format_commands(self, ctx, formatter):
        """Write the commands, section by section."""
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


class OutputFile(click.ParamType):
    """A file to be written: its suffix and its folder are looked at before the work starts."""

    name = "file"

    def __init__(self, *suffixes):
        self.suffixes = suffixes

    def convert(self, value, param, ctx):
        """Return the path, if a file can be written there."""
        path = Path(value)
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{value!r} must end with {' or '.join(self.suffixes)}.", param, ctx)
        if path.is_dir():
            self.fail(f"{value!r} is a folder.", param, ctx)
        if not path.parent.is_dir():
            self.fail(
                f"There is no folder {str(path.parent)!r} to write {path.name!r} to.", param, ctx
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            self.fail(f"{value!r} cannot be written: permission denied.", param, ctx)
        return path

    def shell_complete(self, ctx, param, incomplete):
        """Complete names of files."""
        return click.Path().shell_complete(ctx, param, incomplete)


PICTURE = OutputFile(".png", ".pdf", ".svg", ".jpg", ".webp")


def completion_script(program, shell):
    """Return what a shell has to read to complete commands, options and names of networks."""
    return get_completion_class(shell)(program, {}, PROGRAM, COMPLETE).source()
