"""Give thousands of damaged files to the readers of images and model files, and count the results.

``python tests/fuzz.py models 20000`` and ``python tests/fuzz.py images 100000``; ``--seed`` for
others than last time. Each input is either accepted or refused with the one error that is
documented. Anything else fails: another exception, a warning, a crash of the process, more than ten
seconds, more memory than documented. The inputs that failed are written to ``--failures``.
"""

import argparse
import faulthandler
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

_SECONDS_AN_INPUT = 10
_NASTY = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def mutate(data, chance, others):
    """Return bytes with a few changes: bits, numbers, pieces lost, doubled, moved or foreign."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        # Headers are short, and where a change does the most.
        end = len(data) if chance.random() < 0.5 else min(len(data), 256)
        at = chance.randrange(end)
        length = min(chance.choice((1, 2, 4, 8, 16, 64, 512)), len(data) - at)
        kind = chance.randrange(8)
        if kind < 2:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at : at + length] = chance.randbytes(length)
        elif kind == 3:
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(_NASTY) % 256**size
            data[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
        elif kind == 6:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        else:
            del data[chance.randrange(len(data)) :]
    return bytes(data)


class Models:
    """Model files: damaged anywhere, and changed inside with everything around them in order."""

    # MB; the process alone takes a hundred and fifty.
    most_memory = 500

    def __init__(self):
        from make_bad_models import archive, bad_models, good_models

        from sklearn_cnnfeat._network import model_files as _inspect
        from sklearn_cnnfeat._network.model_configs import REFUSED_LAYERS

        self._archive = archive
        self._inspect = _inspect
        self._refused_layers = REFUSED_LAYERS
        bad = [model for model in bad_models("nowhere") if len(model.data) < 50_000]
        files = [*good_models().items(), *((model.name, model.data) for model in bad)]
        self._files = [(name, data) for name, data in files if not name.endswith(".json")]
        self._datas = [data for _, data in self._files]
        self._words = sorted({word for data in self._datas for word in _strings(data)})

    def make(self, chance):
        """Return a name and a content."""
        name, data = chance.choice(self._files)
        if not name.endswith(".keras") or chance.random() < 0.4:
            return name, mutate(data, chance, self._datas)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                config, weights = file.read("config.json"), file.read("model.weights.h5")
            config = json.loads(config)
        except Exception:
            return name, mutate(data, chance, self._datas)
        if chance.random() < 0.5:
            config = self._change(config, chance)
        else:
            weights = mutate(weights, chance, self._datas)
        how = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        return name, self._archive(config, compression=how, parameters=weights)

    def _change(self, config, chance):
        places = list(_places(config))
        for _ in range(chance.choice((1, 1, 2, 5))):
            holder, key = chance.choice(places)
            kind = chance.randrange(4)
            if kind == 0:
                other, its = chance.choice(places)
                try:
                    # A copy, so that nothing holds itself.
                    holder[key] = json.loads(json.dumps(other[its]))
                except (KeyError, IndexError):
                    continue
            elif kind == 1:
                holder[key] = chance.choice(self._words)
            elif kind == 2:
                holder[key] = chance.choice((None, True, -1, 2**70, 1e308, [], {}, "", "\ud800"))
            elif isinstance(holder, dict):
                word = chance.choice(self._words)
                holder[chance.choice(("class_name", "module", "registered_name", word))] = word
        return config

    def check(self, name, data):
        """Return what became of it; raise what must not be."""
        file = io.BytesIO(data)
        path = Path(self._folder.name) / name
        path.write_bytes(data)
        what = "weights" if "weights" in name else "model"
        try:
            self._inspect.inspect_file(path, what)
        except self._inspect.UntrustedModelError:
            return "refused"
        except self._inspect.ModelFileError:
            return "damaged"
        if name.endswith(".keras"):
            with zipfile.ZipFile(file) as archive:
                text = archive.read("config.json").decode(errors="replace")
            config = json.loads(text)
            # Left out of what Keras is given.
            config.pop("compile_config", None)
            for holder, key in list(_places(config)):
                if key == "compile_config":
                    holder.pop(key, None)
            for holder, key in _places(config):
                if key == "class_name":
                    forbidden = {*self._refused_layers, "__lambda__", "Canary", "Swish"}
                    if str(holder[key]) in forbidden:
                        raise AssertionError(f"let a {holder[key]} through")
        return "let through"

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="cnnfeat-fuzz-")
        return self

    def __exit__(self, *exc_info):
        self._folder.cleanup()


def _strings(data):
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            config = json.loads(file.read("config.json"))
    except Exception:
        return
    for holder, key in _places(config):
        if isinstance(holder[key], str) and len(holder[key]) < 100:
            yield holder[key]


def _places(value):
    """Yield every (container, key) of a JSON value; the deepest are left out."""
    pending = [(value, 0)]
    while pending:
        inner, depth = pending.pop()
        if depth > 50:
            continue
        if isinstance(inner, dict):
            keys = list(inner)
        elif isinstance(inner, list):
            keys = range(len(inner))
        else:
            continue
        for key in keys:
            yield inner, key
            pending.append((inner[key], depth + 1))


class Images:
    """Image files of all formats, damaged anywhere."""

    # MB: eight bytes for each of the pixels that the default of max_pixels lets in.
    most_memory = 1600

    def __init__(self):
        from make_bad_images import bad_images, good_images

        from sklearn_cnnfeat._images import ImageSpec, as_images
        from sklearn_cnnfeat.exceptions import ImageError

        warnings.simplefilter("error")  # Pillow's must stay inside
        self._error = ImageError
        self._images = as_images([b"x"])
        self._specs = [
            ImageSpec(None, None, 3),
            ImageSpec(20, 24, 3),
            ImageSpec(20, 24, 1, "crop", decode="fast"),
            ImageSpec(20, 24, 3, "pad", decode="fast"),
        ]
        good = good_images()
        bad = [bad.data for bad in bad_images() if not bad.original and len(bad.data) < 20_000]
        self._files = [*good.items()] * 20 + [("bad", data) for data in bad]
        self._datas = list(good.values())

    def make(self, chance):
        """Return a name and a content."""
        name, data = chance.choice(self._files)
        return name, mutate(data, chance, self._datas)

    def check(self, name, data):
        """Return what became of it; raise what must not be."""
        spec = self._specs[len(data) % len(self._specs)]
        try:
            pixels = self._images.decode(data, spec, name)
        except self._error as error:
            if error.name != name or not error.reason:
                raise AssertionError(f"{error!r} does not name its file") from error
            return "refused"
        size = (spec.height, spec.width) if spec.height else pixels.shape[:2]
        if pixels.shape != (*size, spec.channels) or pixels.dtype != "uint8":
            raise AssertionError(f"pixels of shape {pixels.shape} and type {pixels.dtype}")
        return "read"

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass


TARGETS = {"models": Models, "images": Images}


def peak_memory():
    """Return the most memory that this process has used, in MB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # Unlike that, it does not count what the process was before it became this program.
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def work(target, numbers, seed, place):
    """Run some inputs in this process; tell the parent by a file which one is going on."""
    outcomes = Counter()
    failures = {}
    slowest = peak = 0.0
    handle = os.open(place, os.O_WRONLY)
    with TARGETS[target]() as target:
        for number in numbers:
            os.pwrite(handle, b"%20d" % number, 0)
            name, data = target.make(random.Random(f"{seed} {number}"))
            faulthandler.dump_traceback_later(_SECONDS_AN_INPUT, exit=True)
            start = time.perf_counter()
            try:
                outcomes[target.check(name, data)] += 1
            except BaseException as error:
                failures[number] = f"{name}: {type(error).__name__}: {error}"
            slowest = max(slowest, time.perf_counter() - start)
            faulthandler.cancel_dump_traceback_later()
            # Looked at first in a way that costs less.
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            most = max(target.most_memory, peak)
            if resident > most and peak_memory() > most:
                failures[number] = f"{name}: took {peak_memory():.0f} MB"
                peak = peak_memory() * 1.1
    peak = peak_memory()
    print(json.dumps([outcomes, failures, slowest, peak]))


