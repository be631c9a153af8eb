"""Make model files that try to do more than compute, each harmless, to see that all are refused.

One or more for each class of vulnerability that Keras has had. What they would do if they were
loaded is write, read or import a "canary": a file or a module that tells of it.

As a script: ``python tests/make_bad_models.py FOLDER`` writes them all to a folder.
"""

import base64
import io
import json
import marshal
import struct
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

# A module of this name is put where Python looks for modules; importing it writes the canary.
MODULE = "cnnfeat_canary"


@dataclass(frozen=True)
class BadModel:
    """A file and what its refusal must speak of.

    cve is the vulnerability whose class it stands for, or "-" for what has had none.
    """

    name: str
    cve: str
    data: bytes
    reason: str
    what: str = "model"


# --- a good model -----------------------------------------------------------------------------


def layer(class_name, config, module="keras.layers", registered=None):
    """Return a layer as the .keras format writes it."""
    return {
        "module": module,
        "class_name": class_name,
        "config": config,
        "registered_name": registered,
    }


def network(*layers):
    """Return the configuration of a Sequential model with a convolution and more layers."""
    convolution = layer(
        "Conv2D",
        {
            "name": "conv",
            "filters": 2,
            "kernel_size": [3, 3],
            "activation": "relu",
            "kernel_initializer": layer("GlorotUniform", {"seed": None}, "keras.initializers"),
        },
    )
    start = layer("InputLayer", {"batch_shape": [None, 12, 12, 3], "name": "input"})
    config = {"name": "small", "layers": [start, convolution, *layers]}
    return layer("Sequential", config, "keras")


def weights(change=None):
    """Return the bytes of model.weights.h5 for `network`, changed by a function of the file."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group["0"] = rng.normal(size=(3, 3, 3, 2)).astype(np.float32)
        group["1"] = np.zeros(2, np.float32)
        if change is not None:
            change(file)
    return buffer.getvalue()


def archive(config, members=(), compression=zipfile.ZIP_STORED, parameters=None):
    """Return the bytes of a .keras file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        text = config if isinstance(config, (str, bytes)) else json.dumps(config)
        file.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        file.writestr("config.json", text)
        file.writestr("model.weights.h5", weights() if parameters is None else parameters)
        for name, data in members:
            file.writestr(name, data)
    return buffer.getvalue()


