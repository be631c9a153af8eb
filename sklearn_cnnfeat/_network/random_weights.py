"""Random weights that are the same on every backend: drawn by one generator of NumPy's.

Each variable gets the distribution that its layer's initializer names. Keras' own draws depend on
the backend and its version.
"""

import math

import numpy as np

# The standard deviation of a normal distribution that is cut off at two of them.
_TRUNCATED = 0.87962566103423978


def draw(model, seed):
    """Fill a model with random weights.

    Parameters
    ----------
    model : keras.Model
        Built. Variables whose layer names no random initializer keep their values.
    seed : int
        The same numbers for the same seed, on every backend.
    """
    generator = np.random.Generator(np.random.SFC64(seed))
    owners = {
        id(variable): layer for layer in model._flatten_layers() for variable in layer.weights
    }
    for variable in model.weights:
        initializer = _initializer(owners[id(variable)], variable.name)
        values = _values(generator, initializer, tuple(variable.shape))
        if values is not None:
            variable.assign(values)


def _initializer(layer, name):
    """Return the initializer of a layer's variable; None where the layer does not name one."""
    if hasattr(layer, f"{name}_initializer"):
        return getattr(layer, f"{name}_initializer")
    # Of a separable convolution; a depthwise one calls its kernel just "kernel".
    kind = "pointwise" if name == "pointwise_kernel" else "depthwise"
    return getattr(layer, f"{kind}_initializer", None) if name.endswith("kernel") else None


def _values(generator, initializer, shape):
    """Return what an initializer of Keras stands for; None where it is not a random one."""
    kinds = {kind.__name__ for kind in type(initializer).__mro__}
    if "VarianceScaling" in kinds:
        return _scaled(generator, initializer, shape)
    if "RandomUniform" in kinds:
        low, high = initializer.minval, initializer.maxval
        return low + (high - low) * generator.random(shape, np.float32)
    if "TruncatedNormal" in kinds:
        return initializer.mean + initializer.stddev * _truncated_normal(generator, shape)
    if "RandomNormal" in kinds:
        values = generator.standard_normal(shape, np.float32)
        return initializer.mean + initializer.stddev * values
    return None


def _scaled(generator, initializer, shape):
    fan_in, fan_out = _fans(shape)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    variance = initializer.scale / max(1.0, fan[initializer.mode])
    if initializer.distribution == "uniform":
        limit = np.float32(math.sqrt(3 * variance))
        values = generator.random(shape, np.float32)
        values *= 2 * limit
        values -= limit
        return values
    if initializer.distribution == "untruncated_normal":
        return np.float32(math.sqrt(variance)) * generator.standard_normal(shape, np.float32)
    return np.float32(math.sqrt(variance) / _TRUNCATED) * _truncated_normal(generator, shape)


def _truncated_normal(generator, shape):
    """Draw from a normal distribution, again where a number is beyond two deviations."""
    values = generator.standard_normal(shape, np.float32)
    while (beyond := np.abs(values) > 2).any():
        values[beyond] = generator.standard_normal(int(beyond.sum()), np.float32)
    return values


def _fans(shape):
    """Return the numbers of inputs and of outputs of a kernel, as Keras counts them."""
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field
