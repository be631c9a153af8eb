"""One folder for a machine without internet: published weights, and the wheels that it lacks."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from urllib.parse import unquote, urlsplit

import sklearn_cnnfeat
from sklearn_cnnfeat._files import (
    check_readme,
    copy_whole,
    digest_of_file,
    remove_unfinished,
    write_whole,
)
from sklearn_cnnfeat._weights import copy_weights, locate_weights

_DISTRIBUTION = "sklearn-cnnfeat"
_LISTS = Path(__file__).parent / "targets"
_CHECKSUMS = "SHA256SUMS"
# What a packed folder holds before its README is written.
_PARTS = {"wheels", "weights", "install_cell.py", _CHECKSUMS}
# The tags of wheels, by the second half of a target such as "cp312-manylinux".
_PLATFORMS = {
    "manylinux": tuple(
        f"{name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
    ),
    "macos": ("macosx_14_0_arm64", "macosx_13_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64"),
    "windows": ("win_amd64",),
}
# What markers of requirements say there: pip says what they are on the machine that it runs on.
_MARKERS = {
    "manylinux": ("linux", "Linux", "posix", "x86_64"),
    "macos": ("darwin", "Darwin", "posix", "arm64"),
    "windows": ("win32", "Windows", "nt", "AMD64"),
}
_MARKER_NAMES = ("sys_platform", "platform_system", "os_name", "platform_machine")

INSTALL_CELL = """\
# Installs from the attached dataset, without internet, or else from the package index.
from glob import glob

folders = ["/kaggle/input/*", "/kaggle/input/datasets/*/*", "/kaggle/input/competitions/*"]
wheels = [path for folder in folders for path in glob(f"{folder}/wheels/sklearn_cnnfeat-*.whl")]
source = f"--no-index --find-links {wheels[0].rpartition('/')[0]}" if wheels else ""
!pip install --quiet {source} sklearn-cnnfeat
"""

_TITLE = "# sklearn-cnnfeat without internet\n"
_README = """
Made by `cnnfeat pack` for {target}. Upload this folder as a Kaggle dataset, attach it to a
notebook, and begin the notebook with this cell, which is also in `install_cell.py`:

```python
{cell}```

Elsewhere, type `pip install --no-index --find-links wheels sklearn-cnnfeat` in this folder, and set
the environment variable `SKLEARN_CNNFEAT_WEIGHTS` to it.

`wheels/` holds what {target} lacks, `weights/` the published weights, which are found
automatically on Kaggle. `sha256sum --check SHA256SUMS` checks all files. A folder without
`SHA256SUMS` is not complete: run `cnnfeat pack` again.

| file | MB |
| --- | --- |
{table}
"""


@dataclass(frozen=True)
class Target:
    """A kind of machine that wheels are chosen for."""

    # In words.
    name: str
    # Such as "3.12"; None for the Python that runs this.
    python: str | None = None
    # "manylinux", "macos" or "windows"; None for this machine.
    platform: str | None = None
    # What is installed there already: versions by name.
    installed: dict = field(default_factory=dict)

    @property
    def markers(self):
        """Return what markers of requirements say there, where it may differ from here."""
        if self.python is None:
            return {}
        versions = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        return dict(zip(_MARKER_NAMES, _MARKERS[self.platform], strict=True)) | versions


def image_names():
    """Return the names of the notebook images whose installed packages are listed here."""
    return sorted(path.stem for path in _LISTS.glob("*.txt"))


def find_target(name=None):
    """Return the target that a name stands for; None stands for machines like this one.

    Names are ``kaggle``, ``colab``, and a Python with a platform, such as ``cp312-manylinux``.
    """
    if name is None:
        return Target("machines like the one that made it")
    if name in image_names():
        text = (_LISTS / f"{name}.txt").read_text(encoding="utf-8")
        installed = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.M))
        python = re.search(r"Python (\d+\.\d+)", text)[1]
        return Target(name.capitalize(), python, "manylinux", installed)
    known = re.fullmatch(rf"cp3(\d+)-({'|'.join(_PLATFORMS)})", name)
    if known is None:
        raise ValueError(
            f"target={name!r} is neither {' nor '.join(image_names())} nor a Python and a platform "
            f"such as cp312-manylinux; platforms are {', '.join(_PLATFORMS)}."
        )
    return Target(name, f"3.{known[1]}", known[2])


def pack(folder, models, target=None, *, classifier=False, input_size=None):
    """Write a folder with weights, wheels, checksums, an install cell and a README.

    The checksums are written last, and removed before anything changes: a folder that has them is
    complete. Return one dictionary per file: its name in the folder, its bytes and its SHA-256.
    """
    folder, target = Path(folder), find_target(target)
    _check_folder(folder)
    weights = locate_weights(list(models), classifier, input_size)
    with TemporaryDirectory(prefix="cnnfeat-") as temporary:
        wheels = _fetch_wheels(target, Path(temporary))
        (folder / "wheels").mkdir(parents=True, exist_ok=True)
        (folder / _CHECKSUMS).unlink(missing_ok=True)
        _put_wheels(wheels, folder / "wheels")
    copy_weights(weights, folder / "weights")
    for part in (folder, folder / "wheels", folder / "weights"):
        remove_unfinished(part)
    paths = sorted(path for part in ("wheels", "weights") for path in (folder / part).iterdir())
    rows = [
        {
            "file": path.relative_to(folder).as_posix(),
            "n_bytes": path.stat().st_size,
            "sha256": digest_of_file(str(path)),
        }
        for path in paths
    ]
    _describe(folder, target, rows)
    return rows


def _check_folder(folder):
    """Refuse a folder that cannot be written to, or whose README and wheels are not of a pack."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written to", str(existing))
    check_readme(folder, _TITLE)
    if existing != folder or (folder / "README.md").exists():
        return
    remove_unfinished(folder)
    others = sorted(path.name for path in folder.iterdir() if path.name not in _PARTS)
    if others and (folder / "wheels").exists():
        raise FileExistsError(
            errno.EEXIST,
            f"not a folder of cnnfeat pack: it holds {others[0]!r} beside wheels, which would be "
            "replaced. Name a new folder",
            str(folder),
        )


def _describe(folder, target, rows):
    table = "\n".join(f"| `{row['file']}` | {row['n_bytes'] / 1e6:.1f} |" for row in rows)
    texts = {
        "install_cell.py": INSTALL_CELL,
        "README.md": _TITLE + _README.format(target=target.name, cell=INSTALL_CELL, table=table),
        _CHECKSUMS: "".join(f"{row['sha256']}  {row['file']}\n" for row in rows),
    }
    for name, text in texts.items():
        write_whole(folder / name, [text.encode()])


# --- wheels ---------------------------------------------------------------------------------------


def _fetch_wheels(target, folder):
    """Return the paths of the wheels that a target lacks, and of this package's, in a folder."""
    own = _own_wheel(folder)
    wanted = _resolve(own, target, folder)
    wheels = folder / "wheels"
    wheels.mkdir()
    if wanted:
        _pip("download", "--no-deps", *_tags(target), "--dest", wheels, *wanted)
    return [own, *sorted(wheels.iterdir())]


def _put_wheels(wheels, folder):
    """Copy wheels into a folder; those of earlier calls go."""
    for old in folder.glob("*.whl"):
        old.unlink()
    for wheel in wheels:
        copy_whole(wheel, folder / wheel.name)


def _own_wheel(folder):
    """Return a wheel of this package: built from its checkout, or from the package index."""
    checkout = Path(sklearn_cnnfeat.__file__).parents[1]
    is_checkout = (checkout / "pyproject.toml").is_file()
    source = str(checkout) if is_checkout else f"{_DISTRIBUTION}=={sklearn_cnnfeat.__version__}"
    _pip("wheel", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _resolve(own, target, folder):
    """Return the addresses of what this package needs and the target does not hold."""
    (distribution,) = distributions(path=[str(own)])
    _check_python(distribution.metadata["Requires-Python"], target)
    needs = _applying(distribution.requires, target)
    constraints, report = folder / "constraints.txt", folder / "report.json"
    constraints.write_text("\n".join(_constraints(needs, target.installed)), encoding="utf-8")
    wanted = list(needs.values())
    while True:
        _pip(
            *("install", "--dry-run", "--ignore-installed", "--report", report),
            *(*_tags(target), "--target", folder / "nowhere"),
            *("--constraint", constraints, *wanted),
        )
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
        missing = _missing(items, target)
        if not missing:
            break
        wanted += missing
    addresses = []
    for item in items:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if target.installed.get(_normal(name)) != version:
            addresses.append(item["download_info"]["url"])
    return sorted(addresses, key=lambda address: unquote(urlsplit(address).path.rpartition("/")[2]))


def _check_python(required, target):
    from packaging.specifiers import SpecifierSet

    if target.python and not SpecifierSet(required or "").contains(f"{target.python}.0"):
        raise ValueError(
            f"target={target.name!r} has Python {target.python}; {_DISTRIBUTION} needs {required}."
        )


def _applying(lines, target, extras=()):
    """Return the requirements that apply on a target, without their markers, by name."""
    from packaging.requirements import Requirement

    found = {}
    there = [target.markers | {"extra": extra} for extra in ("", *extras)]
    for line in lines or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate(values) for values in there):
            found[_normal(requirement.name)] = Requirement(line.partition(";")[0])
    return found


def _missing(items, target):
    """Return requirements of packages in a report of pip that apply on the target only."""
    chosen = {_normal(item["metadata"]["name"]) for item in items}
    missing = {}
    for item in items:
        lines, extras = item["metadata"].get("requires_dist"), item.get("requested_extras", ())
        missing.update(_applying(lines, target, extras))
    return [requirement for name, requirement in missing.items() if name not in chosen]


def _constraints(needs, installed):
    """Return pins of what is installed, except what this package needs in another version."""
    return [
        f"{name}=={version}"
        for name, version in installed.items()
        if name not in needs or needs[name].specifier.contains(version, prereleases=True)
    ]


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _tags(target):
    if target.python is None:
        return ["--only-binary", ":all:"]
    platforms = [part for tag in _PLATFORMS[target.platform] for part in ("--platform", tag)]
    return [*("--only-binary", ":all:", "--python-version", target.python), *platforms]


def _pip(*arguments):
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(
        [*command, "--quiet", "--disable-pip-version-check"], capture_output=True, text=True
    )
    if done.returncode:
        message = done.stderr.strip() or done.stdout.strip()
        if f"[Errno {errno.ENOSPC}]" in message:
            raise OSError(
                errno.ENOSPC,
                f"pip {arguments[0]} failed: the disk of {gettempdir()!r} is full. Make space "
                "there, or name another folder for temporary files with TMPDIR",
            )
        errors = [line for line in message.splitlines() if line.startswith("ERROR: ")]
        message = "\n".join(errors) or message
        raise RuntimeError(
            f"pip {arguments[0]} failed: {message}\n"
            "Packing needs pip and the package index: run it where there is internet. If the index "
            "was reached, it has no wheel of that package for the target."
        )
