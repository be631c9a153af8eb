"""Recognize model files of other kinds and of other Keras versions, and say what to do."""

import re

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ARCHIVE = b"PK\x03\x04"
_LFS = b"version https://git-lfs"
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def other_kind(begin, suffix):
    """Return what a file is that does not begin as its suffix says, and what to do; else None.

    `begin` holds its first bytes, 32 or more; `suffix` is what its name ends with.
    """
    if begin.startswith(_LFS):
        return (
            "it is a Git LFS pointer, a few lines of text in place of the model: 'git lfs pull' in "
            "its repository fetches the file itself"
        )
    if begin.startswith(_HDF5) and suffix == ".keras":
        return "it is an HDF5 file with the suffix of an archive: rename it to end with .h5"
    if begin.startswith(_ARCHIVE) and suffix != ".keras":
        return (
            "it is a .keras archive or another ZIP file with the suffix of an HDF5 file: if Keras "
            "wrote it, rename it to end with .keras"
        )
    if _PAGE.match(begin):
        return "it is a web page, probably saved in place of the file: download the file itself"
    return None


def version_advice(saved_by, current):
    """Return a sentence on a file that this Keras cannot load, by the version that saved it."""
    if _numbers(saved_by) > _numbers(current):
        return (
            f"It was saved by Keras {saved_by}, and this is Keras {current}: pip install --upgrade "
            "keras may help."
        )
    if _numbers(saved_by) >= (3,):
        return (
            f"It was saved by Keras {saved_by}, and this is Keras {current}: in an environment "
            f"with pip install keras=={saved_by}, load it and save it again as .h5, or export it "
            "to ONNX with model.export(..., format='onnx')."
        )
    return (
        f"It was saved by Keras {saved_by}, and Keras {current} reads only part of what Keras 2 "
        "wrote: in an environment with pip install tf_keras tf2onnx, load it with "
        "tf_keras.models.load_model and convert it to ONNX with tf2onnx, or build the network in "
        "Keras 3 and load only its weights."
    )


def _numbers(version):
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
