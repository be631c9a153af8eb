"""What is in a model file, found out without Keras and before it: only what is known is let in.

Keras builds whatever a file names, with safe_mode=True as well: over the years files have made it
run code, import modules, and read other files. Here a file is let through if every class in it is
on a list of Keras' own that compute and do nothing else, if its weights lie in the file itself,
and if it cannot unpack to much more than it is.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from sklearn_cnnfeat._network.file_kinds import other_kind
from sklearn_cnnfeat.exceptions import ModelFileError, UntrustedModelError

# Raised whenever something more is refused: what passed an older version is inspected again.
INSPECTION = 2

# A file may unpack to so many bytes, and to so many times its own size on top.
_FREE_BYTES = 64 * 1024**2
_LARGEST_RATIO = 20
# The configuration of the largest network of Keras Applications is 1 MB of text.
_MOST_TEXT = 32 * 1024**2
_FREE_TEXT = 8 * 1024**2
_DEEPEST = 100
_MOST_OBJECTS = 200_000
# That many layers are computed in one pass, those of models inside once a call. No network of Keras
# Applications has more than 1,100.
_MOST_CALLS = 20_000
# Parts of an archive that are kept in memory while they are looked at; larger ones go to the disk.
_IN_MEMORY = 32 * 1024**2

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_METADATA = "metadata.json"
_MEMBERS = {_CONFIG, _WEIGHTS, _METADATA}
_SUFFIXES = (".keras", ".h5", ".hdf5")

_MODELS = {"Functional", "Model", "Sequential"}
# fmt: off
_LAYERS = set("""
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
    AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D BatchNormalization Bidirectional
    CategoryEncoding CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D
    Convolution1D Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D
    DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU
    GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D
    GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization GroupQueryAttention HashedCrossing Hashing Identity InputLayer InputSpec LSTM
    LSTMCell Layer LayerNormalization LeakyReLU Masking MaxNumBoundingBoxes MaxPool1D MaxPool2D
    MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp
    MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization RNN
    RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue
    RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation
    RandomSharpness RandomShear RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape
    Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D
    SeparableConvolution1D SeparableConvolution2D SimpleRNN SimpleRNNCell Softmax Solarization
    SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells
    Subtract ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D
    UpSampling3D Wrapper ZeroPadding1D ZeroPadding2D ZeroPadding3D
    CustomScaleLayer LayerScale
""".split())
_PARTS = set("""
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT
    STFTInitializer TruncatedNormal VarianceScaling Zeros
    L1 L1L2 L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg UnitNorm
    DTypePolicy DTypePolicyMap FloatDTypePolicy Policy QuantizedDTypePolicy
    QuantizedFloat8DTypePolicy AbsMaxQuantizer Float8QuantizationConfig Int4QuantizationConfig
    Int8QuantizationConfig SeedGenerator
""".split())
# Values that JSON has no notation for.
_VALUES = {
    "__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__",
    "__tuple__", "TensorShape",
}
_FUNCTIONS = set("""
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu
    linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus
    softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold
