"""Find published weights that are already on this machine, and verify them.

Users copy weights between machines: as a Kaggle dataset, or to a folder on a cluster. Files are
found by name and verified by content.
"""

import json
import os
import stat
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sklearn_cnnfeat._files import digest_of_file
from sklearn_cnnfeat._network.file_kinds import other_kind
from sklearn_cnnfeat._network.zoo import find_architecture, list_models
from sklearn_cnnfeat._warn import warn
from sklearn_cnnfeat.exceptions import WeightsNotFoundError

# Folders, separated as in PATH.
VARIABLE = "SKLEARN_CNNFEAT_WEIGHTS"
# Where Kaggle shows the datasets that are attached to a notebook.
KAGGLE_INPUT = Path("/kaggle/input")
# Written beside packed weights: the SHA-256 of each file.
MANIFEST = "cnnfeat-weights.json"


@dataclass(frozen=True)
class Found:
    """The outcome of a search for one file."""

    # None where it is in none of the places.
    path: Path | None
    # Where it was looked for, in words.
    places: tuple[str, ...]
    # Files of that name that are something else, and why.
    refused: tuple[str, ...] = ()


def find_weights(architecture, include_top, input_size):
    """Look for the published weights of a network on this machine.

    First in Keras' folder, whose files are trusted; then in the folders of
    ``$SKLEARN_CNNFEAT_WEIGHTS`` and of Kaggle's datasets, where a file must be the published one.
    """
    kept = architecture.weights_file(include_top, input_size)
    places, refused = [str(kept.parent)], []
    if kept.is_file():
        return Found(kept, tuple(places))
    known = _places_of_files.get(kept.name)
    if known and known[0] == (*_folders(),) and known[1].is_file() and not check_weights(known[1]):
        return Found(known[1], tuple(places))
    for folder, where in _folders():
        places.append(where)
        if not folder.is_dir():
            places[-1] += ": there is no such folder"
            continue
        for path in _search(folder, {kept.name}):
            problem = check_weights(path)
            if problem is None:
                _places_of_files[kept.name] = (*_folders(),), path
                return Found(path, tuple(places), tuple(refused))
            refused.append(f"{path}: {problem}")
    if not os.environ.get(VARIABLE):
        places.append(f"folders that the environment variable {VARIABLE} names: it is not set")
    for problem in refused:
        warn(f"A weights file is not used. {problem}")
    return Found(None, tuple(places), tuple(refused))


def missing_weights(architecture, include_top, input_size, found, problem):
    """Return the error that says which file is missing, where it was looked for, and what to do."""
    path = architecture.weights_file(include_top, input_size)
    return WeightsNotFoundError(
        f"The ImageNet weights of {architecture.name!r} are not on this machine and could not "
        f"be downloaded ({problem}).\n"
        f"  file    {path.name}\n"
        f"  from    {architecture.download_url(include_top, input_size)}\n"
        f"  put in  {path.parent}\n"
        + "".join(f"  looked in  {place}\n" for place in found.places)
        + "".join(f"  refused  {reason}\n" for reason in found.refused)
        + "Download it where there is a network and put it there, or into a folder that "
        f"the environment variable {VARIABLE} names; pack_weights makes such a folder. "
        "Other choices: weights='path/to/file' for weights of your own, weights=None for "
        "random ones."
    )


def find_all_weights():
    """Return the paths of the published weights on this machine, each as `find_weights` finds it.

    Keys are a network's name and whether the weights are those with its classifier. All folders are
    gone through once.
    """
    found, missing = {}, {}
    for name in list_models():
        architecture = find_architecture(name)
        for include_top in (False, True):
            path = architecture.weights_file(include_top, (architecture.native_size,) * 2)
            if path.is_file():
                found[name, include_top] = path
            else:
                missing[path.name] = name, include_top
    for folder, _ in _folders():
        for path in _search(folder, missing):
            if path.name in missing and check_weights(path) is None:
                found[missing.pop(path.name)] = path
    return dict(sorted(found.items()))


# Files that were found, so that a search with hundreds of fits scans a dataset once.
_places_of_files = {}


