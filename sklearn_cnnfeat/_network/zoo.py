"""The networks of Keras Applications: facts in one table.

The table is taken from Keras 3, and the tests compare it with Keras. The table lets the
package say which weights file a layer needs, and whether that file is there, before (and often
without) importing Keras.
"""

import os
import re
import tempfile
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

_STORE = "https://storage.googleapis.com/tensorflow/keras-applications/"
_OLD_STORE = "https://storage.googleapis.com/keras-applications/"


@dataclass(frozen=True)
class Architecture:
    """What is known of one network without building it."""

    name: str
    keras_name: str
    # Height and width in pixels of the images that the published weights were trained on.
    native_size: int
    # Mode of Keras' ``preprocess_input``; None where the network rescales its input itself.
    preprocessing: str | None
    # The first ``n_trunk`` layers are the same with and without the classifier on top, ...
    n_trunk: int
    # ... these follow only in the version with the top, ...
    head: tuple[str, ...]
    # ... and these follow only in the version without (ConvNeXt's own last normalization).
    tail: tuple[str, ...]
    # Published files (without top, with top) and the folder they are downloaded from.
    weights_files: tuple[str, str]
    weights_url: str
    # Where the file's name on the server differs from the one on disk.
    remote_files: tuple[str, str] | None = None
    # Sizes in pixels for which weights of their own were published, under the same name with that
    # number in place of the native size.
    sizes: tuple[int, ...] = ()
    # Keras builds the network of the published weights with one layer more, see
    # `keras_models.add_rescaling`; ``n_trunk`` does not count it.
    rescales: bool = False

    def needs_top(self, layer, weights):
        """Whether `layer` (a name or an index) lies in the version with the classifier only."""
        if isinstance(layer, str):
            return layer in self.head
        n_trunk = self.n_trunk + (self.rescales and weights is not None)
        return layer >= n_trunk or -len(self.head) <= layer < 0

    def trained_size(self, input_size):
        """Return the height and width in pixels that the weights for `input_size` are for."""
        height, width = input_size
        return height if height == width and height in self.sizes else self.native_size

    def weights_file(self, include_top, input_size):
        """Return the path where Keras keeps the published weights, there or not."""
        file = Path("models") / self._of_size(self.weights_files[include_top], input_size)
        home = keras_home()
        if home.is_dir() and not os.access(home, os.W_OK) and not (home / file).exists():
            # Keras downloads to here instead.
            home = _temporary_folder() / ".keras"
        return home / file

    def download_url(self, include_top, input_size):
        """Return the address of the published weights."""
        files = self.remote_files or self.weights_files
        return self.weights_url + self._of_size(files[include_top], input_size)

    def _of_size(self, file, input_size):
        return file.replace(f"_{self.native_size}", f"_{self.trained_size(input_size)}")


def keras_home():
    """Return the folder in which Keras keeps downloads, as Keras itself finds it."""
    chosen = os.environ.get("KERAS_HOME")
    if chosen:
        return Path(chosen).expanduser()
    home = Path("~").expanduser()
    return (home if os.access(home, os.W_OK) else Path("/tmp")) / ".keras"


def _temporary_folder():
    return Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())


@dataclass(frozen=True)
class _Family:
    """What networks have in common. Braces stand for a part of the file's name."""

    folder: str
    preprocessing: str | None
    # Names of layers, separated by blanks.
    head: str
    tail: str = ""
    files: tuple[str, str] = ("{}_notop.h5", "{}.h5")
    remote_files: tuple[str, str] | None = None
    sizes: tuple[int, ...] = ()
    rescales: bool = False


_KERNELS = tuple("{}_weights_tf_dim_ordering_tf_kernels" + end for end in ("_notop.h5", ".h5"))