def fuzz(target, n_inputs, seed=0, n_processes=2):
    """Return outcomes, failures (input number -> what happened), slowest input and peak memory."""
    outcomes, failures, slowest, peak = Counter(), {}, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        pending = [(i, n_inputs, n_processes) for i in range(n_processes)]
        running = []
        while pending or running:
            while pending:
                numbers = pending.pop()
                place = Path(folder) / f"place-{numbers[0]}"
                place.write_bytes(b" " * 20)
                arguments = [target, "0", "--seed", str(seed), "--work", *map(str, numbers), place]
                process = subprocess.Popen(
                    [sys.executable, "-X", "faulthandler", __file__, *map(str, arguments)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                running.append((process, numbers, place))
            process, numbers, place = running.pop(0)
            out, err = process.communicate()
            if process.returncode == 0:
                counts, found, seconds, memory = json.loads(out)
                outcomes.update(counts)
                failures.update({int(number): text for number, text in found.items()})
                slowest, peak = max(slowest, seconds), max(peak, memory)
                continue
            text = place.read_text().strip()
            if not text:
                raise RuntimeError(f"the worker does not start: {err}")
            # What it had counted is lost; it goes on behind the input that ended it, and before it.
            number = int(text)
            failures[number] = f"the process ended ({process.returncode}): {err[-800:]}"
            start, stop, step = numbers
            pending += [
                part
                for part in ((start, number, step), (number + step, stop, step))
                if part[0] < part[1]
            ]
    return outcomes, failures, slowest, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("inputs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"))
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        *numbers, place = arguments.work
        return work(arguments.target, range(*map(int, numbers)), arguments.seed, place)
    start = time.perf_counter()
    found = fuzz(arguments.target, arguments.inputs, arguments.seed)
    outcomes, failures, slowest, peak = found
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(
        f"{arguments.inputs:,} {arguments.target} (seed {arguments.seed}): {told}; "
        f"{len(failures)} failures; slowest {slowest:.2f} s; peak memory {peak:.0f} MB; "
        f"{time.perf_counter() - start:.0f} s"
    )
    for number, text in sorted(failures.items()):
        with TARGETS[arguments.target]() as target:
            name, data = target.make(random.Random(f"{arguments.seed} {number}"))
        arguments.failures.mkdir(exist_ok=True)
        (arguments.failures / f"{number}_{Path(name).name}").write_bytes(data)
        print(f"  {number}: {text}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