def check_weights(path):
    """Return what is wrong with a file that has the name of a published one, or None."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    return _check(Path(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _check(path, _size, _modified):
    with open(path, "rb") as file:
        begin = file.read(64)
    if not begin.startswith(b"\x89HDF\r\n\x1a\n"):
        return other_kind(begin, path.suffix) or f"it is no HDF5 file, it begins with {begin[:8]!r}"
    expected = DIGESTS.get(path.name)
    if expected is not None:
        algorithm = "sha256" if len(expected) == 64 else "md5"
        found = digest_of_file(path, algorithm)
        if found != expected:
            return f"its {algorithm.upper()} is {found}, that of Keras' file {expected}"
    try:
        packed = read_manifest(path.parent).get(path.name)
    except ValueError as error:
        return str(error)
    if packed is not None and digest_of_file(str(path)) != packed["sha256"]:
        return f"its SHA-256 is not the one in {path.parent / MANIFEST}: it has changed since"
    return None


def read_manifest(folder):
    """Return the entries of a folder of packed weights by file name; none where it has none."""
    file = folder / MANIFEST
    try:
        files = json.loads(file.read_text(encoding="utf-8"))["files"]
        return {name: {"sha256": str(entry["sha256"]), **entry} for name, entry in files.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); pack the weights again"
        ) from error


def _folders():
    """Yield folders that are searched with all that is in them, and how to call them."""
    for name in os.environ.get(VARIABLE, "").split(os.pathsep):
        if name:
            yield Path(name).expanduser(), f"{name} and its folders ({VARIABLE})"
    yield KAGGLE_INPUT, f"{KAGGLE_INPUT} and its folders"


def _search(folder, names):
    """Yield files of these names, those nearest to `folder` first.

    Datasets hold a million images beside the weights: entries are looked at as they come, and
    nothing but their names.
    """
    pending, seen = deque([folder]), set()
    while pending:
        current = pending.popleft()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(current) as entries:
                inner = []
                for entry in entries:
                    if entry.name in names and entry.is_file():
                        yield Path(entry.path)
                    elif entry.is_dir():
                        inner.append(entry.path)
        except OSError:  # not for us to read
            continue
        pending.extend(sorted(inner))


# What Keras compares its downloads with: MD5, and SHA-256 where it is longer. It has none for
# MobileNet and MobileNetV2.
# fmt: off
DIGESTS = {
    "convnext_base.h5": "52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6",
    "convnext_base_notop.h5": "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
    "convnext_large.h5": "070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6",
    "convnext_large_notop.h5": "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
    "convnext_small.h5": "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
    "convnext_small_notop.h5": "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
    "convnext_tiny.h5": "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
    "convnext_tiny_notop.h5": "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    "convnext_xlarge.h5": "c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee",
    "convnext_xlarge_notop.h5": "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
    "densenet121_weights_tf_dim_ordering_tf_kernels.h5": "9d60b8095a5708f2dcce2bca79d332c7",
    "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5": "30ee3e1110167f948a6b9946edeeb738",
    "densenet169_weights_tf_dim_ordering_tf_kernels.h5": "d699b8f76981ab1b30698df4c175e90b",
    "densenet169_weights_tf_dim_ordering_tf_kernels_notop.h5": "b8c4d4c20dd625c148057b9ff1c1176b",
    "densenet201_weights_tf_dim_ordering_tf_kernels.h5": "1ceb130c1ea1b78c3bf6114dbdfd8807",
    "densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5": "c13680b51ded0fb44dff2d8f86ac8bb1",
    "efficientnetb0.h5": "902e53a9f72be733fc0bcb005b3ebbac",
    "efficientnetb0_notop.h5": "50bc09e76180e00e4465e1a485ddc09d",
    "efficientnetb1.h5": "1d254153d4ab51201f1646940f018540",
    "efficientnetb1_notop.h5": "74c4e6b3e1f6a1eea24c589628592432",
    "efficientnetb2.h5": "b15cce36ff4dcbd00b6dd88e7857a6ad",
    "efficientnetb2_notop.h5": "111f8e2ac8aa800a7a99e3239f7bfb39",
    "efficientnetb3.h5": "ffd1fdc53d0ce67064dc6a9c7960ede0",
    "efficientnetb3_notop.h5": "af6d107764bb5b1abb91932881670226",
    "efficientnetb4.h5": "18c95ad55216b8f92d7e70b3a046e2fc",
    "efficientnetb4_notop.h5": "ebc24e6d6c33eaebbd558eafbeedf1ba",
    "efficientnetb5.h5": "ace28f2a6363774853a83a0b21b9421a",
    "efficientnetb5_notop.h5": "38879255a25d3c92d5e44e04ae6cec6f",
    "efficientnetb6.h5": "165f6e37dce68623721b423839de8be5",
    "efficientnetb6_notop.h5": "9ecce42647a20130c1f39a5d4cb75743",
    "efficientnetb7.h5": "8c03f828fec3ef71311cd463b6759d99",
    "efficientnetb7_notop.h5": "cbcfe4450ddf6f3ad90b1b398090fe4a",
    "efficientnetv2-b0.h5": "21ecbf6da12460d5c40bb2f29ceb2188",
    "efficientnetv2-b0_notop.h5": "893217f2bb855e2983157299931e43ff",
    "efficientnetv2-b1.h5": "069f0534ff22adf035c89e2d9547a9dc",
    "efficientnetv2-b1_notop.h5": "0e80663031ca32d657f9caa404b6ec37",
    "efficientnetv2-b2.h5": "424e49f28180edbde1e94797771950a7",
    "efficientnetv2-b2_notop.h5": "1dfe2e7a5d45b6632553a8961ea609eb",
    "efficientnetv2-b3.h5": "1f1fc43bd98a6e4fd8fdfd551e02c7a0",
    "efficientnetv2-b3_notop.h5": "f6abf7b5849ac99a89b50dd3fd532856",
    "efficientnetv2-l.h5": "27e6d408b53c7ebc868fefa357689935",
    "efficientnetv2-l_notop.h5": "b0b66b5c863aef5b46e8608fe1711615",
    "efficientnetv2-m.h5": "a3bf6aa3276309f4fc6a34aa114c95cd",
    "efficientnetv2-m_notop.h5": "1b8dc055df72dde80d614482840fe342",
    "efficientnetv2-s.h5": "e1d88a8495beba45748fedd0cecbe016",
    "efficientnetv2-s_notop.h5": "af0682fb74e8c54910f2d4393339c070",
    "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels.h5": "e693bd0210a403b3192acc6073ad2e96",
    "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5":
        "d19885ff4a710c122648d3b5c3b684e4",
    "inception_v3_weights_tf_dim_ordering_tf_kernels.h5": "9a0d58056eeedaa3f26cb7ebd46da564",
    "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5": "bcbd6486424b2319ff4ef7d526e38f63",
    "nasnet_large.h5": "11577c9a518f0070763c2b964a382f17",
    "nasnet_large_no_top.h5": "d81d89dc07e6e56530c4e77faddd61b5",
    "nasnet_mobile.h5": "020fb642bf7360b370c678b08e0adf61",
    "nasnet_mobile_no_top.h5": "1ed92395b5b598bdda52abe5c0dbfd63",
    "resnet101_weights_tf_dim_ordering_tf_kernels.h5": "f1aeb4b969a6efcfb50fad2f0c20cfc5",
    "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5": "88cf7a10940856eca736dc7b7e228a21",
    "resnet101v2_weights_tf_dim_ordering_tf_kernels.h5": "6343647c601c52e1368623803854d971",
    "resnet101v2_weights_tf_dim_ordering_tf_kernels_notop.h5": "c0ed64b8031c3730f411d2eb4eea35b5",
    "resnet152_weights_tf_dim_ordering_tf_kernels.h5": "100835be76be38e30d865e96f2aaae62",
    "resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5": "ee4c566cf9a93f14d82f913c2dc6dd0c",
    "resnet152v2_weights_tf_dim_ordering_tf_kernels.h5": "a49b44d1979771252814e80f8ec446f9",
    "resnet152v2_weights_tf_dim_ordering_tf_kernels_notop.h5": "ed17cf2e0169df9d443503ef94b23b33",
    "resnet50_weights_tf_dim_ordering_tf_kernels.h5": "2cb95161c43110f7111970584f804107",
    "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5": "4d473c1dd8becc155b73f8504c6f6626",
    "resnet50v2_weights_tf_dim_ordering_tf_kernels.h5": "3ef43a0b657b3be2300d5770ece849e0",
    "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5": "fac2f116257151a9d068a22e544a4917",
    "vgg16_weights_tf_dim_ordering_tf_kernels.h5": "64373286793e3c8b2b4e3219cbf3544b",
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5": "6d6bbae143d832006294945121d1f1fc",
    "vgg19_weights_tf_dim_ordering_tf_kernels.h5": "cbe5617147190e668d6c5d5026f83318",
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5": "253f8cb515780f3b799900260a226db6",
    "weights_mobilenet_v3_large_224_1.0_float.h5": "59e551e166be033d707958cf9e29a6a7",
    "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5": "07fb09a5933dd0c8eaafa16978110389",
    "weights_mobilenet_v3_small_224_1.0_float.h5": "8768d4c2e7dee89b9d02b2d03d65d862",
    "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5": "d3e8ec802a04aa4fc771ee12a9a9b836",
    "xception_weights_tf_dim_ordering_tf_kernels.h5": "0a58e3b7378bc2990ea3b43d5981f1f6",
    "xception_weights_tf_dim_ordering_tf_kernels_notop.h5": "b0042744bf5b25fce3cb969f33bebb97",
}
# fmt: on
