"""Layers with options, computed by Keras on one backend. Run by `test_keras_openvino`.

``keras_cases.py tensorflow FOLDER`` builds a small model for each case, with random weights, and
saves weights and numbers. ``keras_cases.py openvino FOLDER`` loads the weights into the same
models, converts them and saves its own numbers.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

IMAGE, WIDE, VECTOR, TOKENS = (9, 10, 4), (8, 8, 8), (12,), (7, 6)


def cases():
    """Return {name: (shape of the input, function from the input to the output)}."""
    import keras
    from keras import layers as L
    from keras.src.applications.convnext import LayerScale
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    found = {}

    def add(name, layer, shape=IMAGE):
        found[name] = shape, layer

    for padding in ("valid", "same"):
        for strides in (1, 2):
            same = {"padding": padding, "strides": strides}
            key = f"{padding}-{strides}"
            add(f"Conv2D-{key}", L.Conv2D(6, 3, **same))
            add(f"Conv2D-even-{key}", L.Conv2D(6, (2, 4), **same))
            add(f"Conv2D-groups-{key}", L.Conv2D(6, 3, groups=2, **same))
            add(f"DepthwiseConv2D-{key}", L.DepthwiseConv2D(3, depth_multiplier=2, **same))
            add(f"SeparableConv2D-{key}", L.SeparableConv2D(6, 3, depth_multiplier=2, **same))
            add(f"Conv2DTranspose-{key}", L.Conv2DTranspose(5, 3, **same))
            add(f"Conv2DTranspose-even-{key}", L.Conv2DTranspose(5, (2, 4), **same))
            add(f"MaxPooling2D-{key}", L.MaxPooling2D(3, **same))
            add(f"AveragePooling2D-{key}", L.AveragePooling2D(3, **same))
            add(f"AveragePooling2D-even-{key}", L.AveragePooling2D((2, 4), **same))
            add(f"Conv1D-{key}", L.Conv1D(5, 3, **same), TOKENS)
        add(f"Conv2D-dilated-{padding}", L.Conv2D(6, 3, dilation_rate=2, padding=padding))
        add(f"Conv2D-uneven-{padding}", L.Conv2D(6, 3, strides=(1, 2), padding=padding))
        add(
            f"DepthwiseConv2D-dilated-{padding}",
            L.DepthwiseConv2D(3, dilation_rate=2, padding=padding),
        )
        add(
            f"SeparableConv2D-dilated-{padding}",
            L.SeparableConv2D(6, 3, dilation_rate=2, padding=padding),
        )
        add(f"Conv1D-dilated-{padding}", L.Conv1D(5, 3, dilation_rate=2, padding=padding), TOKENS)
    add("Conv1D-causal", L.Conv1D(5, 3, padding="causal"), TOKENS)
    add("Conv2D-no-bias", L.Conv2D(6, 3, use_bias=False))
    add("Conv2DTranspose-output_padding", L.Conv2DTranspose(5, 3, 2, output_padding=1))
    add("Dense-vector", L.Dense(5), VECTOR)
    add("Dense-tokens", L.Dense(5), TOKENS)
    add("Dense-maps", L.Dense(5))
    for name in (
        "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear "
        "log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus "
        "softsign sparse_plus sparse_sigmoid squareplus tanh tanh_shrink"
    ).split():
        add(f"Activation-{name}", L.Activation(name))
        for kind in (L.Dense, L.Conv2D, L.Conv2DTranspose, L.SeparableConv2D):
            arguments = (5,) if kind is L.Dense else (5, 3)
            add(f"{kind.__name__}-{name}", kind(*arguments, activation=name))
        add(f"DepthwiseConv2D-{name}", L.DepthwiseConv2D(3, activation=name))
        add(f"Conv1D-{name}", L.Conv1D(5, 3, activation=name), TOKENS)
    add("ReLU", L.ReLU())
    add("ReLU-6", L.ReLU(6.0))
    add("ReLU-all", L.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2))
    add("LeakyReLU", L.LeakyReLU(0.1))
    add("PReLU", L.PReLU())
    add("PReLU-shared", L.PReLU(shared_axes=[1, 2]))
    add("ELU", L.ELU(0.7))
    add("Softmax", L.Softmax())
    add("Softmax-axis", L.Softmax(axis=1))
    add("Softmax-axes", L.Softmax(axis=[1, 2]))
    add("BatchNormalization", L.BatchNormalization())
    add("BatchNormalization-bare", L.BatchNormalization(center=False, scale=False))
    add("BatchNormalization-axis", L.BatchNormalization(axis=1, epsilon=1e-2))
    add("BatchNormalization-vector", L.BatchNormalization(), VECTOR)
    add("BatchNormalization-tokens", L.BatchNormalization(), TOKENS)
    add("LayerNormalization", L.LayerNormalization())
    add("LayerNormalization-bare", L.LayerNormalization(center=False, scale=False, epsilon=1e-6))
    add("LayerNormalization-axes", L.LayerNormalization(axis=[1, 3]))
    add("LayerNormalization-tokens", L.LayerNormalization(), TOKENS)
    add("LayerNormalization-vector", L.LayerNormalization(), VECTOR)
    add("GroupNormalization", L.GroupNormalization(2))
    add("GroupNormalization-instance", L.GroupNormalization(-1), WIDE)
    add("GroupNormalization-bare", L.GroupNormalization(4, center=False, scale=False), WIDE)
    add("GroupNormalization-axis", L.GroupNormalization(3, axis=1))
    add("UnitNormalization", L.UnitNormalization())
    add("UnitNormalization-axis", L.UnitNormalization(axis=1))
    add("Normalization", L.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1, 2, 3, 4]))
    add("Normalization-scalar", L.Normalization(axis=None, mean=0.5, variance=2.0))
    add("Rescaling", L.Rescaling(1 / 127.5, offset=-1))
    add("Rescaling-channels", L.Rescaling([1.0, 2.0, 3.0, 4.0], offset=[0.1, 0.2, 0.3, 0.4]))
    for kind in (L.GlobalAveragePooling2D, L.GlobalMaxPooling2D):
        add(kind.__name__, kind())
        add(f"{kind.__name__}-keepdims", kind(keepdims=True))
    for kind in (L.GlobalAveragePooling1D, L.GlobalMaxPooling1D):
        add(kind.__name__, kind(), TOKENS)
        add(f"{kind.__name__}-keepdims", kind(keepdims=True), TOKENS)
    add("ZeroPadding2D", L.ZeroPadding2D(((1, 2), (0, 3))))
    add("Cropping2D", L.Cropping2D(((1, 2), (0, 3))))
    add("CenterCrop", L.CenterCrop(4, 7))
    add("CenterCrop-larger", L.CenterCrop(12, 14))
    for interpolation in ("nearest", "bilinear"):
        add(f"UpSampling2D-{interpolation}", L.UpSampling2D((2, 3), interpolation=interpolation))
        for size in ((4, 5), (9, 10), (15, 13), (5, 20)):
            add(
                f"Resizing-{interpolation}-{size[0]}x{size[1]}",
                L.Resizing(*size, interpolation=interpolation),
            )
    add("Flatten", L.Flatten())
    add("Reshape", L.Reshape((-1, 8)))
    add("Permute", L.Permute((3, 1, 2)))
    add("RepeatVector", L.RepeatVector(3), VECTOR)
    for kind in (L.Add, L.Multiply, L.Average, L.Maximum, L.Minimum, L.Concatenate):
        add(kind.__name__, lambda x, kind=kind: kind()([x, L.ReLU()(x), L.Rescaling(0.3)(x)]))
    add("Subtract", lambda x: L.Subtract()([x, L.ReLU()(x)]))
    add("Concatenate-axis", lambda x: L.Concatenate(axis=1)([x, L.ReLU()(x)]))
    add("Multiply-broadcast", lambda x: L.Multiply()([x, L.GlobalMaxPooling2D(keepdims=True)(x)]))
    add("MultiHeadAttention", lambda x: L.MultiHeadAttention(2, 3)(x, x), TOKENS)
    add(
        "MultiHeadAttention-cross",
        lambda x: L.MultiHeadAttention(2, 3, value_dim=5)(x, L.Conv1D(4, 3)(x)),
        TOKENS,
    )
    add("LayerScale", LayerScale(0.5, 4))
    add("CustomScaleLayer", lambda x: CustomScaleLayer(0.3)([x, L.ReLU()(x)]))
    add(
        "functions",
        lambda x: L.Identity()(keras.ops.divide(x + 3.0, 6.0) * 0.3 - x / 2.0 + (1.0 - x)),
    )
    for kind, arguments in {
        L.Identity: (),
        L.Dropout: (0.5,),
        L.SpatialDropout2D: (0.5,),
        L.GaussianDropout: (0.5,),
        L.GaussianNoise: (0.5,),
        L.AlphaDropout: (0.5,),
        L.ActivityRegularization: (0.1,),
    }.items():
        add(kind.__name__, kind(*arguments))
    add("SpatialDropout1D", L.SpatialDropout1D(0.5), TOKENS)
    for name, arguments in AUGMENTATIONS.items():
        add(name, getattr(L, name)(*arguments), (8, 8, 3))
    return found


# They take pixels, and change nothing where they are inactive.
AUGMENTATIONS = {
    "RandomBrightness": (0.2,),
    "RandomColorDegeneration": (0.2,),
    "RandomColorJitter": (),
    "RandomContrast": (0.2,),
    "RandomErasing": (),
    "RandomFlip": (),
    "RandomGaussianBlur": (),
    "RandomGrayscale": (),
    "RandomHue": (0.2,),
    "RandomInvert": (),
    "RandomPerspective": (),
    "RandomPosterization": (4,),
    "RandomRotation": (0.2,),
    "RandomSaturation": (0.2,),
    "RandomSharpness": (0.2,),
    "RandomShear": (0.2, 0.2),
    "RandomTranslation": (0.2, 0.2),
    "RandomZoom": (0.2,),
    "AugMix": (),
    "CutMix": (),
    "MixUp": (),
    "RandomElasticTransform": (),
    "RandAugment": (),
    "Solarization": (),
}


def numbers(shape):
    """Return a batch of two inputs: pixels for augmentations, small numbers for the rest."""
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    return np.abs(x * 60) % 256 if shape == (8, 8, 3) else x


def build(shape, layer):
    import keras

    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def set_weights(model):
    """Draw weights between -0.5 and 0.5, and variances between 0.5 and 1.5."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "seed" in variable.path:
            continue
        values = generator.uniform(-0.5, 0.5, variable.shape)
        positive = "variance" in variable.path or "gamma" in variable.path
        variable.assign((values + positive).astype(np.float32))


