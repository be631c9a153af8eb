"""Which layers Keras' OpenVINO backend computes as TensorFlow does: one table.

The tests compare every pair of a layer and an option with TensorFlow. What is not in the table is
left to TensorFlow, because the backend is wrong for it, fails, or was not compared:

- ``Resizing`` bicubic, Lanczos, antialiased, and with a crop or padding to the aspect ratio;
  bicubic and Lanczos ``UpSampling2D``: other kernels at the borders.
- Any dtype policy but float32: the arithmetic differs.
- Recurrent layers, ``Lambda``, custom layers, and functions between layers other than arithmetic.
"""

from sklearn_cnnfeat._network.keras_layers import functional
from sklearn_cnnfeat._network.keras_models import import_keras

_ACTIVATIONS = (
    "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear "
    "log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus "
    "softsign sparse_plus sparse_sigmoid squareplus tanh tanh_shrink"
).split()
_LAST = {"data_format": ["channels_last"]}
_PADDED = {"padding": ["valid", "same"]}
_ACTIVE = {"activation": _ACTIVATIONS}

# Options that do not appear do not matter, or may have any value.
LISTED = {
    "InputLayer": {},
    # Kernels.
    "Conv2D": _LAST | _PADDED | _ACTIVE,
    "Conv2DTranspose": _LAST | _PADDED | _ACTIVE,
    "DepthwiseConv2D": _LAST | _PADDED | _ACTIVE,
    "SeparableConv2D": _LAST | _PADDED | _ACTIVE,
    "Conv1D": _LAST | {"padding": ["valid", "same", "causal"]} | _ACTIVE,
    "Dense": _ACTIVE,
    # Activations.
    "Activation": _ACTIVE,
    "ReLU": {},
    "LeakyReLU": {},
    "PReLU": {},
    "ELU": {},
    "Softmax": {},
    # Normalizations.
    "BatchNormalization": {},
    "LayerNormalization": {"rms_scaling": [False]},
    "GroupNormalization": {},
    "UnitNormalization": {},
    "Normalization": {"invert": [False]},
    "Rescaling": {},
    # Pooling.
    "MaxPooling2D": _LAST | _PADDED,
    "AveragePooling2D": _LAST | _PADDED,
    "GlobalAveragePooling2D": _LAST,
    "GlobalMaxPooling2D": _LAST,
    "GlobalAveragePooling1D": _LAST,
    "GlobalMaxPooling1D": _LAST,
    # Shapes.
    "ZeroPadding2D": _LAST,
    "Cropping2D": _LAST,
    "CenterCrop": _LAST,
    "UpSampling2D": _LAST | {"interpolation": ["nearest", "bilinear"]},
    "Resizing": _LAST
    | {
        "interpolation": ["bilinear", "nearest"],
        "antialias": [False],
        "crop_to_aspect_ratio": [False],
        "pad_to_aspect_ratio": [False],
    },
    "Flatten": _LAST,
    "Reshape": {},
    "Permute": {},
    "RepeatVector": {},
    # Several inputs.
    "Add": {},
    "Subtract": {},
    "Multiply": {},
    "Average": {},
    "Maximum": {},
    "Minimum": {},
    "Concatenate": {},
    "MultiHeadAttention": {},
    # Layers of Keras Applications.
    "LayerScale": {},
    "CustomScaleLayer": {},
}
# Functions of `keras.ops` that stand between layers, such as the addition in ``x + 3``.
FUNCTIONS = frozenset(["Add", "Subtract", "Multiply", "Divide", "TrueDivide"])
# Layers that do something in training only.
INACTIVE = frozenset(
    (
        "ActivityRegularization AlphaDropout AugMix CutMix Dropout "
        "GaussianDropout GaussianNoise Identity MixUp RandAugment RandomBrightness "
        "RandomColorDegeneration RandomColorJitter RandomContrast "
        "RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale "
        "RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation "
        "RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom Solarization "
        "SpatialDropout1D SpatialDropout2D"
    ).split()
)


def unsupported(model):
    """Return what Keras' OpenVINO backend does not compute in `model` as TensorFlow does.

    Problems are ``path (Class)`` or ``path (Class, option=value)``; without any, the whole model
    can be converted.
    """
    return list(dict.fromkeys(_problems(model, "")))


def _problems(model, prefix):
    graph = functional(model)
    if graph is None:
        yield f"{prefix}{model.name} ({type(model).__name__})"
        return
    for operation in graph.operations:
        path = prefix + operation.name
        if hasattr(operation, "layers"):
            yield from _problems(operation, path + "/")
        else:
            yield from (f"{path} ({problem})" for problem in _problems_of(operation))


def _problems_of(operation):
    name = type(operation).__name__
    if not type(operation).__module__.startswith("keras.src."):
        yield name
    elif isinstance(operation, import_keras().Layer):
        if operation.dtype_policy.name != "float32":
            yield f"{name}, dtype={operation.dtype_policy.name!r}"
        if name in LISTED:
            yield from _problems_of_options(operation, LISTED[name])
        elif name not in INACTIVE:
            yield name
    elif name not in FUNCTIONS:
        yield name


def _problems_of_options(layer, options):
    configuration = layer.get_config()
    for option, values in options.items():
        value = configuration.get(option)
        if value not in values:
            if isinstance(value, dict):  # Keras' notation for a user-defined function
                value = value.get("config")
            yield f"{type(layer).__name__}, {option}={value!r}"
