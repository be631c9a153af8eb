"""The networks of Keras Applications: facts in one table.

Everything here was read off Keras 3 and is compared with it by the tests. The table lets the
package say which weights file a layer needs, and whether that file is there, before (and often
without) importing Keras.
"""

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

_STORE = "https://storage.googleapis.com/tensorflow/keras-applications/"
_OLD_STORE = "https://storage.googleapis.com/keras-applications/"
_TF_KERNELS = "_weights_tf_dim_ordering_tf_kernels"


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

    @property
    def n_layers(self):
        """Number of layers of the whole network, classifier included: the range of indices."""
        return self.n_trunk + len(self.head)

    def needs_top(self, layer):
        """Whether `layer` (a name or an index) lies in the version with the classifier only."""
        if isinstance(layer, str):
            return layer in self.head
        return layer >= self.n_trunk or -len(self.head) <= layer < 0

    def weights_file(self, include_top, input_size):
        """Return the path where Keras keeps the published weights, there or not."""
        return keras_home() / "models" / self._of_size(self.weights_files[include_top], input_size)

    def download_url(self, include_top, input_size):
        """Return the address of the published weights."""
        files = self.remote_files or self.weights_files
        return self.weights_url + self._of_size(files[include_top], input_size)

    def _of_size(self, file, input_size):
        height, width = input_size
        if height == width and height in self.sizes:
            return file.replace(f"_{self.native_size}", f"_{height}")
        return file