def run_tensorflow(folder):
    for name, (shape, layer) in cases().items():
        model = build(shape, layer)
        if model.weights:
            set_weights(model)
            model.save_weights(folder / f"{name}.weights.h5")
        found = model(numbers(shape), training=False).numpy()
        np.save(folder / f"{name}.tensorflow.npy", found)


def run_openvino(folder):
    from sklearn_cnnfeat._network.runtime import import_openvino

    core = import_openvino().Core()
    from sklearn_cnnfeat._network.keras_openvino_layers import unsupported

    described = {}
    for name, (shape, layer) in cases().items():
        model = build(shape, layer)
        weights = folder / f"{name}.weights.h5"
        if weights.exists():
            model.load_weights(weights)
        described[name] = {"problems": unsupported(model), "pairs": list(pairs(model))}
        np.save(folder / f"{name}.openvino.npy", compute(core, model, numbers(shape)))
    (folder / "cases.json").write_text(json.dumps(described))
    problems = {name: unsupported(model) for name, model in unlisted().items()}
    (folder / "unlisted.json").write_text(json.dumps(problems))


def pairs(model):
    """Return (class, option, value) of what a model is made of."""
    from sklearn_cnnfeat._network.keras_openvino_layers import LISTED

    for operation in model.operations:
        name = type(operation).__name__
        yield name, None, None
        for option in LISTED.get(name, ()) if hasattr(operation, "get_config") else ():
            yield name, option, operation.get_config().get(option)


