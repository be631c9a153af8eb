"""What the configuration of a model may name: classes of Keras that compute, and nothing else."""

import json
import re

from sklearn_cnnfeat._network.refusals import MOST_OBJECTS, MOST_TEXT, Refused, show

_DEEPEST = 100
# At most so many layers are computed in one pass; layers of models inside count once per call. No
# network of Keras Applications has more than 1,100.
_MOST_CALLS = 20_000

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
# Short names of parts, such as "he_normal", and Keras' other names for some of them.
_SHORT = {name.lower() for name in _PARTS} | {"normal", "one", "uniform", "zero"}
_CLASSES = _MODELS | _LAYERS | _PARTS
# Modules of Keras with these classes. Operations ("x * 2" in a Functional model) are too many to
# list. All operations in the modules below only compute; those that take functions are elsewhere.
_ROOMS = (
    "activations constraints dtype_policies initializers layers models quantizers random "
    "regularizers"
).split()
# Modules of these classes in Keras 2. Keras 3 does not find them there, and imports nothing else.
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


def parse_config(text):
    if not isinstance(text, bytes):
        raise ValueError("its configuration is no text.")
    if len(text) > MOST_TEXT:
        raise Refused(f"its configuration is {len(text):,} bytes long")
    # An empty one is two bytes of text and sixty of memory. That of the largest network has 20,000.
    n_containers = text.count(b"{") + text.count(b"[")
    if n_containers > MOST_OBJECTS:
        raise Refused(f"its configuration has {n_containers:,} parts")
    try:
        return json.loads(text)
    except RecursionError:
        raise Refused("its configuration is nested too deep") from None


def inspect_config(config):
    """Raise unless all in a configuration is harmless; return it if something was taken out."""
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ValueError("its configuration describes no network.")
    if config["class_name"] not in _MODELS:
        _check_class(config, "")
        raise Refused(
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
            raise Refused("its configuration is nested too deep")
        if isinstance(value, dict):
            is_changed |= value.pop("compile_config", None) is not None
            if "class_name" in value:
                where = _describe(value, where) if depth else ""
                _check_class(value, where)
                nodes = value.get("inbound_nodes")
                calls *= max(len(nodes), 1) if isinstance(nodes, list) else 1
                n_calls += calls if value["class_name"] not in _NOT_LAYERS else 0
                if n_calls > _MOST_CALLS:
                    raise Refused(f"it computes its layers more than {_MOST_CALLS:,} times")
            for key, inner in value.items():
                _check_entry(key, inner, where)
                pending.append((inner, where, depth + 1, calls))
        elif isinstance(value, list):
            pending.extend((inner, where, depth + 1, calls) for inner in value)
        elif isinstance(value, str) and ">" in value and not _is_equation(value):
            raise Refused(f"{_subject(where)} names {value[:100]!r}, {_REASONS['registered']}")
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
            raise Refused(
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
        raise Refused(
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
    raise Refused(f"{_subject(where)} holds a {show(class_name)} ({full}), {reason}")


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