def keras_home():
    """Return the folder in which Keras keeps downloads, as Keras itself finds it."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def _architecture(
    name, keras_name, size, preprocessing, n_trunk, head, folder, stem=None, files=None, **more
):
    if files is None:
        stem = stem if stem is not None else name + _TF_KERNELS
        files = (f"{stem}_notop.h5", f"{stem}.h5")
    return Architecture(
        name=name,
        keras_name=keras_name,
        native_size=size,
        preprocessing=preprocessing,
        n_trunk=n_trunk,
        head=head,
        tail=more.pop("tail", ()),
        weights_files=files,
        weights_url=more.pop("store", _STORE) + folder,
        **more,
    )


_POOL_PREDICT = ("avg_pool", "predictions")
_POOL_DROP_PREDICT = ("avg_pool", "top_dropout", "predictions")
_UNNAMED_POOL_PREDICT = ("global_average_pooling2d", "predictions")
_VGG_HEAD = ("flatten", "fc1", "fc2", "predictions")
_MOBILENET_HEAD = ("global_average_pooling2d", "dropout", "conv_preds", "reshape_2", "predictions")


def _mobilenet_v3_head(activation):
    return (
        "global_average_pooling2d",
        "conv_2",
        activation,
        "dropout",
        "logits",
        "flatten",
        "predictions",
    )


_ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        _architecture(
            "convnext_base",
            "ConvNeXtBase",
            224,
            None,
            258,
            ("convnext_base_head_gap", "convnext_base_head_layernorm", "convnext_base_head_dense"),
            "convnext/",
            stem="convnext_base",
            tail=("layer_normalization",),
        ),
        _architecture(
            "convnext_large",
            "ConvNeXtLarge",
            224,
            None,
            258,
            (
                "convnext_large_head_gap",
                "convnext_large_head_layernorm",
                "convnext_large_head_dense",
            ),
            "convnext/",
            stem="convnext_large",
            tail=("layer_normalization",),
        ),
        _architecture(
            "convnext_small",
            "ConvNeXtSmall",
            224,
            None,
            258,
            (
                "convnext_small_head_gap",
                "convnext_small_head_layernorm",
                "convnext_small_head_dense",
            ),
            "convnext/",
            stem="convnext_small",
            tail=("layer_normalization",),
        ),
        _architecture(
            "convnext_tiny",
            "ConvNeXtTiny",
            224,
            None,
            132,
            ("convnext_tiny_head_gap", "convnext_tiny_head_layernorm", "convnext_tiny_head_dense"),
            "convnext/",
            stem="convnext_tiny",
            tail=("layer_normalization",),
        ),
        _architecture(
            "convnext_xlarge",
            "ConvNeXtXLarge",
            224,
            None,
            258,
            (
                "convnext_xlarge_head_gap",
                "convnext_xlarge_head_layernorm",
                "convnext_xlarge_head_dense",
            ),
            "convnext/",
            stem="convnext_xlarge",
            tail=("layer_normalization",),
        ),
        _architecture("densenet121", "DenseNet121", 224, "torch", 427, _POOL_PREDICT, "densenet/"),
        _architecture("densenet169", "DenseNet169", 224, "torch", 595, _POOL_PREDICT, "densenet/"),
        _architecture("densenet201", "DenseNet201", 224, "torch", 707, _POOL_PREDICT, "densenet/"),
        _architecture(
            "efficientnet_b0",
            "EfficientNetB0",
            224,
            None,
            237,
            _POOL_DROP_PREDICT,
            "",
            store=_OLD_STORE,
            stem="efficientnetb0",
        ),
        _architecture(
            "efficientnet_b1",
            "EfficientNetB1",
            240,
            None,
            339,
            _POOL_DROP_PREDICT,
            "",
            store=_OLD_STORE,
            stem="efficientnetb1",
        ),
        _architecture(
            "efficientnet_b2",
            "EfficientNetB2",
            260,
            None,
            339,
            _POOL_DROP_PREDICT,
            "",
            store=_OLD_STORE,
            stem="efficientnetb2",
        ),
        _architecture(
            "efficientnet_b3",
            "EfficientNetB3",
            300,
            None,
            384,
            _POOL_DROP_PREDICT,
            "",
            store=_OLD_STORE,
            stem="efficientnetb3",
        ),
        _architecture(
            "efficientnet_b4",
            "EfficientNetB4",
            380,
            None,
            474,
            _POOL_DROP_PREDICT,
            "",
            store=_OLD_STORE,
            stem="efficientnetb4",
        ),
        _architecture(
            "efficientnet_b5",
            "EfficientNetB5",
            456,
            None,
            576,
            _POOL_DROP_PREDICT,
            "",
            store=_OLD_STORE,
            stem="efficientnetb5",
        ),
        _architecture(
            "efficientnet_b6",
            "EfficientNetB6",
            528,
            None,
            666,
            _POOL_DROP_PREDICT,
            "",
            store=_OLD_STORE,
            stem="efficientnetb6",
        ),
        _architecture(
            "efficientnet_b7",
            "EfficientNetB7",
            600,
            None,
            813,
            _POOL_DROP_PREDICT,
            "",
            store=_OLD_STORE,
            stem="efficientnetb7",
        ),
        _architecture(
            "efficientnet_v2_b0",
            "EfficientNetV2B0",
            224,
            None,
            270,
            _POOL_DROP_PREDICT,
            "efficientnet_v2/",
            stem="efficientnetv2-b0",
        ),
        _architecture(
            "efficientnet_v2_b1",
            "EfficientNetV2B1",
            240,
            None,
            334,
            _POOL_DROP_PREDICT,
            "efficientnet_v2/",
            stem="efficientnetv2-b1",
        ),
        _architecture(
            "efficientnet_v2_b2",
            "EfficientNetV2B2",
            260,
            None,
            349,
            _POOL_DROP_PREDICT,
            "efficientnet_v2/",
            stem="efficientnetv2-b2",
        ),
        _architecture(
            "efficientnet_v2_b3",
            "EfficientNetV2B3",
            300,
            None,
            409,
            _POOL_DROP_PREDICT,
            "efficientnet_v2/",
            stem="efficientnetv2-b3",
        ),
        _architecture(
            "efficientnet_v2_l",
            "EfficientNetV2L",
            480,
            None,
            1028,
            _POOL_DROP_PREDICT,
            "efficientnet_v2/",
            stem="efficientnetv2-l",
        ),
        _architecture(
            "efficientnet_v2_m",
            "EfficientNetV2M",
            480,
            None,
            740,
            _POOL_DROP_PREDICT,
            "efficientnet_v2/",
            stem="efficientnetv2-m",
        ),
        _architecture(
            "efficientnet_v2_s",
            "EfficientNetV2S",
            384,
            None,
            513,
            _POOL_DROP_PREDICT,
            "efficientnet_v2/",
            stem="efficientnetv2-s",
        ),
        _architecture(
            "inception_resnet_v2",
            "InceptionResNetV2",
            299,
            "tf",
            780,
            _POOL_PREDICT,
            "inception_resnet_v2/",
        ),
        _architecture(
            "inception_v3", "InceptionV3", 299, "tf", 311, _POOL_PREDICT, "inception_v3/"
        ),
        _architecture(
            "mobilenet",
            "MobileNet",
            224,
            "tf",
            86,
            _MOBILENET_HEAD,
            "mobilenet/",
            files=("mobilenet_1_0_224_tf_no_top.h5", "mobilenet_1_0_224_tf.h5"),
            sizes=(128, 160, 192, 224),
        ),
        _architecture(
            "mobilenet_v2",
            "MobileNetV2",
            224,
            "tf",
            154,
            _UNNAMED_POOL_PREDICT,
            "mobilenet_v2/",
            files=(
                "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
                "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5",
            ),
            sizes=(96, 128, 160, 192, 224),
        ),
        _architecture(
            "mobilenet_v3_large",
            "MobileNetV3Large",
            224,
            None,
            187,
            _mobilenet_v3_head("activation_20"),
            "mobilenet_v3/",
            files=(
                "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
                "weights_mobilenet_v3_large_224_1.0_float.h5",
            ),
        ),
        _architecture(
            "mobilenet_v3_small",
            "MobileNetV3Small",
            224,
            None,
            157,
            _mobilenet_v3_head("activation_18"),
            "mobilenet_v3/",
            files=(
                "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
                "weights_mobilenet_v3_small_224_1.0_float.h5",
            ),
        ),
        _architecture(
            "nasnet_large",
            "NASNetLarge",
            331,
            "tf",
            1039,
            _UNNAMED_POOL_PREDICT,
            "nasnet/",
            files=("nasnet_large_no_top.h5", "nasnet_large.h5"),
            remote_files=("NASNet-large-no-top.h5", "NASNet-large.h5"),
        ),
        _architecture(
            "nasnet_mobile",
            "NASNetMobile",
            224,
            "tf",
            769,
            _UNNAMED_POOL_PREDICT,
            "nasnet/",
            files=("nasnet_mobile_no_top.h5", "nasnet_mobile.h5"),
            remote_files=("NASNet-mobile-no-top.h5", "NASNet-mobile.h5"),
        ),
        _architecture("resnet101", "ResNet101", 224, "caffe", 345, _POOL_PREDICT, "resnet/"),
        _architecture(
            "resnet101_v2",
            "ResNet101V2",
            224,
            "tf",
            377,
            _POOL_PREDICT,
            "resnet/",
            stem="resnet101v2" + _TF_KERNELS,
        ),
        _architecture("resnet152", "ResNet152", 224, "caffe", 515, _POOL_PREDICT, "resnet/"),
        _architecture(
            "resnet152_v2",
            "ResNet152V2",
            224,
            "tf",
            564,
            _POOL_PREDICT,
            "resnet/",
            stem="resnet152v2" + _TF_KERNELS,
        ),
        _architecture("resnet50", "ResNet50", 224, "caffe", 175, _POOL_PREDICT, "resnet/"),
        _architecture(
            "resnet50_v2",
            "ResNet50V2",
            224,
            "tf",
            190,
            _POOL_PREDICT,
            "resnet/",
            stem="resnet50v2" + _TF_KERNELS,
        ),
        _architecture("vgg16", "VGG16", 224, "caffe", 19, _VGG_HEAD, "vgg16/"),
        _architecture("vgg19", "VGG19", 224, "caffe", 22, _VGG_HEAD, "vgg19/"),
        _architecture("xception", "Xception", 299, "tf", 132, _POOL_PREDICT, "xception/"),
    )
}


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
        all.

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
    names = sorted(_ARCHITECTURES)
    if pattern is None:
        return names
    return [name for name in names if fnmatchcase(name, pattern.lower())]
