"""The networks that benchmarks compute, their weights, and the decoding that contenders share."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from _common import WORK, count_cores, installed

# Photographs from which batch normalization has its statistics.
N_STATISTICS = 8


@dataclass(frozen=True)
class Network:
    """A network under the names that the packages know it by."""

    name: str
    keras: str
    # Module of keras.applications that holds its `preprocess_input`.
    module: str
    # Name in timm; None where it is not there.
    timm: str | None
    # Known to img2vec_pytorch under this name; None where it is not, or is another network there.
    img2vec: str | None = None
    size: int = 224


NETWORKS = {
    network.name: network
    for network in (
        Network("vgg16", "VGG16", "vgg16", "vgg16"),
        Network("vgg19", "VGG19", "vgg19", "vgg19"),
        Network("resnet50", "ResNet50", "resnet", "resnet50", "resnet50"),
        Network("mobilenet_v2", "MobileNetV2", "mobilenet_v2", "mobilenetv2_100"),
        Network("mobilenet_v3_small", "MobileNetV3Small", "mobilenet_v3", "mobilenetv3_small_100"),
        Network(
            "efficientnet_b0",
            "EfficientNetB0",
            "efficientnet",
            "efficientnet_b0",
            "efficientnet_b0",
        ),
        Network(
            "efficientnet_v2_b0", "EfficientNetV2B0", "efficientnet_v2", "tf_efficientnetv2_b0"
        ),
        Network("densenet121", "DenseNet121", "densenet", "densenet121", "densenet121"),
        Network("inception_v3", "InceptionV3", "inception_v3", "inception_v3", size=299),
        Network("convnext_tiny", "ConvNeXtTiny", "convnext", "convnext_tiny"),
        Network("mobilenet", "MobileNet", "mobilenet", "mobilenetv1_100"),
        Network("nasnet_mobile", "NASNetMobile", "nasnet", None),
    )
}


def add_networks(parser, default):
    """Add the option that says which networks."""
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=list(NETWORKS),
        default=default,
        metavar="NAME",
        help="which",
    )


# --- files that several contenders share ----------------------------------------------------------


def weights_file(network):
    """Return the path of the random weights that all contenders with Keras' networks use."""
    return WORK / "weights" / f"{network.name}-keras{installed('keras')}.weights.h5"


def make_weights(network, paths):
    """Make the random weights if they are not there yet.

    Batch normalization gets the statistics of a few photographs. Without them numbers shrink from
    layer to layer until they are denormal, with which processors take many times as long.
    """
    if weights_file(network).exists():
        return
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = build_base(network, None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    pixels = np.stack([decode(path, network.size) for path in paths[:N_STATISTICS]])
    model(preprocess_input(network)(pixels.astype(np.float32)), training=True)
    write_whole(weights_file(network), model.save_weights)


def write_whole(path, write):
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    write(str(temporary))
    temporary.rename(path)


# --- Keras ----------------------------------------------------------------------------------------


def build_base(network, weights):
    """Return the network without its classifier."""
    import keras

    model = getattr(keras.applications, network.keras)(
        weights=None, include_top=False, input_shape=(network.size, network.size, 3)
    )
    if weights is not None:
        model.load_weights(weights)
    return model


def build_keras(network):
    """Return the network with the weights that all share, averaged over all positions.

    ``pooling="avg"`` would be another network with ConvNeXt, whose last layer would come after it.
    """
    import keras

    base = build_base(network, weights_file(network))
    return keras.Model(base.inputs, keras.layers.GlobalAveragePooling2D()(base.outputs[0]))


def preprocess_input(network):
    """Return Keras' preprocessing of the network."""
    import keras

    return getattr(keras.applications, network.module).preprocess_input


def freeze(network):
    """Return preprocessing and network as one TensorFlow function with constants for weights."""
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    model = build_keras(network)
    prepare = preprocess_input(network)
    signature = tf.TensorSpec((None, network.size, network.size, 3), tf.uint8)

    def rows(pixels):
        return model(prepare(keras.ops.cast(pixels, "float32")), training=False)

    return convert_variables_to_constants_v2(tf.compat.v1.wrap_function(rows, [signature]))


def gelu(features, approximate=False):
    """Return what `tf.nn.gelu` does, without the function that tf2onnx lacks."""
    import tensorflow as tf

    if approximate:
        raise NotImplementedError("none of the networks asks for the approximation")
    return 0.5 * features * (1 + tf.math.erf(features / 2**0.5))


# --- decoding ahead -------------------------------------------------------------------------------


def decode(path, size):
    """Read, decode and resize a file as `keras.utils.load_img` does, to uint8."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def decoded_batches(paths, size, batch):
    """Yield batches of decoded images, decoded by as many threads as there are cores."""
    import numpy as np

    waiting = deque()
    paths = iter(paths)
    with ThreadPoolExecutor(count_cores()) as pool:
        # One batch is being decoded while another is being computed.
        waiting.extend(pool.submit(decode, path, size) for path in islice(paths, 2 * batch))
        while waiting:
            pixels = [waiting.popleft().result() for _ in range(min(batch, len(waiting)))]
            waiting.extend(pool.submit(decode, path, size) for path in islice(paths, batch))
            yield np.stack(pixels)