""".split())
# fmt: on
# How parts may be named in short: "he_normal", and what Keras calls some of them besides.
_SHORT = {name.lower() for name in _PARTS} | {"normal", "one", "uniform", "zero"}
_CLASSES = _MODELS | _LAYERS | _PARTS
# Where Keras has these classes. Those of its operations ("x * 2" in a Functional model) are too
# many to list: all in these rooms compute; the operations that take functions are elsewhere.
_ROOMS = (
    "activations constraints dtype_policies initializers layers models quantizers random "
    "regularizers"
).split()
# Where Keras 2 had them; Keras 3 does not find them there, and imports nothing else instead.
_OLD_ROOMS = ("engine", "mixed_precision")
_OPERATIONS = {f"keras.src.ops.{room}" for room in ("image", "linalg", "math", "nn", "numpy")}
_CORE_OPERATIONS = {
    *("Cast", "ConvertToTensor", "SaturateCast", "Scatter", "ScatterUpdate", "Slice"),
    *("SliceUpdate", "StopGradient", "Unstack"),
}

_NOT_LAYERS = _PARTS | _VALUES | {"function", "__lambda__"}

_REASONS = {
    "Lambda": "which holds Python code",
    "__lambda__": "which is Python code",
    "function": "which is a function that Keras would look up in other modules",
    "registered": "which Keras would look up among the functions and classes of other programs",
    "TFSMLayer": "which runs another program, read from a folder that the file names",
    "TorchModuleWrapper": "which unpickles a PyTorch module, and pickles can hold any code",
    "FlaxLayer": "which runs code of another framework",
    "JaxLayer": "which runs code of another framework",
    "StringLookup": "which can read any file of this machine as its vocabulary",
    "IntegerLookup": "which can read any file of this machine as its vocabulary",
    "TextVectorization": "which can read any file of this machine as its vocabulary",
    "__typespec__": "which looks up classes in other modules",
    "TypeSpec": "which looks up classes in other modules",
    "CompositeTensor": "which looks up classes in other modules",
}
# Keras' own classes that no file may name; what they compute is not in the file alone.
REFUSED_LAYERS = {name for name in _REASONS if name[0].isupper()} - {"TypeSpec", "CompositeTensor"}


class _Refused(Exception):
    """Why a file is refused; becomes an `UntrustedModelError` that names the file."""


def show(value, most=100):
    """Return what a stranger wrote as one line that a terminal only shows, shortened."""
    text = str(value)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:most])
    return f"{shown}..." if len(text) > most else shown


def cause_of(error):
    """Return the line of an error of Keras that tells the cause, fit to be shown."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
    lines = [line.strip() for line in lines if line.strip()] or [type(error).__name__]
    cause = lines[0]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("Exception encountered: "):
            cause = line.removeprefix("Exception encountered: ")
        elif line.startswith("Exception encountered when calling"):
            is_told = not following.startswith("Arguments received")
            cause = following if is_told else type(error).__name__
        elif "Example error message" in line:
            cause = following
    return show(cause, 300)


