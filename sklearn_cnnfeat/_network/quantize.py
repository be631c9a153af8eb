"""Post-training quantization to 8-bit integers: the only module that imports NNCF."""

import contextlib
import io
import logging

from sklearn_cnnfeat._network.identities import fold_constants
from sklearn_cnnfeat._network.runtime import without_telemetry


def quantize(network, batches):
    """Return `network` with convolutions and products on 8 bits, the rest on float32.

    The pixels in `batches` show which values occur. The method is that of R. Krishnamoorthi,
    "Quantizing deep convolutional networks for efficient inference",
    https://arxiv.org/abs/1806.08342.
    """
    nncf = _import_nncf()
    network = network.clone()
    shape = network.inputs[0].partial_shape
    shape[0] = 1
    network.reshape(shape)
    # NNCF leaves kernels that the graph transposes or scales; OpenVINO would compute in float32.
    fold_constants(network)
    # NNCF's messages and progress bars are about internals; this package has its own.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            network,
            nncf.Dataset(batches),
            # Symmetric weights, asymmetric activations: better for all but plain ReLU networks.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
        )


def _import_nncf():
    try:
        with without_telemetry():
            import nncf
    except ImportError as error:
        raise ImportError(
            "precision='int8' needs NNCF, which makes the 8-bit network: pip install "
            "'sklearn-cnnfeat[int8]'."
        ) from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf
