"""Programs: compiled networks, kept on the disk between processes and in memory between fits."""

import importlib.util
import json
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from sklearn_cnnfeat._files import digest_of_file, digest_of_text
from sklearn_cnnfeat._home import make_private_folder, programs_folder
from sklearn_cnnfeat._network import _build, _engines, quantize
from sklearn_cnnfeat._network.spec import (
    NetworkInfo,
    installed_version,
)
from sklearn_cnnfeat._network.weights import find_weights
from sklearn_cnnfeat._network.zoo import find_architecture
from sklearn_cnnfeat.exceptions import EngineError, EngineWarning, ProgramWarning

# Least recently used programs leave the disk when all of them together take more bytes than this.
MAX_BYTES_ON_DISK = 20 * 1024**3
# Programs kept in memory: as many as a search over the layers of a network goes through.
MAX_IN_MEMORY = 4
# Largest difference to TensorFlow's own numbers, relative to the largest of them, that is put down
# to the rounding of float32.
TOLERANCE = 1e-3

# What programs are called while they are written, and the seconds after which their writer must
# have been killed.
_UNFINISHED = "tmp-"
_ABANDONED = 3600

_RECORD = "program.json"
_NETWORK = "network.xml"
_WEIGHTS = "network.bin"


def identify(source, layers, input_size=None, model=None):
    """Return `source` with the digest of its weights, downloading published ones where needed.

    Before a download, `layers` are looked for: a name spelled wrong costs no half gigabyte.
    """
    if source.kind == "object":
        return replace(source, digest=_build.digest_of_model(model))
    if source.kind == "file":
        return replace(source, digest=digest_of_file(source.name))
    if source.weights == "random":
        return source
    path = source.weights
    if source.weights == "imagenet":
        architecture = find_architecture(source.name)
        path = find_weights(architecture, source.include_top, input_size).path
        if path is None:
            _build.check_layers(source, layers, input_size)
            path = _build.download_weights(source, input_size)
    return replace(source, digest=digest_of_file(path))


# --- which engine -----------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _has_openvino():
    return importlib.util.find_spec("openvino") is not None


def check_precision(precision, engine):
    """Raise where an engine, or this processor, does not compute in a precision."""
    if precision == "float32":
        return
    if engine != "openvino":
        raise ValueError(
            f"precision={precision!r} is arithmetic of the OpenVINO engine, and Keras runs this "
            "network here. Use precision='float32'."
        )
    if precision == "bfloat16" and not _engines.supports_bfloat16():
        raise ValueError(
            "precision='bfloat16' needs a processor that computes it in hardware (AVX512_BF16 or "
            "AMX); this one would be slower than with precision='float32'."
        )


def has_fast_bfloat16():
    """Whether OpenVINO computes in bfloat16 on this processor, and not slower than in float32."""
    return _has_openvino() and _engines.supports_bfloat16()


def choose_engine():
    """Return the engine that ``engine="auto"`` means on this machine.

    No network is an exception: on a processor OpenVINO is the faster of the two for all that
    ``benchmarks/engines.py`` compares, with a fraction of the memory.
    """
    if not _has_openvino():
        return "keras"
    # Device files of NVIDIA's and AMD's drivers: TensorFlow is not imported only to see no GPU.
    if any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
        return "keras" if _build.has_gpu() else "openvino"
    return "openvino"


# --- programs ---------------------------------------------------------------------------------


class Program:
    """A network ready to run, or ready to be read or built when it is run first.

    Attributes
    ----------
    info : NetworkInfo
        Known without loading anything but a small JSON file.
    engine : {"openvino", "keras"}
        What computes it.
    """

    def __init__(
        self,
        spec,
        info,
        engine,
        *,
        folder=None,
        network=None,
        graph=None,
        reason=None,
        inspection=...,
    ):
        self.spec = spec
        self.info = info
        self.engine = engine
        # Why "auto" did not take OpenVINO; None where it did, or was not asked.
        self.reason = reason
        # Whether its fingerprint means the same numbers in every process.
        self.is_lasting = folder is not None
        # How the file that it was made from was inspected; None where it was trusted instead.
        self.inspection = _build.inspection_of(spec.source) if inspection is ... else inspection
        self.model = None
        self._folder = folder
        self._network = network
        self._graph = graph
        self._compiled = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, dtype, precision, n_threads, batch_size, n_callers=None):
        """Return an engine; one is kept for each set of arguments that is in use.

        Where `n_callers` is given, so many use it at the same time, each with one core.
        """
        key = (np.dtype(dtype).name, precision, n_threads, batch_size, n_callers)
        _check_process()
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._make_engine(*key)
                if len(self._compiled) > 2:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return self._compiled[key]

    def _make_engine(self, dtype, precision, n_threads, batch_size, n_callers):
        if self.engine == "keras":
            if self._graph is None:
                self._graph = _build.build_graph(self.spec, self.model).freeze()
            return _engines.KerasEngine(self._graph, batch_size)
        try:
            network = self.read_network()
            return _engines.OpenVINOEngine(
                network, dtype, precision, n_threads, batch_size, n_callers
            )
        except Exception as error:
            raise EngineError(
                f"OpenVINO cannot load {_build.describe(self.spec.source)}: {_first_line(error)}."
            ) from error

    def read_network(self):
        """Return the OpenVINO model, read from the disk where it is not in memory yet."""
        if self._network is None and not (self._folder / _NETWORK).exists():
            # Only its record was there: see `note_part`.
            self._network = _compile(self.spec, "openvino", self._folder, self.model, None)._network
        if self._network is None:
            self._network = _engines.read_program(self._folder / _NETWORK)
        return self._network


_programs = OrderedDict()
_lock = threading.RLock()
# Process in which the runtimes were set up; None before.
_runtime_process = None


def _check_process():
    """Refuse to go on after a fork, where OpenVINO and TensorFlow would wait for ever."""
    global _runtime_process
    if _runtime_process not in (None, os.getpid()):
        raise RuntimeError(
            "This process was forked from one that had already run a network, and neither "
            "OpenVINO nor TensorFlow works after a fork. Start workers with joblib's 'loky' "
            "backend (scikit-learn's default) or with multiprocessing's 'spawn' method, or fork "
            "before the first fit or transform."
        )
    _runtime_process = os.getpid()


def open_program(spec, engine, model=None, announce=None, calibrate=None):
    """Return the program of a spec: from memory, from the disk, or newly compiled.

    Parameters
    ----------
    spec : NetworkSpec
        What to compute, with a source that carries its digest.
    engine : {"auto", "openvino", "keras"}
        What to compute it with.
    model : keras.Model, default=None
        The model, where the spec names an object.
    announce : callable, default=None
        Called with a sentence before anything that takes seconds.
    calibrate : callable, default=None
        Takes a `NetworkInfo`; returns the batches of pixels that an 8-bit network is made with.

    Returns
    -------
    program : Program
        Ready to be compiled.
    """
    wanted, key = _key(spec, engine, model)
    if wanted == "openvino" and not _has_openvino():
        raise ImportError(
            "engine='openvino' needs OpenVINO: pip install openvino. engine='auto' runs on "
            "Keras where it is missing."
        )
    with _lock:
        program = _programs.get(key)
        if program is None:
            folder = programs_folder() / key
            program = _read(folder, spec)
            if program is None and spec.calibration is None:
                program = _compile(spec, wanted, folder, model, announce)
            elif program is None:
                program = _calibrate(spec, wanted, folder, model, announce, calibrate)
            # As long as the program is kept, no other model can get the same id.
            program.model = model
            _programs[key] = program
            if len(_programs) > MAX_IN_MEMORY:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
        _check_trust(program, spec)
    if program.engine != wanted:
        if engine != "auto":
            raise EngineError(program.reason)
        warnings.warn(program.reason + " Keras computes it instead.", EngineWarning, stacklevel=4)
    return program


def _check_trust(program, spec):
    """Refuse a program to who does not trust its file, if only somebody else did."""
    source = spec.source
    comes_from_file = source.kind == "file" or (source.kind == "zoo" and source.weights != "random")
    wanted = _build.inspection_of(source)
    if comes_from_file and wanted is not None and program.inspection != wanted:
        _build.inspect_again(source, spec.input_size)
        program.inspection = wanted


def note_part(spec, info, engine, whole, model=None):
    """Note down what is known of `spec` because it is a part of the program `whole`.

    Who finds all rows in a cache then never needs its network; who does not compiles it.
    """
    _, key = _key(spec, engine, model)
    folder = programs_folder() / key
    with _lock:
        if key not in _programs and not (folder / _RECORD).exists():
            part = Program(
                spec, info, whole.engine, reason=whole.reason, inspection=whole.inspection
            )
            _write(folder, part)


def _key(spec, engine, model):
    """Return the engine that is wanted and the name of the program."""
    wanted = choose_engine() if engine == "auto" else engine
    facts = [spec.fingerprint(), wanted, installed_version(wanted)]
    if model is not None and not _build.has_lasting_identity(model):
        facts.append(id(model))
    return wanted, digest_of_text(json.dumps(facts))


def _compile(spec, engine, folder, model, announce):
    _check_process()
    name = _build.describe(spec.source)
    if announce:
        announce(f"compiling {name} (once; kept for later runs)")
    graph = _build.build_graph(spec, model)
    failed = False
    if engine == "keras":
        program = Program(spec, graph.info, "keras", graph=graph.freeze())
    else:
        try:
            network = _convert(graph)
            reason = _compare(graph, network, name)
        except Exception as error:
            network, reason = None, f"OpenVINO cannot take {name}: {_first_line(error)}."
            failed = True
        if reason is None:
            program = Program(spec, graph.info, "openvino", network=network)
        else:
            program = Program(spec, graph.info, "keras", graph=graph.freeze(), reason=reason)
    program.is_lasting = graph.lasting
    if failed:
        # Perhaps of the moment (memory, a broken installation): the next process tries again.
        return program
    if graph.lasting and _write(folder, program) and program.engine == "openvino":
        # Read back, its weights are mapped from the file and shared among processes.
        return Program(spec, graph.info, "openvino", folder=folder)
    return program


def _calibrate(spec, engine, folder, model, announce, calibrate):
    if calibrate is None:
        raise RuntimeError(
            f"The 8-bit network of {_build.describe(spec.source)} that was made in fit is not "
            "here. Call fit again, or say calibration=images, from which it can be made anew."
        )
    whole = open_program(replace(spec, calibration=None), engine, model, announce)
    name = _build.describe(spec.source)
    if whole.engine != "openvino":
        raise ValueError(f"precision='int8' is OpenVINO's, and Keras runs {name} here.")
    if announce:
        announce(f"calibrating {name} for 8 bits (kept for later runs)")
    network = quantize.quantize(whole.read_network(), calibrate(whole.info))
    program = Program(spec, whole.info, "openvino", network=network)
    program.is_lasting = whole.is_lasting
    if program.is_lasting:
        _write(folder, program)
    return program


def _first_line(error):
    # OpenVINO ends with a link to its help and begins with the place in its source.
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and "http" not in line]
    return f"{type(error).__name__}: {told[-1] if told else ''}"


def _convert(graph):
    with tempfile.TemporaryDirectory(prefix="cnnfeat-") as folder:
        path = Path(folder) / "graph.pb"
        graph.write(path)
        return _engines.read_graph(path, graph.output_names)


def _compare(graph, network, name):
    """Return why OpenVINO's numbers are not to be trusted; None where they equal Keras'."""
    height, width, channels = (side or 64 for side in graph.info.input_shape)
    # Smooth noise over the whole range: every layer sees something like a photograph.
    coarse = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, channels))
    rows = np.linspace(0, 7, height).round().astype(int)
    columns = np.linspace(0, 7, width).round().astype(int)
    pixels = np.ascontiguousarray(coarse[:, rows][:, :, columns], np.float32)
    expected = graph.run(pixels)
    differences = []

    def deliver(i, outputs):
        for reference, output in zip(expected, outputs, strict=True):
            scale = np.abs(reference[i]).max() or 1.0
            differences.append(np.abs(output - reference[i]).max() / scale)

    engine = _engines.OpenVINOEngine(network, np.float32, "float32", 1, None)
    engine.run((((i,), pixels[i : i + 1]) for i in range(len(pixels))), deliver)
    # NumPy's maximum is NaN where any is.
    worst = np.max(differences)
    if worst <= TOLERANCE:
        return None
    return (
        f"OpenVINO's numbers for {name} differ from Keras' by {worst:.1e} of the largest "
        f"(allowed: {TOLERANCE:.0e})."
    )


# --- on the disk ------------------------------------------------------------------------------


def _write(folder, program):
    """Keep a program for later processes, complete or not at all; return whether it is there."""
    try:
        make_private_folder(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_UNFINISHED) as temporary:
            temporary = Path(temporary)
            record = {
                "info": program.info.to_json(),
                "engine": program.engine,
                "reason": program.reason,
                "inspection": program.inspection,
                "files": {},
            }
            if program._network is not None:
                _engines.write_program(program._network, temporary / _NETWORK)
                record["files"] = {
                    name: digest_of_file(temporary / name) for name in (_NETWORK, _WEIGHTS)
                }
            text = json.dumps(record, indent=1)
            (temporary / _RECORD).write_text(
                json.dumps({"sha256": digest_of_text(text), "record": text}), encoding="utf-8"
            )
            if program._network is not None and not (folder / _NETWORK).exists():
                # A record without its network, if anything.
                shutil.rmtree(folder, ignore_errors=True)
            try:
                os.rename(temporary, folder)
            except OSError:
                # Another process was first; what it wrote is the same. A damaged program was
                # taken away when it was read.
                if not folder.is_dir():
                    raise
            else:
                # The context manager expects something to remove.
                temporary.mkdir()
        _make_room(folder.parent, keep=folder)
        return True
    except OSError as error:
        warnings.warn(
            f"The compiled network cannot be kept in {folder.parent} ({error}); the next process "
            "compiles it again. Set SKLEARN_CNNFEAT_HOME to a folder that can be written to.",
            ProgramWarning,
            stacklevel=6,
        )
        return False


def _read_record(folder):
    """Return what is written down of the program in `folder`, and raise if a file is damaged."""
    envelope = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    if digest_of_text(envelope["record"]) != envelope["sha256"]:
        raise ValueError("its record is damaged")
    record = json.loads(envelope["record"])
    for name, digest in record["files"].items():
        if digest_of_file(folder / name) != digest:
            raise ValueError(f"{name} is damaged")
    return record


def measure_programs():
    """Return how many programs are on the disk, and their bytes, unread."""
    files = [path for path in programs_folder().glob("*/*") if path.is_file()]
    return len({path.parent for path in files}), sum(path.stat().st_size for path in files)


def remove_programs():
    """Remove all programs from the disk."""
    if programs_folder().is_dir():
        shutil.rmtree(programs_folder())


def check_programs():
    """Read all programs on the disk; return how many are sound, names of the others, and bytes."""
    sound, damaged, n_bytes = 0, [], 0
    parent = programs_folder()
    for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
        if folder.name.startswith(_UNFINISHED) or not folder.is_dir():
            continue
        try:
            _read_record(folder)
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(folder.name)
        else:
            sound += 1
        n_bytes += sum(file.stat().st_size for file in folder.iterdir())
    return sound, damaged, n_bytes


def _read(folder, spec):
    """Return the program in `folder`; None where there is none or it is damaged."""
    try:
        record = _read_record(folder)
    except (FileNotFoundError, NotADirectoryError):
        if not folder.is_dir():
            return None
        problem = "a file is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = str(error)
    else:
        try:
            os.utime(folder / _RECORD)
        except OSError:
            # A read-only folder serves programs as well; only their age is not noted.
            pass
        info = NetworkInfo.from_json(record["info"])
        return Program(
            spec,
            info,
            record["engine"],
            folder=folder,
            reason=record["reason"],
            inspection=record.get("inspection"),
        )
    warnings.warn(
        f"The compiled network in {folder} cannot be used ({problem}); it is compiled again.",
        ProgramWarning,
        stacklevel=5,
    )
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _make_room(parent, keep):
    programs = []
    for folder in parent.iterdir():
        try:
            if folder.name.startswith(_UNFINISHED):
                if time.time() - folder.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            files = list(folder.iterdir())
            size = sum(file.stat().st_size for file in files)
            programs.append(((folder / _RECORD).stat().st_mtime, size, folder))
        except OSError:
            # Being written or removed by another process.
            continue
    total = sum(size for _, size, _ in programs)
    for _, size, folder in sorted(programs, key=lambda program: program[0]):
        if total <= MAX_BYTES_ON_DISK:
            break
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
