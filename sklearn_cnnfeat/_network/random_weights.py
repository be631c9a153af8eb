"""Random weights for a network: the same on every backend of Keras.

Keras' own initializers give other numbers on each backend. Here one generator draws all weights in
their order, from the distributions that the layers' initializers describe.
"""

import math

import numpy as np

# Standard deviation of a standard normal distribution that is truncated at two deviations.
_TRUNCATED_DEVIATION = 0.87962566103423978
# How layers call the initializers of variables, where that is not "<variable>_initializer".
_INITIALIZERS = {
    "kernel": "depthwise_initializer",
    "depthwise_kernel": "depthwise_initializer",
    "pointwise_kernel": "pointwise_initializer",
}
# Of variables whose layer does not say how they begin.
_FIRST_VALUES = {"mean": 0.0, "moving_mean": 0.0, "variance": 1.0, "moving_variance": 1.0}
_FIRST_VALUES |= {"gamma": 1.0, "beta": 0.0, "bias": 0.0, "count": 0.0}


def draw(model, seed):
    """Replace all weights of a built model by random ones, of a seed or different ones each time.

    On the OpenVINO backend, its variables need not have values yet.
    """
    generator = np.random.Generator(np.random.SFC64(seed))
    initializers = _initializers(model)
    for variable in model.weights:
        if "float" in str(variable.dtype):
            initializer = initializers.get(id(variable))
            variable.assign(_draw_values(generator, variable, initializer))


def _initializers(model):
    """Return the initializers of variables by their ids, as far as layers have them."""
    found, pending, seen = {}, [model], set()
    while pending:
        layer = pending.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        for variable in layer.weights:
            initializer = getattr(layer, f"{variable.name}_initializer", None)
            if initializer is None:
                initializer = getattr(layer, _INITIALIZERS.get(variable.name, ""), None)
            if initializer is not None:
                found.setdefault(id(variable), initializer)
            elif variable.name == "gamma" and hasattr(layer, "init_values"):
                found.setdefault(id(variable), layer.init_values)
        pending.extend(value for value in vars(layer).values() if _is_layer(value))
        pending.extend(getattr(layer, "layers", ()))
    return found


def _is_layer(value):
    import keras

    return isinstance(value, keras.Layer)


def _draw_values(generator, variable, initializer):
    import keras

    known = keras.initializers
    shape = tuple(variable.shape)
    if initializer is None and variable.name in _FIRST_VALUES:
        initializer = _FIRST_VALUES[variable.name]
    if isinstance(initializer, int | float):
        return np.full(shape, initializer, np.float32)
    if isinstance(initializer, known.Zeros):
        return np.zeros(shape, np.float32)
    if isinstance(initializer, known.Ones):
        return np.ones(shape, np.float32)
    if isinstance(initializer, known.Constant):
        return np.broadcast_to(np.asarray(initializer.value, np.float32), shape)
    if isinstance(initializer, known.RandomUniform):
        return _uniform(generator, shape, initializer.minval, initializer.maxval)
    if isinstance(initializer, known.RandomNormal):
        return _normal(generator, shape, initializer.mean, initializer.stddev)
    if isinstance(initializer, known.TruncatedNormal):
        return _truncated(generator, shape, initializer.mean, initializer.stddev)
    if not isinstance(initializer, known.VarianceScaling):
        initializer = known.HeNormal()
    return _scaled(generator, shape, initializer)


def _scaled(generator, shape, initializer):
    """Draw from a distribution whose variance depends on the number of inputs and outputs."""
    fan_in, fan_out = _fans(shape)
    n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[initializer.mode]
    deviation = math.sqrt(initializer.scale / max(1.0, n))
    if initializer.distribution == "uniform":
        limit = math.sqrt(3) * deviation
        return _uniform(generator, shape, -limit, limit)
    if initializer.distribution == "untruncated_normal":
        return _normal(generator, shape, 0.0, deviation)
    return _truncated(generator, shape, 0.0, deviation / _TRUNCATED_DEVIATION)


def _fans(shape):
    """Return the number of inputs and of outputs of a unit, as Keras counts them."""
    if len(shape) < 2:
        n = math.prod(shape)
        return n, n
    positions = math.prod(shape[:-2])
    return positions * shape[-2], positions * shape[-1]


def _uniform(generator, shape, low, high):
    values = generator.random(shape, np.float32)
    values *= np.float32(high - low)
    values += np.float32(low)
    return values


def _normal(generator, shape, mean, deviation):
    values = generator.standard_normal(shape, np.float32)
    values *= np.float32(deviation)
    values += np.float32(mean)
    return values


def _truncated(generator, shape, mean, deviation):
    """Draw from a normal distribution; redraw numbers beyond two deviations."""
    values = generator.standard_normal(math.prod(shape), np.float32)
    beyond = np.flatnonzero(np.abs(values) > 2)
    while beyond.size:
        values[beyond] = generator.standard_normal(beyond.size, np.float32)
        beyond = beyond[np.abs(values[beyond]) > 2]
    values *= np.float32(deviation)
    values += np.float32(mean)
    return values.reshape(shape)
