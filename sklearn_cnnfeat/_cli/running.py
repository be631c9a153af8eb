"""Run a click program as a process does: messages of one line, exit codes, interrupts."""

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager

import click
from click.shell_completion import get_completion_class, shell_complete

from sklearn_cnnfeat._cli.output import PROGRAM, say

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


def completion_script(program, shell):
    """Return what a shell has to read to complete commands, options and names of networks."""
    return get_completion_class(shell)(program, {}, PROGRAM, COMPLETE).source()
