"""A separate process for Keras: it takes jobs, returns results or errors, and exits by itself.

Keras' backend is a setting of a whole process, and the memory, threads and messages of TensorFlow
do not belong in the user's. The process is started with the parent's import path and talks through
its standard streams: it sees their end when the parent is gone, however that ended. (Executors of
`multiprocessing` and loky cannot be started in daemonic processes, such as Dask's workers.)
"""

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager, suppress

# A file may take so many bytes of memory, and so many times its own size on top.
_FREE_BYTES, _LARGEST_RATIO = 2 * 1024**3, 4
# Seconds without a job after which the process ends.
IDLE_SECONDS = 60.0
# Seconds that one job may take.
LONGEST_JOB = 1800.0
# Seconds in which it ends by itself once its input has ended.
_LONGEST_END = 5.0

# Sent by the process when it starts a job.
_TAKEN = b"taken"
_START = (
    "import json, sys; sys.path[:], idle, absent = json.loads(sys.argv[1]); "
    "from sklearn_cnnfeat._network.process import serve; serve(idle, *absent)"
)


class ProcessEndedError(RuntimeError):
    """The process of Keras ended before it had answered."""


class KerasProcess:
    """Runs functions in a separate process, one at a time.

    Parameters
    ----------
    environment : dict
        Environment variables that differ from this process's; None removes one.
    absent : sequence of str, default=()
        Modules that cannot be imported there.
    absent_for_keras : sequence of str, default=()
        Modules that Keras imports if they are installed, and does well without. The code of models
        may import them.
    """

    def __init__(self, environment, absent=(), absent_for_keras=()):
        self._environment = environment
        self._absent = [absent, absent_for_keras]
        self._process = None
        self._owner = None
        self._end = None
        self._lock = threading.Lock()

    def run(self, function, *args):
        """Return what ``function(*args)`` returns there, or raise what it raises.

        `ProcessEndedError` is raised if the process is killed, by the system for want of memory for
        example, or takes longer than `LONGEST_JOB`.
        """
        message = pickle.dumps((function, args))
        with self._lock:
            try:
                if not self._give(message):
                    # An idle process may exit just when it is given a job.
                    self._stop()
                    self._give(message)
                status, value = pickle.loads(self._wait_for_answer())
            except (BrokenPipeError, EOFError) as error:
                raise ProcessEndedError(_describe_end(self._stop())) from error
            except BaseException:
                self._stop()
                raise
        if status == "error":
            raise value
        return value

    def _give(self, message):
        """Hand a job over; return whether it was taken."""
        try:
            self._start()
            _write_message(self._process.stdin, message)
            return _read_message(self._process.stdout) == _TAKEN
        except (BrokenPipeError, EOFError):
            return False

    def _start(self):
        """Start the process unless it runs."""
        # After a fork the process is the parent's.
        if self._owner == os.getpid() and self._process.poll() is None:
            return
        changed = os.environ | self._environment
        environment = {name: value for name, value in changed.items() if value is not None}
        # Entries that are not text, which Python ignores, are left out.
        folders = [entry for entry in sys.path if isinstance(entry, str)]
        self._process = subprocess.Popen(
            # -P: a file json.py in the current folder must not run.
            [sys.executable, "-P", "-c", _START, json.dumps([folders, IDLE_SECONDS, self._absent])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _leave, self._process, self._owner)

    def _wait_for_answer(self):
        late = threading.Event()

        def end():
            late.set()
            self._process.kill()

        timer = threading.Timer(LONGEST_JOB, end)
        timer.daemon = True
        timer.start()
        try:
            return _read_message(self._process.stdout)
        except EOFError:
            if late.is_set():
                self._stop()
                raise ProcessEndedError(
                    f"The process that converts networks took longer than {LONGEST_JOB:.0f} s and "
                    "was ended."
                ) from None
            raise
        finally:
            timer.cancel()

    def _stop(self):
        """End the process; return its exit status."""
        owner, self._owner = self._owner, None
        if owner is None:
            return None
        self._end.detach()
        return _end(self._process, owner)

    def close(self):
        """End the process, if it runs."""
        with self._lock:
            if self.pid is not None:
                self._stop()

    @property
    def pid(self):
        """Number of the process; None while there is none."""
        running = self._owner == os.getpid() and self._process.poll() is None
        return self._process.pid if running else None


def _leave(process, owner):
    """End a process that gets no more jobs."""
    # After a fork the process is the parent's.
    if owner != os.getpid():
        return
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_LONGEST_END)
    _end(process, owner)


def _end(process, owner):
    """End a process that was started by the process `owner`; return its exit status."""
    if owner != os.getpid():
        return None
    process.kill()
    process.stdin.close()
    process.stdout.close()
    return process.wait()


def _describe_end(code):
    if code is not None and code < 0:
        try:
            how = f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            how = f"was ended by signal {-code}"
    else:
        how = f"ended with status {code}"
    return (
        f"The process that converts networks {how} before it was done. It may have run out of "
        "memory; other programs may have to be closed, or a smaller network taken."
    )


def _write_message(stream, content):
    stream.write(len(content).to_bytes(8, "little"))
    stream.write(content)
    stream.flush()


def _read_message(stream):
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    size = int.from_bytes(head, "little")
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


# --- in the process -------------------------------------------------------------------------------


class _Absent:
    """Import finder that comes first and hides some modules, from everybody or from Keras."""

    def __init__(self, names, names_for_keras):
        self._names = set(names)
        self._names_for_keras = set(names_for_keras)

    def find_spec(self, name, path=None, target=None):
        hidden = name in self._names_for_keras and _importer() == "keras"
        if hidden or name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _importer():
    """Return the package whose import statement runs."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("importlib."):
        frame = frame.f_back
    return "" if frame is None else frame.f_globals.get("__name__", "").partition(".")[0]


def serve(idle_seconds, absent, absent_for_keras):
    """Run jobs until the parent is gone, or has had none for some seconds."""
    sys.meta_path.insert(0, _Absent(absent, absent_for_keras))
    # An interrupt at the terminal is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Output of libraries must not mix with the answers.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    inbox = queue.Queue()
    threading.Thread(target=_receive, args=(jobs, inbox), daemon=True).start()
    while True:
        try:
            message = inbox.get(timeout=idle_seconds)
        except queue.Empty:
            os._exit(0)
        _write_message(answers, _TAKEN)
        try:
            function, args = pickle.loads(message)
            answer = pickle.dumps(("value", function(*args)))
        except Exception as error:
            answer = pickle.dumps(("error", _portable(error)))
        _write_message(answers, answer)


def _receive(jobs, inbox):
    try:
        while True:
            inbox.put(_read_message(jobs))
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone, perhaps in the middle of a job


def _portable(error):
    """Return an error that the parent can read: of the same kind, or a `RuntimeError`."""
    # The parent need not be able to import what raised it.
    known = type(error).__module__.partition(".")[0] in ("builtins", "sklearn_cnnfeat")
    if known:
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # an error with a constructor of its own
            pass
    return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def limited_memory(n_bytes):
    """Let this process take at most so many bytes of addresses more, where the system can do so."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + n_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def memory_for(*paths):
    """Let this process take at most the memory that a network in these files may need."""
    n_bytes = sum(os.path.getsize(path) for path in paths if os.path.exists(path))
    return limited_memory(_FREE_BYTES + _LARGEST_RATIO * n_bytes)


def _address_space():
    import psutil

    return psutil.Process().memory_info().vms