_CONVNEXT = _Family(
    _STORE + "convnext/",
    None,
    "{0}_head_gap {0}_head_layernorm {0}_head_dense",
    tail="layer_normalization",
)
_DENSENET = _Family(_STORE + "densenet/", "torch", "avg_pool predictions", files=_KERNELS)
_EFFICIENT = _Family(_OLD_STORE, None, "avg_pool top_dropout predictions", rescales=True)
_EFFICIENT_V2 = _Family(_STORE + "efficientnet_v2/", None, "avg_pool top_dropout predictions")
_INCEPTION_RES = _Family(
    _STORE + "inception_resnet_v2/", "tf", "avg_pool predictions", files=_KERNELS
)
_INCEPTION = _Family(_STORE + "inception_v3/", "tf", "avg_pool predictions", files=_KERNELS)
_MOBILENET = _Family(
    _STORE + "mobilenet/",
    "tf",
    "global_average_pooling2d dropout conv_preds reshape_2 predictions",
    files=("{}_1_0_224_tf_no_top.h5", "{}_1_0_224_tf.h5"),
    sizes=(128, 160, 192, 224),
)
_MOBILENET_V2 = _Family(
    _STORE + "mobilenet_v2/",
    "tf",
    "global_average_pooling2d predictions",
    files=(
        "{}_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        "{}_weights_tf_dim_ordering_tf_kernels_1.0_224.h5",
    ),
    sizes=(96, 128, 160, 192, 224),
)
_MOBILENET_V3 = _Family(
    _STORE + "mobilenet_v3/",
    None,
    "global_average_pooling2d conv_2 activation_20 dropout logits flatten predictions",
    files=("weights_{}_224_1.0_float_no_top_v2.h5", "weights_{}_224_1.0_float.h5"),
)
_MOBILENET_V3_S = replace(
    _MOBILENET_V3, head=_MOBILENET_V3.head.replace("activation_20", "activation_18")
)
_NASNET = _Family(
    _STORE + "nasnet/",
    "tf",
    "global_average_pooling2d predictions",
    files=("nasnet_{}_no_top.h5", "nasnet_{}.h5"),
    remote_files=("NASNet-{}-no-top.h5", "NASNet-{}.h5"),
)
_RESNET = _Family(_STORE + "resnet/", "caffe", "avg_pool predictions", files=_KERNELS)
_RESNET_V2 = replace(_RESNET, preprocessing="tf")
_VGG16 = _Family(_STORE + "vgg16/", "caffe", "flatten fc1 fc2 predictions", files=_KERNELS)
_VGG19 = replace(_VGG16, folder=_STORE + "vgg19/")
_XCEPTION = _Family(_STORE + "xception/", "tf", "avg_pool predictions", files=_KERNELS)

# fmt: off
_TABLE = (
    # name, class in Keras, family, part of the file's name, native size, layers of the trunk
    ("convnext_base",       "ConvNeXtBase",      _CONVNEXT,      "convnext_base",       224,  258),
    ("convnext_large",      "ConvNeXtLarge",     _CONVNEXT,      "convnext_large",      224,  258),
    ("convnext_small",      "ConvNeXtSmall",     _CONVNEXT,      "convnext_small",      224,  258),
    ("convnext_tiny",       "ConvNeXtTiny",      _CONVNEXT,      "convnext_tiny",       224,  132),
    ("convnext_xlarge",     "ConvNeXtXLarge",    _CONVNEXT,      "convnext_xlarge",     224,  258),
    ("densenet121",         "DenseNet121",       _DENSENET,      "densenet121",         224,  427),
    ("densenet169",         "DenseNet169",       _DENSENET,      "densenet169",         224,  595),
    ("densenet201",         "DenseNet201",       _DENSENET,      "densenet201",         224,  707),
    ("efficientnet_b0",     "EfficientNetB0",    _EFFICIENT,     "efficientnetb0",      224,  237),
    ("efficientnet_b1",     "EfficientNetB1",    _EFFICIENT,     "efficientnetb1",      240,  339),
    ("efficientnet_b2",     "EfficientNetB2",    _EFFICIENT,     "efficientnetb2",      260,  339),
    ("efficientnet_b3",     "EfficientNetB3",    _EFFICIENT,     "efficientnetb3",      300,  384),
    ("efficientnet_b4",     "EfficientNetB4",    _EFFICIENT,     "efficientnetb4",      380,  474),
    ("efficientnet_b5",     "EfficientNetB5",    _EFFICIENT,     "efficientnetb5",      456,  576),
    ("efficientnet_b6",     "EfficientNetB6",    _EFFICIENT,     "efficientnetb6",      528,  666),
    ("efficientnet_b7",     "EfficientNetB7",    _EFFICIENT,     "efficientnetb7",      600,  813),
    ("efficientnet_v2_b0",  "EfficientNetV2B0",  _EFFICIENT_V2,  "efficientnetv2-b0",   224,  270),
    ("efficientnet_v2_b1",  "EfficientNetV2B1",  _EFFICIENT_V2,  "efficientnetv2-b1",   240,  334),
    ("efficientnet_v2_b2",  "EfficientNetV2B2",  _EFFICIENT_V2,  "efficientnetv2-b2",   260,  349),
    ("efficientnet_v2_b3",  "EfficientNetV2B3",  _EFFICIENT_V2,  "efficientnetv2-b3",   300,  409),
    ("efficientnet_v2_l",   "EfficientNetV2L",   _EFFICIENT_V2,  "efficientnetv2-l",    480, 1028),
    ("efficientnet_v2_m",   "EfficientNetV2M",   _EFFICIENT_V2,  "efficientnetv2-m",    480,  740),
    ("efficientnet_v2_s",   "EfficientNetV2S",   _EFFICIENT_V2,  "efficientnetv2-s",    384,  513),
    ("inception_resnet_v2", "InceptionResNetV2", _INCEPTION_RES, "inception_resnet_v2", 299,  780),
    ("inception_v3",        "InceptionV3",       _INCEPTION,     "inception_v3",        299,  311),
    ("mobilenet",           "MobileNet",         _MOBILENET,     "mobilenet",           224,   86),
    ("mobilenet_v2",        "MobileNetV2",       _MOBILENET_V2,  "mobilenet_v2",        224,  154),
    ("mobilenet_v3_large",  "MobileNetV3Large",  _MOBILENET_V3,  "mobilenet_v3_large",  224,  187),
    ("mobilenet_v3_small",  "MobileNetV3Small",  _MOBILENET_V3_S,"mobilenet_v3_small",  224,  157),
    ("nasnet_large",        "NASNetLarge",       _NASNET,        "large",               331, 1039),
    ("nasnet_mobile",       "NASNetMobile",      _NASNET,        "mobile",              224,  769),
    ("resnet101",           "ResNet101",         _RESNET,        "resnet101",           224,  345),
    ("resnet101_v2",        "ResNet101V2",       _RESNET_V2,     "resnet101v2",         224,  377),
    ("resnet152",           "ResNet152",         _RESNET,        "resnet152",           224,  515),
    ("resnet152_v2",        "ResNet152V2",       _RESNET_V2,     "resnet152v2",         224,  564),
    ("resnet50",            "ResNet50",          _RESNET,        "resnet50",            224,  175),
    ("resnet50_v2",         "ResNet50V2",        _RESNET_V2,     "resnet50v2",          224,  190),
    ("vgg16",               "VGG16",             _VGG16,         "vgg16",               224,   19),
    ("vgg19",               "VGG19",             _VGG19,         "vgg19",               224,   22),
    ("xception",            "Xception",          _XCEPTION,      "xception",            299,  132),
)
# fmt: on


def _architecture(name, keras_name, family, stem, native_size, n_trunk):
    def fill(templates):
        return templates and tuple(template.format(stem) for template in templates)

    return Architecture(
        name=name,
        keras_name=keras_name,
        native_size=native_size,
        preprocessing=family.preprocessing,
        n_trunk=n_trunk,
        head=fill(family.head.split()),
        tail=tuple(family.tail.split()),
        weights_files=fill(family.files),
        weights_url=family.folder,
        remote_files=fill(family.remote_files),
        sizes=family.sizes,
        rescales=family.rescales,
    )


_ARCHITECTURES = {name: _architecture(name, *facts) for name, *facts in _TABLE}


def _spelling(name):
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_SPELLING = {_spelling(name): name for name in _ARCHITECTURES}


def find_architecture(name):
    """Return the `Architecture` called `name`, or None.

    Case, underscores and hyphens do not count: ``"ResNet50V2"`` is ``"resnet50_v2"``.
    """
    return _ARCHITECTURES.get(_BY_SPELLING.get(_spelling(name)))


def list_models(pattern=None):
    """List the networks that are known by name.

    Parameters
    ----------
    pattern : str, default=None
        Shell-style pattern (``*``, ``?``, ``[...]``), matched without regard to case. None lists
        all. A pattern that begins with ``"timm/"`` lists timm's networks with the tags of their
        weights, where timm is installed.

    Returns
    -------
    names : list of str
        Names to be used as ``CNNFeatureTransformer(model=...)``, in alphabetical order.

    See Also
    --------
    layer_summary : The layers of a network.

    References
    ----------
    `Keras Applications <https://keras.io/api/applications/>`_, where the papers of all the
    networks are listed.

    Examples
    --------
    >>> from sklearn_cnnfeat import list_models
    >>> list_models("vgg*")
    ['vgg16', 'vgg19']
    >>> list_models("mobilenet_v3*")
    ['mobilenet_v3_large', 'mobilenet_v3_small']
    """
    if pattern is not None and pattern.startswith("timm/"):
        # Needed for these only: the command line's help imports nothing of weight.
        from sklearn_cnnfeat._network.timm_models import list_timm_models

        return list_timm_models(pattern)
    names = sorted(_ARCHITECTURES)
    if pattern is None:
        return names
    return [name for name in names if fnmatchcase(name, pattern.lower())]