def legacy(config, change=None):
    """Return the bytes of a .h5 file, as Keras 2 wrote them."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        text = config if isinstance(config, (str, bytes)) else json.dumps(_without_modules(config))
        if text is not None:
            file.attrs["model_config"] = text
        file.attrs["keras_version"] = "2.13.1"
        file.attrs["backend"] = "tensorflow"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"conv"]
        group.attrs["backend"] = b"tensorflow"
        group.attrs["keras_version"] = b"2.13.1"
        own = group.create_group("conv")
        own.attrs["weight_names"] = [b"conv/kernel:0", b"conv/bias:0"]
        rng = np.random.default_rng(0)
        own["conv/kernel:0"] = rng.normal(size=(3, 3, 3, 2)).astype(np.float32)
        own["conv/bias:0"] = np.zeros(2, np.float32)
        if change is not None:
            change(file)
    return buffer.getvalue()


def _without_modules(value):
    if isinstance(value, list):
        return [_without_modules(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    dropped = ("module", "registered_name") if "class_name" in value else ()
    return {key: _without_modules(inner) for key, inner in value.items() if key not in dropped}


def good_models():
    """Return name -> bytes of models that must be let through."""
    config = network()
    half = layer("Rescaling", {"name": "half", "scale": 0.5, "offset": 0.0})
    outer = network(layer("Sequential", {"name": "inner", "layers": [half]}, "keras"))
    short = network()
    short["config"]["layers"][1]["config"] |= {
        "kernel_initializer": "he_normal",
        "kernel_regularizer": "l2",
        "bias_constraint": "NonNeg",
    }

    def packed(file):
        values = np.arange(1000, dtype=np.float32).reshape(10, 100)
        options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
        file.create_dataset("odd", data=values, chunks=(3, 64), **options)

    training = {"loss": layer("own_loss", {}, "own", "own>own_loss")}
    compiled = {**config, "compile_config": training}
    inner = layer("Sequential", {"name": "inner", "layers": [half]}, "keras")
    # Keras would build it: what is compared with names by a pattern that takes for ever as well.
    muon = {"learning_rate": 0.1, "exclude_layers": ["(a+)+b"]}
    training = {**training, "optimizer": layer("Muon", muon, "keras.optimizers")}
    inside = network({**inner, "compile_config": training})
    return {
        "good.keras": archive(config),
        "deflated.keras": archive(config, compression=zipfile.ZIP_DEFLATED),
        "compiled.keras": archive(compiled),
        "nested.keras": archive(outer),
        "compiled_inside.keras": archive(inside, compression=zipfile.ZIP_DEFLATED),
        "compiled_inside.h5": legacy(inside),
        "short.h5": legacy(short),
        "good.h5": legacy(config),
        "good.weights.h5": weights(),
        "packed.weights.h5": weights(packed),
    }


# --- bad ones ---------------------------------------------------------------------------------


def code_that_writes(path):
    """Return a function as Keras serializes one, which writes a file when it is called."""
    function = eval(f"lambda x: open({str(path)!r}, 'w').write('run') and x")
    return base64.b64encode(marshal.dumps(function.__code__)).decode()


def bad_models(folder):
    """Yield `BadModel` values; what they would write or read lies in `folder`."""
    canary = str(Path(folder) / "canary")
    secret = str(Path(folder) / "secret")
    code = code_that_writes(canary)
    function = {
        "class_name": "__lambda__",
        "config": {"code": code, "defaults": None, "closure": None},
    }
    own = layer("Lambda", {"name": "own", "function": function, "output_shape": [10, 10, 2]})
    yield from code_in_layers(own, function, code)
    yield from foreign_objects(canary)
    yield from readers_of_files(secret)
    yield from archives(canary)
    yield from hdf5(secret)
    yield from bombs()


def in_both(name, cve, config, reason):
    old = {"CVE-2024-3660": "CVE-2025-9905"}.get(cve, cve)
    yield BadModel(f"{name}.keras", cve, archive(config), reason)
    yield BadModel(f"{name}.h5", old, legacy(config), reason)


def code_in_layers(own, function, code):
    lambda_cve, scope_cve = "CVE-2024-3660", "CVE-2026-12481"
    yield from in_both("lambda", lambda_cve, network(own), r"layer 'own' holds a Lambda")
    old = {"name": "own", "function": [code, None, None], "function_type": "lambda"}
    data = legacy(network(layer("Lambda", old)))
    yield BadModel("old_lambda.h5", "CVE-2025-9905", data, "layer 'own'.*Python code")
    hidden = layer("Activation", {"name": "act", "activation": function})
    yield from in_both("lambda_activation", lambda_cve, network(hidden), "'act'.*Python code")
    wrapped = layer("TimeDistributed", {"name": "times", "layer": own})
    yield from in_both("wrapped", scope_cve, network(wrapped), "'times/own' holds a Lambda")
    inner = layer("Sequential", {"name": "inner", "layers": [own]}, "keras")
    yield from in_both("nested", scope_cve, network(inner), "'inner/own' holds a Lambda")
    deep = network()
    deep["config"]["layers"][1]["config"]["kernel_initializer"] = function
    yield from in_both("lambda_initializer", lambda_cve, deep, "layer 'conv'.*Python code")
    yield BadModel("lambda_itself.keras", lambda_cve, archive(own), "holds a Lambda")


def foreign_objects(canary):
    for cve, name, module, class_name in [
        ("CVE-2025-1550", "import", MODULE, "Canary"),
        ("CVE-2025-1550", "import_inside", f"keras.layers.{MODULE}.", "Dense"),
        ("CVE-2025-1550", "os", "os", "system"),
        ("CVE-2025-1550", "builtins", "builtins", "eval"),
        ("CVE-2025-8747", "get_file", "keras.utils", "get_file"),
        ("CVE-2024-55459", "get_file_of_source", "keras.src.utils.file_utils", "get_file"),
        ("CVE-2025-9906", "unsafe", "keras.config", "enable_unsafe_deserialization"),
        ("CVE-2025-9906", "own_module", "keras.src.saving.saving_lib", "Dense"),
        ("-", "other_package", "keras_hub.layers", "Dense"),
        ("-", "other_class", "keras.layers", "Own"),
        ("-", "operation_with_function", "keras.src.ops.core", "Map"),
    ]:
        config = {"name": "odd", "fname": canary, "origin": f"file://{canary}"}
        odd = network(layer(class_name, config, module))
        yield BadModel(
            f"{name}.keras", cve, archive(odd), rf"'odd' holds a {class_name} \({module}"
        )
    for name, module in [("run", MODULE), ("load_model", "keras.saving"), ("system", "builtins")]:
        called = layer("function", name, module, name)
        config = network(layer("Activation", {"name": "act", "activation": called}))
        data = archive(config)
        yield BadModel(f"function_{name}.keras", "CVE-2025-1550", data, f"function '{name}'")
    registered = network(layer("Dense", {"name": "odd", "units": 2}, registered="own>Dense"))
    yield BadModel("registered.keras", "-", archive(registered), "registered as 'own>Dense'")
    custom = network(layer("Swish", {"name": "odd"}, None, "own>Swish"))
    yield from in_both("custom", "-", custom, "'odd' holds a Swish")
    yield from registered_names()
    spec = {"class_name": "__typespec__", "spec_name": "Canary", "module": MODULE, "config": []}
    config = network(layer("InputLayer", {"name": "odd", "spec": spec}))
    yield BadModel("typespec.keras", "CVE-2025-1550", archive(config), "'odd'.*__typespec__")
    for class_name in ("TypeSpec", "CompositeTensor"):
        odd = layer("InputLayer", {"name": "odd", "spec": {"class_name": class_name}})
        yield BadModel(f"{class_name}.h5", "-", legacy(network(odd)), f"'odd'.*{class_name}")
    escapes = network(layer("\x1b[2J\nDense", {"name": "odd"}, "keras\x07"))
    reason = r"'odd' holds a \\x1b\[2J\\nDense \(keras\\x07"
    yield BadModel("escapes.keras", "-", archive(escapes), reason)
    function = network(layer("vectorize", {"name": "odd"}, "keras.src.ops.numpy"))
    yield BadModel("operation_is_function.keras", "-", archive(function), "'odd' holds a vectorize")
    strange = network(layer(["Dense"], {"name": "odd"}))
    yield BadModel("class_is_list.keras", "-", archive(strange), "'odd' holds a")


def registered_names():
    """What a user has registered, or a function that is no activation, by its bare name."""
    for key, value in [
        ("activation", "own>f"),
        ("activation", "deserialize"),
        ("activation", "Input"),
        ("activity_regularizer", "own>f"),
        ("kernel_constraint", "serialize"),
        ("kernel_initializer", "own"),
        ("padding", "own>f"),
    ]:
        config = network()
        config["config"]["layers"][1]["config"][key] = value
        reason = f"layer 'conv' names '{value}'"
        yield from in_both(f"{key}_{value.replace('>', '_')}", "-", config, reason)
    for class_name, key in [("TimeDistributed", "layer"), ("RNN", "cell")]:
        for value in ("own>Part", "Lambda"):
            config = network(layer(class_name, {"name": "odd", key: value}))
            name = f"{key}_{value.replace('>', '_')}"
            yield from in_both(name, "-", config, f"layer 'odd' names '{value}' as its {key}")
    policy = layer("DTypePolicy", {"name": "float32"}, "keras")
    patterns = {"default_policy": policy, "policy_map": {"conv": policy, "(.*/)?(a+)+b": policy}}
    config = network(layer("Dense", {"name": "a" * 40, "units": 2}))
    config["config"]["layers"][2]["config"]["dtype"] = layer("DTypePolicyMap", patterns, "keras")
    yield from in_both(
        "pattern", "-", config, "layer 'a+' has data types for layers by the pattern"
    )
    config = network("own>Part")
    yield from in_both("layers_own_Part", "-", config, "names 'own>Part' as its layers")


def readers_of_files(secret):
    saved = {"name": "odd", "filepath": secret, "call_endpoint": "serving_default"}
    wrapped = {"name": "times", "layer": layer("TFSMLayer", saved)}
    cve = "CVE-2026-1462"
    yield from in_both("tfsm", cve, network(layer("TFSMLayer", saved)), "odd.*TFSMLayer")
    wrapped = layer("TimeDistributed", wrapped)
    yield from in_both("tfsm_wrapped", cve, network(wrapped), "odd.*TFSMLayer")
    pickled = base64.b64encode(b"PK\x03\x04 no pickle").decode()
    torch = {"name": "odd", "module": {"class_name": "bytes", "config": pickled}}
    for class_name, cve, config in [
        ("TorchModuleWrapper", "CVE-2025-49655", torch),
        ("JaxLayer", "-", {"name": "odd"}),
        ("FlaxLayer", "-", {"name": "odd"}),
        ("StringLookup", "CVE-2025-12058", {"name": "odd", "vocabulary": secret}),
        ("IntegerLookup", "CVE-2025-12058", {"name": "odd", "vocabulary": secret}),
        ("TextVectorization", "CVE-2025-12058", {"name": "odd", "vocabulary": secret}),
    ]:
        yield from in_both(
            class_name, cve, network(layer(class_name, config)), f"odd.*{class_name}"
        )


def archives(canary):
    config = network()
    for name, member in [
        ("traversal", "../../canary"),
        ("absolute", canary),
        ("backslashes", "..\\canary"),
        ("asset", "assets/layers/string_lookup/vocabulary.txt"),
        ("arrays", "model.weights.npz"),
    ]:
        data = archive(config, [(member, b"canary")])
        yield BadModel(f"{name}.keras", "CVE-2025-12060", data, "archive holds .* besides")
    yield BadModel(
        "twice.keras", "-", archive(config, [("config.json", json.dumps(config))]), "more than once"
    )
    data = bytearray(archive(config))
    for start in _positions(data, b"PK\x01\x02"):
        data[start + 8] |= 1
    yield BadModel("encrypted.keras", "-", bytes(data), "encrypted")
    data = archive(config, compression=zipfile.ZIP_BZIP2)
    yield BadModel("bzip2.keras", "-", data, "unusual way")
    yield BadModel("weights_in_text.keras", "-", archive(config, parameters=b"no weights"), "read")


def _positions(data, mark):
    start = data.find(mark)
    while start >= 0:
        yield start
        start = data.find(mark, start + 1)


def hdf5(secret):
    def external_link(file):
        file["layers/odd"] = h5py.ExternalLink(secret, "/")

    def soft_link(file):
        file["layers/odd"] = h5py.SoftLink("/layers/conv2d")

    def external_storage(file):
        file.create_dataset("odd", (16,), "u1", external=[(secret, 0, 16)])

    def virtual(file):
        layout = h5py.VirtualLayout((2, 2), "f4")
        layout[0] = h5py.VirtualSource(secret, "x", (2,))
        file.create_virtual_dataset("odd", layout)

    def cycle(file):
        file["layers/odd"] = file["layers"]

    def compound(file):
        file.create_dataset("odd", (2,), np.dtype([("a", "f4"), ("b", "i4")]))

    def reference(file):
        file.create_dataset("odd", (1,), h5py.ref_dtype)[0] = file["layers"].ref

    def type_only(file):
        file["odd"] = np.dtype("f4")

    def plug_in(file):
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((4,))
        created.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(
            file.id, b"odd", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4,)), created
        )

    def attribute(file):
        file.attrs.create("odd", np.zeros(1, np.dtype([("a", "f4")])))

    for change, cve, reason in [
        (external_link, "CVE-2026-1669", "a link, .*odd"),
        (soft_link, "CVE-2026-1669", "a link, .*odd"),
        (external_storage, "CVE-2026-1669", "'/odd' lie in another file"),
        (virtual, "CVE-2026-1669", "'/odd' are put together from other files"),
        (cycle, "CVE-2026-12570", "linked more than once"),
        (compound, "-", "neither numbers nor text"),
        (reference, "-", "neither numbers nor text"),
        (type_only, "-", "neither a group nor an array"),
        (plug_in, "-", "plug-in number 32015"),
        (attribute, "-", "neither numbers nor text"),
        (shape_bomb, "CVE-2026-0897", "'/odd' in it claims"),
        (contiguous_bomb, "CVE-2026-12570", "'/odd' in it claims"),
        (many_bombs, "CVE-2026-12570", "in it claims"),
        (large_piece, "CVE-2026-12570", "'/odd' have pieces of .* larger than the whole"),
        (packed_twice, "CVE-2026-12570", "'/odd' are compressed in an unusual way"),
        (lying_piece, "CVE-2026-12570", "piece of its weights '/odd' unpacks to more"),
    ]:
        name = change.__name__
        data = weights(change)
        yield BadModel(f"{name}.keras", cve, archive(network(), parameters=data), reason)
        yield BadModel(f"{name}.h5", cve, legacy(network(), change_with_layers(change)), reason)
        yield BadModel(f"{name}.weights.h5", cve, data, reason, "weights")
    yield BadModel(
        "own.weights.json", "-", b'{"weight_map": {}}', "its name ends in none of", "weights"
    )


def change_with_layers(change):
    def changed(file):
        file.create_group("layers/conv2d")
        change(file)

    return changed


def looped(data):
    """Give the entries of texts in an HDF5 file no length; the library would read for ever."""
    data = bytearray(data)
    for start in _positions(data, b"GCOL"):
        end = start + int.from_bytes(data[start + 8 : start + 16], "little")
        place = start + 16
        while place + 16 <= end:
            index, _, _, n_bytes = struct.unpack_from("<HHIQ", data, place)
            if index == 0:
                data[place + 8 : place + 16] = bytes(8)
                break
            place += 16 + (n_bytes + 7) // 8 * 8
    return bytes(data)


def shape_bomb(file):
    file.create_dataset("odd", (2**20, 2**20), "f4", chunks=(64, 64), compression="gzip")


def contiguous_bomb(file):
    # Space is not set aside before something is written, so that the file stays small.
    file.create_dataset("odd", (2**40,), "f4")


def many_bombs(file):
    for i in range(8):
        file.create_dataset(f"odd{i}", (2**22,), "f4")


def large_piece(file):
    _pack(file, (2,), (2**22,), zlib.compress(bytes(2**24)))


def packed_twice(file):
    _pack(file, (2**22,), (2**22,), zlib.compress(zlib.compress(bytes(2**24))), n_times=2)


def lying_piece(file):
    _pack(file, (1024,), (1024,), zlib.compress(bytes(2**24)))


def _pack(file, shape, chunk, data, n_times=1):
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk(chunk)
    for _ in range(n_times):
        created.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (9,))
    space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,))
    odd = h5py.h5d.create(file.id, b"odd", h5py.h5t.IEEE_F32LE, space, created)
    odd.write_direct_chunk((0,), data)


def shared_text(data, n_entries, length):
    """Let all entries of a list of texts lead to the first one, which is as long as this."""
    data = bytearray(data)
    start = _reference(data, length)
    data[start : start + 16 * n_entries] = data[start : start + 16] * n_entries
    return bytes(data)


def lying_text(data, length, number):
    """Say that the text of this length, the first of its list, is 4 GB long and has this number."""
    data = bytearray(data)
    start = _reference(data, length)
    struct.pack_into("<I", data, start, 2**32 - 1)
    struct.pack_into("<I", data, start + 12, number)
    return bytes(data)


def _reference(data, length):
    """Return where the first text of a list is referred to: length, address, and the number 1."""
    (start,) = [
        p
        for p in _positions(data, struct.pack("<I", length))
        if data[p + 12 : p + 16] == b"\1\0\0\0"
    ]
    return start


def calls_of_calls(depth):
    """Return a model around models, each of which calls the one inside it twice."""
    model = network()
    for i in range(depth):
        start = layer("InputLayer", {"batch_shape": [None, 12, 12, 3], "name": "input"})
        start |= {"name": "input", "inbound_nodes": []}
        model |= {
            "name": f"model{i}",
            "inbound_nodes": [["input", 0, 0, {}], [f"model{i}", 0, 0, {}]],
        }
        config = {"name": f"model{i + 1}", "layers": [start, model]}
        model = layer("Functional", config, "keras")
    return model


def lists_of_texts(n, n_texts):
    """Return lists of texts as HDF5 files have them, each of which holds all the next."""
    body = bytearray().join(struct.pack("<HHIQ", i, 1, 0, 0) for i in range(1, n_texts + 1))
    for i in range(n):
        skip = struct.pack("<HHIQ", 1, 1, 0, 32 * (n - 1 - i))
        n_bytes = struct.pack("<Q", len(body) - 32 * i)
        body[32 * i : 32 * i + 32] = b"GCOL\1\0\0\0" + n_bytes + skip
    return bytes(body)


def texts():
    n_entries, length = 200, 500_000
    texts = [b"A" * length] + [b"b"] * (n_entries - 1)
    kind = h5py.string_dtype("ascii")

    def configuration(file):
        file.attrs.create("model_config", texts, dtype=kind)

    def layer_names(file):
        file["model_weights"].attrs.create("layer_names", texts, dtype=kind)

    def array(file):
        file.create_dataset("odd", data=np.array(texts, object), dtype=kind)

    for change in (configuration, layer_names):
        data = shared_text(legacy(network(), change), n_entries, length)
        name = f"texts_{change.__name__}.h5"
        yield BadModel(name, "CVE-2026-12570", data, "many of them the same")
    data = legacy(network(), array)
    yield BadModel("texts_array.h5", "CVE-2026-12570", data, "'/odd' are texts")
    data = legacy(network(), configuration)
    for number in (1, 7):
        lying = lying_text(data, length, number)
        yield BadModel(f"long_text_{number}.h5", "CVE-2026-12570", lying, "not where or as long as")
    for name, lists, reason in [
        ("nested_lists.keras", lists_of_texts(22, 1000), "lie inside each other"),
        ("many_texts.keras", lists_of_texts(1, 60_000) * 4, "more than 200,000 texts"),
        ("same_number.keras", lists_of_texts(1, 1000).replace(b"\7\0\1\0", b"\6\0\1\0"), "damaged"),
    ]:
        data = archive(network(), compression=zipfile.ZIP_DEFLATED, parameters=weights() + lists)
        yield BadModel(name, "CVE-2026-12570", data, reason)


def bombs():
    yield from texts()
    config = network()
    zeros = bytes(200_000_000)
    data = archive(config, compression=zipfile.ZIP_DEFLATED, parameters=zeros)
    yield BadModel("bomb.keras", "CVE-2026-12570", data, "would unpack to 200,000,000 bytes")
    spaces = json.dumps(config) + " " * 40_000_000
    data = archive(spaces, compression=zipfile.ZIP_DEFLATED)
    yield BadModel("text_bomb.keras", "CVE-2026-12570", data, "'config.json'.* would unpack")
    deep = "[" * 100_000 + "]" * 100_000
    text = json.dumps(config).replace('"filters": 2', f'"filters": {deep}')
    yield BadModel("deep.keras", "-", archive(text), "nested too deep")
    text = json.dumps(config).replace('"filters": 2', f'"filters": {"[" * 500 + "]" * 500}')
    yield BadModel("less_deep.keras", "-", archive(text), "nested too deep")
    text = json.dumps(config).replace('"filters": 2', f'"filters": [{"{}," * 300_000}2]')
    data = archive(text, compression=zipfile.ZIP_DEFLATED)
    yield BadModel("many_parts.keras", "-", data, "configuration has 300,0.. parts")
    yield BadModel("many_parts.h5", "-", legacy(text), "configuration has 300,0.. parts")
    spaces = json.dumps(config) + " " * 10_000_000
    data = archive(spaces, compression=zipfile.ZIP_DEFLATED)
    yield BadModel("packed_text.keras", "CVE-2026-12570", data, "'config.json'.* would unpack")
    yield from in_both("many_calls", "-", calls_of_calls(16), "computes its layers more than")
    data = looped(legacy(config))
    yield BadModel(
        "endless.h5", "CVE-2026-12570", data, "list of texts in the HDF5 file is damaged"
    )
    # The end of the archive tells a size of its directory that is not there.
    data = bytearray(archive(config))
    end = data.rindex(b"PK\x05\x06")
    data[end + 8 : end + 16] = struct.pack("<HHI", 65535, 65535, 2**31)
    yield BadModel("directory.keras", "-", bytes(data), "damaged or cut off")


def make_bad_models(folder):
    """Write the corpus to a folder and return the `BadModel` values in it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    models = list(bad_models(folder))
    for model in models:
        (folder / model.name).write_bytes(model.data)
    return models


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"{len(make_bad_models(sys.argv[1]))} model files written to {sys.argv[1]}")