@contextmanager
def inspected_copy(path, digest, what="model"):
    """Copy a file to where nobody else can change it, inspect the copy, and yield its path.

    How models inside the model were compiled for training is left out of the copy: Keras would
    build it, and nothing here needs it.

    Parameters
    ----------
    path : str
        The file.
    digest : str
        Its SHA-256: what is inspected and read is what the name of a program stands for.
    what : {"model", "weights"}
        What it is to be loaded as.

    Yields
    ------
    copy : pathlib.Path
        Removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="cnnfeat-") as folder:
        copy = Path(folder) / os.path.basename(path)
        computed = hashlib.sha256()
        with open(path, "rb") as source, open(copy, "wb") as target:
            while block := source.read(1 << 20):
                computed.update(block)
                target.write(block)
        if computed.hexdigest() != digest:
            raise ModelFileError(f"{str(path)!r} was changed while it was being read. Try again.")
        config = _inspect(copy, path, what)
        if config is not None:
            _replace_config(copy, config)
        yield copy


def _replace_config(path, config):
    text = json.dumps(config)
    if path.suffix != ".keras":
        import h5py

        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = text
        return
    replaced = path.with_suffix(".new")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(replaced, "w") as new:
        for name in old.namelist():
            if name == _CONFIG:
                new.writestr(name, text)
                continue
            with old.open(name) as source, new.open(name, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
    os.replace(replaced, path)


def inspection_of(source):
    """Return what to note down of a network loaded from `source`: how its file was inspected."""
    return None if source.trusted else INSPECTION


def inspect_again(source):
    """Raise if the file of `source` would be refused; nothing is loaded."""
    what = "model" if source.kind == "file" else "weights"
    path = source.name if source.kind == "file" else source.weights
    with inspected_copy(path, source.digest, what):
        pass


def inspect_file(path, what="model"):
    """Raise if a file holds anything but what Keras' own layers need.

    Parameters
    ----------
    path : str or path
        A file that ends in .keras, .h5 or .hdf5.
    what : {"model", "weights"}
        Of weights only what is loaded is looked at: no configuration.

    Raises
    ------
    UntrustedModelError
        If it holds anything else; the message names it.
    ModelFileError
        If it is damaged, or no such file at all.
    """
    _inspect(path, path, what)


def _inspect(path, shown, what):
    name = repr(str(shown))
    try:
        with open(path, "rb") as file:
            return inspect_stream(file, str(shown), what)
    except _Refused as error:
        raise UntrustedModelError(
            f"{name} was not loaded, because {error}. A file like this can run code, or read other "
            "files, with all the rights that you have. If you trust whoever made it as you would "
            "trust a program of theirs, say trusted=True: the file is then loaded with whatever it "
            "holds."
        ) from None
    except ModelFileError:
        raise
    except Exception as error:
        # Libraries stumble over damaged files in many ways.
        problem = f"{type(error).__name__}: {cause_of(error)}"
        if isinstance(error, zipfile.BadZipFile):
            problem = "the archive is damaged or cut off."
        kind = "a Keras model (.keras or .h5)" if what == "model" else "weights of a Keras model"
        raise ModelFileError(f"{name} cannot be read as {kind}: {problem}") from error


def inspect_stream(file, name, what="model"):
    """Inspect an open file, of which `name` tells the kind; see `inspect_file`.

    Whatever the libraries that read it raise comes through. Returned is the configuration that
    Keras is to be given in place of the one in the file, None for that itself.
    """
    begin = file.read(64)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not name.endswith(_SUFFIXES):
        raise _Refused(f"its name ends in none of {', '.join(_SUFFIXES)}")
    is_archive = name.endswith(".keras")
    if not begin.startswith(b"PK\x03\x04" if is_archive else b"\x89HDF"):
        kind = "no Keras model" if what == "model" else "no file of weights"
        found = other_kind(begin, Path(name).suffix) or f"it begins with {begin[:8]!r}"
        raise ModelFileError(f"{name!r} is {kind}: {found}.")
    if is_archive:
        return _inspect_archive(file, what)
    config = _inspect_hdf5(file, size)
    if what != "model":
        return None
    if config is None:
        raise ValueError("it holds weights and no network (no 'model_config').")
    return _inspect_config(_parse(config))


# --- archives ---------------------------------------------------------------------------------


def _inspect_archive(file, what):
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            _check_member(member)
        (name, count), *_ = Counter(m.filename for m in members).most_common() or [("", 0)]
        if count > 1:
            raise _Refused(f"its archive has {name!r} more than once")
        config = None
        if what == "model":
            config = _inspect_config(_parse(_read_member(archive, _CONFIG).getvalue()))
        with _read_member(archive, _WEIGHTS) as weights:
            _inspect_hdf5(weights, archive.getinfo(_WEIGHTS).file_size)
    return config


def _check_member(member):
    name = member.filename
    if name not in _MEMBERS:
        known = ", ".join(sorted(_MEMBERS))
        raise _Refused(
            f"its archive holds {name[:200]!r} besides {known}, a file that layers could read"
        )
    if member.flag_bits & 0x1:
        raise _Refused(f"{name!r} in its archive is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Refused(f"{name!r} in its archive is compressed in an unusual way")
    if name == _WEIGHTS:
        most = _FREE_BYTES + _LARGEST_RATIO * member.compress_size
    else:
        most = min(_FREE_TEXT + _LARGEST_RATIO * member.compress_size, _MOST_TEXT)
    if member.file_size > most:
        raise _Refused(
            f"{name!r} in its archive would unpack to {member.file_size:,} bytes, from "
            f"{member.compress_size:,}"
        )


def _read_member(archive, name):
    """Return a member as an open file, in memory or on the disk, and check its checksum."""
    size = archive.getinfo(name).file_size
    target = io.BytesIO() if size <= _IN_MEMORY else tempfile.TemporaryFile(prefix="cnnfeat-")
    try:
        with archive.open(name) as source:
            # Not more than was promised, whatever comes out.
            shutil.copyfileobj(source, target, 1 << 20)
        target.seek(0)
    except BaseException:
        target.close()
        raise
    return target


def saved_by(path):
    """Return the version of Keras that a model file was saved by; None where it does not tell."""
    import h5py

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, _read_member(archive, _METADATA) as text:
                return str(json.load(text)["keras_version"])
        with h5py.File(path, "r") as file:
            return str(file.attrs["keras_version"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


# --- weights ----------------------------------------------------------------------------------


def _inspect_hdf5(file, size):
    """Look at every object of an HDF5 file; return its attribute "model_config", if any."""
    import h5py

    budget = _FREE_BYTES + _LARGEST_RATIO * size
    n_bytes, n_texts = _count_texts(file, size)
    if n_bytes > budget:
        raise _Refused(f"its texts, many of them the same one, are {n_bytes:,} bytes long")
    budget -= n_bytes
    with h5py.File(file, "r") as root:
        if root.id.get_create_plist().get_sizes() != (8, 8):
            # What `_check_heaps` goes by; others have not been written for decades.
            raise _Refused("its HDF5 file has addresses of an unusual size")
        pending = [root["/"]]
        seen = set()
        n_objects = 0
        while pending:
            item = pending.pop()
            n_objects += 1
            if n_objects > _MOST_OBJECTS:
                raise _Refused(f"it holds more than {_MOST_OBJECTS:,} groups and arrays")
            n_bytes, n_references = _check_attributes(item, budget)
            budget -= n_bytes
            n_texts -= n_references
            if isinstance(item, h5py.Dataset):
                budget -= _check_dataset(item, budget, size)
            elif not isinstance(item, h5py.Group):
                raise _Refused(f"{item.name[:200]!r} in it is neither a group nor an array")
            else:
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    raise _Refused(f"its group {item.name[:200]!r} is linked more than once")
                seen.add(address)
                for name in item:
                    # Looked at without following it.
                    if not isinstance(item.get(name, getlink=True), h5py.HardLink):
                        link = show(f"{item.name.rstrip('/')}/{name}", 200)
                        raise _Refused(
                            f"its weights hold a link, {link}, which can lead to other files"
                        )
                    pending.append(item[name])
        if n_texts < 0:
            # The library takes up to 4 GB for a text that is not there before it misses it.
            raise ValueError("a text of the HDF5 file is not where or as long as it should be.")
        config = root.attrs.get("model_config")
    return config.encode() if isinstance(config, str) else config


_HEAP = b"GCOL\x01"


def _check_heaps(file, size):
    """Return address -> number -> length of the texts in the lists of texts of an HDF5 file.

    Raise if one is damaged: the library may read it for ever. Each of its entries has a length,
    and one of 0 leads the library to the same entry again.
    """
    heaps = {}
    before = b""
    end = n_texts = 0
    for start in range(0, size, 1 << 20):
        file.seek(start)
        block = before + file.read(1 << 20)
        found = block.find(_HEAP)
        while found >= 0:
            place = start - len(before) + found
            if place < end:
                raise _Refused("its lists of texts lie inside each other")
            length, heaps[place] = _check_heap(file, place, size, _MOST_OBJECTS - n_texts)
            end = place + length
            n_texts += len(heaps[place])
            found = block.find(_HEAP, found + 1)
        before = block[1 - len(_HEAP) :]
    file.seek(0)
    return heaps


def _check_heap(file, start, size, most):
    """Return the length of a list of texts, and those of its texts by their numbers."""
    file.seek(start)
    header = file.read(16)
    length = int.from_bytes(header[8:], "little")
    is_sound = len(header) == 16 and 16 <= length <= size - start
    heap = file.read(length - 16) if is_sound else b""
    lengths = {}
    n_entries = place = 0
    while is_sound and place + 16 <= len(heap):
        index, _, _, n_bytes = struct.unpack_from("<HHIQ", heap, place)
        # The entry 0 is what is left over; it counts its own head.
        step = 16 + (n_bytes + 7) // 8 * 8 if index else n_bytes
        is_sound = 16 <= step <= len(heap) - place
        place += step
        n_entries += 1
        if index:
            is_sound &= index not in lengths
            lengths[index] = n_bytes
        if n_entries > most:
            raise _Refused(f"it holds more than {_MOST_OBJECTS:,} texts")
    if not is_sound:
        raise ValueError("a list of texts in the HDF5 file is damaged.")
    return length, lengths


def _count_texts(file, size):
    """Return the length of all texts of an HDF5 file and their number.

    A text counts as often as something leads to it: any number of them can lead to the same one.
    """
    import numpy as np

    heaps = _check_heaps(file, size)
    if not heaps:
        return 0, 0
    addresses = np.array(list(heaps), np.uint64)
    n_bytes = n_texts = n_found = 0
    before = b""
    while block := file.read(1 << 20):
        block = before + block
        for shift in range(4, 12):
            # What leads to a text: its length, the address of the list and the number in it.
            view = np.frombuffer(block, "<u8", max(len(block) - 4 - shift, 0) // 8, shift)
            found = np.flatnonzero(view < size)
            found = found[np.isin(view[found], addresses)]
            n_found += len(found)
            if n_found > _MOST_OBJECTS:
                raise _Refused(f"it names its lists of texts more than {_MOST_OBJECTS:,} times")
            for at in (8 * found + shift - 4).tolist():
                length, address, index = struct.unpack_from("<IQI", block, at)
                if heaps[address].get(index) == length:
                    n_bytes += length
                    n_texts += 1
        before = block[-15:]
    file.seek(0)
    return n_bytes, n_texts


def _check_dataset(dataset, budget, size):
    import h5py

    name = dataset.name[:200]
    created = dataset.id.get_create_plist()
    if created.get_external_count():
        raise _Refused(f"its weights {name!r} lie in another file")
    if created.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED, h5py.h5d.COMPACT):
        raise _Refused(f"its weights {name!r} are put together from other files")
    kind = dataset.id.get_type()
    _check_type(kind, name)
    if _is_reference(kind):
        # Those of an array can be packed, where `_count_texts` does not see them.
        raise _Refused(f"its weights {name!r} are texts, which no layer of Keras has")
    n_bytes = kind.get_size() * math.prod(dataset.shape or (0,))
    _check_size(n_bytes, budget, name)
    if created.get_layout() == h5py.h5d.CHUNKED:
        _check_chunks(dataset, created, size)
    return n_bytes


def _check_chunks(dataset, created, size):
    """Raise if the pieces of an array unpack to more than the array has."""
    import h5py

    name = dataset.name[:200]
    known = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    for number in filters:
        if number not in known:
            raise _Refused(f"its weights {name!r} need the HDF5 plug-in number {number}")
    if filters != sorted(set(filters), key=known.index):
        raise _Refused(f"its weights {name!r} are compressed in an unusual way")
    shape = created.get_chunk()
    if any(its > whole for its, whole in zip(shape, dataset.shape, strict=True)):
        raise _Refused(f"its weights {name!r} have pieces of {shape}, larger than the whole")
    n_bytes = math.prod(shape) * dataset.id.get_type().get_size()
    pieces = []
    dataset.id.chunk_iter(pieces.append)
    for piece in pieces:
        if piece.byte_offset + piece.size > size:
            raise ValueError("the HDF5 file is cut off.")
        if known[1] not in filters or piece.filter_mask & 1 << filters.index(known[1]):
            continue
        # The library would unpack it to the end, however much comes out.
        _, packed = dataset.id.read_direct_chunk(piece.chunk_offset)
        if len(zlib.decompressobj().decompress(packed, n_bytes + 1)) > n_bytes:
            raise _Refused(f"a piece of its weights {name!r} unpacks to more than it is to have")


def _check_attributes(item, budget):
    """Return the size of all attributes of an object, and the number of texts that they lead to."""
    import h5py

    total = n_references = 0
    for i in range(h5py.h5a.get_num_attrs(item.id)):
        attribute = h5py.h5a.open(item.id, index=i)
        name = f"{item.name[:200]} ({attribute.name.decode(errors='replace')[:200]})"
        kind = attribute.get_type()
        _check_type(kind, name)
        n_entries = math.prod(attribute.shape)
        _check_size(n_entries * kind.get_size(), budget - total, name)
        total += n_entries * kind.get_size()
        n_references += n_entries if _is_reference(kind) else 0
    return total, n_references


def _is_reference(kind):
    """Whether values of an HDF5 type are texts that lie elsewhere in the file."""
    import h5py

    return kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()


def _check_type(kind, name):
    import h5py

    plain = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.STRING)
    if kind.get_class() not in plain:
        raise _Refused(f"{name!r} in it holds neither numbers nor text")


def _check_size(n_bytes, budget, name):
    if n_bytes > budget:
        raise _Refused(
            f"{name!r} in it claims {n_bytes:,} bytes, more than its size can account for"
        )


# --- the network ------------------------------------------------------------------------------


def _parse(text):
    if not isinstance(text, bytes):
        raise ValueError("its configuration is no text.")
    if len(text) > _MOST_TEXT:
        raise _Refused(f"its configuration is {len(text):,} bytes long")
    # An empty one is two bytes of text and sixty of memory. That of the largest network has 20,000.
    n_containers = text.count(b"{") + text.count(b"[")
    if n_containers > _MOST_OBJECTS:
        raise _Refused(f"its configuration has {n_containers:,} parts")
    try:
        return json.loads(text)
    except RecursionError:
        raise _Refused("its configuration is nested too deep") from None


def _inspect_config(config):
    """Raise unless all in a configuration is harmless; return it if something was taken out."""
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ValueError("its configuration describes no network.")
    if config["class_name"] not in _MODELS:
        _check_class(config, "")
        raise _Refused(
            f"it is a {config['class_name'][:100]!r}, not a Sequential or Functional model"
        )
    # load_model(compile=False) leaves out this one itself.
    config.pop("compile_config", None)
    is_changed = False
    n_calls = 0
    pending = [(config, "", 0, 1)]
    while pending:
        value, where, depth, calls = pending.pop()
        if depth > _DEEPEST:
            raise _Refused("its configuration is nested too deep")
        if isinstance(value, dict):
            is_changed |= value.pop("compile_config", None) is not None
            if "class_name" in value:
                where = _describe(value, where) if depth else ""
                _check_class(value, where)
                nodes = value.get("inbound_nodes")
                calls *= max(len(nodes), 1) if isinstance(nodes, list) else 1
                n_calls += calls if value["class_name"] not in _NOT_LAYERS else 0
                if n_calls > _MOST_CALLS:
                    raise _Refused(f"it computes its layers more than {_MOST_CALLS:,} times")
            for key, inner in value.items():
                _check_entry(key, inner, where)
                pending.append((inner, where, depth + 1, calls))
        elif isinstance(value, list):
            pending.extend((inner, where, depth + 1, calls) for inner in value)
        elif isinstance(value, str) and ">" in value and not _is_equation(value):
            raise _Refused(f"{_subject(where)} names {value[:100]!r}, {_REASONS['registered']}")
    return config if is_changed else None


def _describe(value, where):
    """Return the path of the layer that a part of the configuration belongs to."""
    config = value.get("config")
    name = value.get("name") or (config.get("name") if isinstance(config, dict) else None)
    if not isinstance(name, str) or str(value["class_name"]) in _NOT_LAYERS:
        return where
    return f"{where}/{name[:100]}" if where else name[:100]


def _is_equation(text):
    """Whether a text with a ">" is what einsum takes, "ab,bc->ac"."""
    return text.count(">") == 1 and "->" in text


def _check_entry(key, value, where):
    """Raise if Keras would look up what an entry of the configuration names somewhere else."""
    if key == "policy_map" and isinstance(value, dict):
        patterns = [name for name in value if not re.fullmatch(r"[\w./-]+", name)]
        if patterns:
            raise _Refused(
                f"{_subject(where)} has data types for layers by the pattern "
                f"{patterns[0][:100]!r}, and some patterns take for ever to compare with a name"
            )
        return
    parts = value if isinstance(value, list) else [value]
    names = [part for part in parts if isinstance(part, str)]
    if key.endswith("activation"):
        strange = set(names) - _FUNCTIONS
    elif key.endswith(("initializer", "regularizer", "constraint")):
        strange = {name for name in names if name.replace("_", "").lower() not in _SHORT}
    elif key in ("layer", "layers", "backward_layer", "cell", "cells"):
        strange = set(names)
    else:
        return
    if strange:
        raise _Refused(
            f"{_subject(where)} names {min(strange)[:100]!r} as its {key}, {_REASONS['registered']}"
        )


def _subject(where):
    return f"its layer {where!r}" if where else "it"


def _check_class(value, where):
    """Raise unless an object of the configuration is one of Keras' own, and harmless."""
    class_name, module = value["class_name"], value.get("module")
    if isinstance(class_name, str) and class_name in _VALUES:
        return
    registered = value.get("registered_name")
    if class_name == "function":
        wanted = value.get("config")
        is_known = isinstance(wanted, str) and wanted in _FUNCTIONS
        is_known = is_known and (module == "builtins" or _is_own(module))
        is_known = is_known and registered in (None, wanted)
        class_name = f"function {str(wanted)[:100]!r}" if not is_known else class_name
        reason = _REASONS["function"]
    else:
        is_known = isinstance(class_name, str) and (
            (class_name in _CLASSES and _is_own(module))
            or (
                module in _OPERATIONS
                and class_name.isidentifier()
                and class_name[0].isupper()  # their functions begin with small letters
                and class_name not in REFUSED_LAYERS
            )
            or (module == "keras.src.ops.core" and class_name in _CORE_OPERATIONS)
        )
        is_known = is_known and registered in (None, class_name)
        reason = _REASONS.get(
            str(class_name), "which is none of the classes of Keras that are known to be harmless"
        )
    if is_known:
        return
    full = f"{show(module)}.{show(class_name)}" if module else show(class_name)
    if isinstance(registered, str) and registered != value["class_name"]:
        full += f", registered as {registered[:100]!r}"
    raise _Refused(f"{_subject(where)} holds a {show(class_name)} ({full}), {reason}")


def _is_own(module):
    """Whether a module is one of Keras' that has the classes above; old files name none."""
    if module in (None, "", "keras"):
        return True
    if not isinstance(module, str):
        return False
    parts = module.split(".")
    own = parts[0] == "keras" and all(part.isidentifier() for part in parts)
    parts = parts[2:] if parts[1:2] == ["src"] else parts[1:]
    return own and bool(parts) and parts[0] in (*_ROOMS, *_OLD_ROOMS, "applications")