def unlisted():
    """Return models that are left to TensorFlow, by what is wrong with them."""
    import keras
    from keras import layers as L

    class Own(L.Layer):
        def call(self, x):
            return x

    class Dense(L.Dense):
        """A layer with the name of one of Keras' own."""

    class Whole(keras.Model):
        def call(self, x):
            return x

    def tripled(x):
        return 3 * x

    whole = Whole(name="whole")
    whole(np.zeros((1, *IMAGE), np.float32))
    crop = {"crop_to_aspect_ratio": True}
    lanczos = L.Resizing(4, 4, interpolation="lanczos3", name="resizing")
    return {
        "bicubic": build(IMAGE, L.Resizing(4, 4, interpolation="bicubic", name="resizing")),
        "antialiased": build(IMAGE, L.Resizing(4, 4, antialias=True, name="resizing")),
        "cropped": build(IMAGE, L.Resizing(4, 4, name="resizing", **crop)),
        "mixed": build(IMAGE, L.Conv2D(2, 3, dtype="mixed_bfloat16", name="conv")),
        "lambda": build(IMAGE, L.Lambda(lambda x: 2 * x, name="twice")),
        "custom": build(IMAGE, Own(name="own")),
        "same-name": build(IMAGE, Dense(3, name="dense")),
        "function": build(IMAGE, lambda x: L.Identity()(keras.ops.tanh(x))),
        "activation": build(IMAGE, L.Conv2D(2, 3, activation=tripled, name="conv")),
        "recurrent": build(TOKENS, L.LSTM(3, name="lstm")),
        "inner": build(IMAGE, keras.Sequential([keras.Input(IMAGE), lanczos], name="inner")),
        "subclass": whole,
    }


def compute(core, model, x):
    """Convert a model whose input may have any shape, and run it in float32."""
    import openvino
    import openvino.opset15 as ops

    from sklearn_cnnfeat._network.keras_openvino import trace

    pixels = ops.parameter([-1, *x.shape[1:]], np.float32)
    *_, (_, output) = trace(model, pixels.output(0))
    graph = openvino.Model([ops.result(output)], [pixels])
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return core.compile_model(graph, "CPU", exact)({0: x})[0]


if __name__ == "__main__":
    backend, folder = sys.argv[1], Path(sys.argv[2])
    os.environ["KERAS_BACKEND"] = backend
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    {"tensorflow": run_tensorflow, "openvino": run_openvino}[backend](folder)
