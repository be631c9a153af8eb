"""Install the package into one environment of several kinds, and run its tests there.

    python tools/versions.py kaggle | colab | lowest | newest | no-tensorflow

- ``kaggle``, ``colab``: what these notebook images hold, from the dated lists in
  ``sklearn_cnnfeat/_cli/targets``; it is an error if installing the package changes any of it but
  Keras.
- ``lowest``: the versions behind each ``>=`` of ``pyproject.toml``.
- ``newest``: whatever pip finds.
- ``no-tensorflow``: the two documented lines that leave TensorFlow out.

It prints what the installation changed and how much disk the environment takes, then runs the fast
tests and one notebook. What follows ``--`` goes to pytest instead. ``--folder`` keeps the
environment, ``--python`` names the interpreter, ``--install-only`` runs no tests.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ROOT / "sklearn_cnnfeat" / "_cli" / "targets"
IMAGES = ("kaggle", "colab")
# Tools: what they do does not depend on our users' environments.
NEWEST_ALWAYS = {"ruff", "setuptools", "setuptools-scm", "build", "twine", "check-wheel-contents"}
# What installing the package into a notebook image may change; itself where `--folder` has it.
MAY_CHANGE = {"keras", "sklearn-cnnfeat"}
# Users' machines may have no compiler. (Some tools of the tests are source archives.)
WHEELS = ("--only-binary", ":all:")
NOTEBOOK = ["-m", "", "-n", "0", "tests", "-k", "test_competition and not photographs"]


def declared(extra="test"):
    """Return the requirements of the package and of an extra, extras of our own resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, found = project["optional-dependencies"], list(project["dependencies"])
    pending, seen = [extra], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        for line in extras[current]:
            own = re.match(r"sklearn-cnnfeat\[([\w,]+)\]", line)
            if own:
                pending += own[1].split(",")
            else:
                found.append(line)
    return found


def lowest(requirements):
    """Return the requirements with the lowest version of each in place of the range."""
    from packaging.requirements import Requirement

    pinned = {}
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        if requirement.name in NEWEST_ALWAYS:
            pinned[requirement.name] = str(requirement)
            continue
        (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        pinned[requirement.name] = f"{requirement.name}{extras}=={bound}"
    return sorted(pinned.values())


class Environment:
    """A virtual environment in a folder."""

    def __init__(self, folder, python):
        self.folder = Path(folder)
        scripts = "Scripts" if sys.platform == "win32" else "bin"
        self.python = self.folder / scripts / "python"
        if not self.python.exists():
            subprocess.run([python, "-m", "venv", folder], check=True)
            # Resolvers of earlier versions try hundreds of combinations beside an image's pins.
            self.install("--upgrade", "pip")

    def run(self, *arguments, check=True):
        """Run this environment's Python in the root of the repository."""
        return subprocess.run([self.python, *map(str, arguments)], cwd=ROOT, check=check)

    def install(self, *arguments):
        """Install with pip."""
        self.run("-m", "pip", "install", "--quiet", *arguments)

    def packages(self):
        """Return what is installed: versions by name."""
        listed = subprocess.check_output([self.python, "-m", "pip", "list", "--format", "json"])
        return {entry["name"].lower(): entry["version"] for entry in json.loads(listed)}

    def size(self):
        """Return the bytes of all its files."""
        files = (path for path in self.folder.rglob("*") if not path.is_symlink())
        return sum(path.stat().st_size for path in files if path.is_file())


def find_python(which):
    """Return the interpreter of a notebook image's list, or the one that runs this."""
    if which not in IMAGES:
        return sys.executable
    text = (TARGETS / f"{which}.txt").read_text(encoding="utf-8")
    name = "python" + re.search(r"Python (\d+\.\d+)", text)[1]
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{which} has {name}, which is not on the PATH: name one with --python.")
    return found


def prepare(environment, which):
    """Install what is there before the package."""
    if which in IMAGES:
        environment.install("--requirement", TARGETS / f"{which}.txt")
    elif which == "no-tensorflow":
        environment.install("--no-deps", ".")


def install(environment, which):
    """Install the package as its documentation says."""
    if which == "no-tensorflow":
        environment.install(*WHEELS, "--requirement", "sklearn_cnnfeat/no-tensorflow.txt")
    elif which == "lowest":
        environment.install(".", *lowest(declared()))
    else:
        environment.install(*WHEELS, ".")


def report(environment, which, before):
    """Print what the installation changed, and fail where it may not."""
    after = environment.packages()
    changed = {
        name: (before.get(name), after.get(name))
        for name in sorted(before | after)
        if before.get(name) != after.get(name)
    }
    for name, (old, new) in changed.items():
        print(f"{name:30} {old or '-':15} -> {new or '-'}", flush=True)
    print(f"{environment.size() / 1e6:,.0f} MB in {environment.folder}", flush=True)
    wrong = {name for name, (old, _) in changed.items() if old is not None} - MAY_CHANGE
    if which in IMAGES and wrong:
        raise SystemExit(f"Installing the package changed {', '.join(sorted(wrong))}.")
    if which == "no-tensorflow" and "tensorflow" in after:
        raise SystemExit("TensorFlow was installed.")
    return after


def fits(requirement, installed):
    """Whether a requirement leaves what is installed as it is."""
    from packaging.requirements import Requirement

    requirement = Requirement(requirement)
    version = installed.get(requirement.name)
    return version is None or requirement.specifier.contains(version, prereleases=True)


def install_test_tools(environment, which, installed):
    """Install what the tests need; what a notebook image holds stays as it is.

    Tests skip what is too old for them there. Elsewhere the tools may need other versions of what
    is installed: NNCF does not take the newest NumPy.
    """
    wanted, pins = declared(), {}
    if which == "lowest":
        wanted = lowest(wanted)
    elif which == "no-tensorflow":
        # Bringing TensorFlow back would make the test of its absence one of nothing.
        wanted = [line for line in wanted if not line.startswith("tensorflow")]
    elif which in IMAGES:
        pins = {name: version for name, version in installed.items() if name != "sklearn-cnnfeat"}
        wanted = [line for line in wanted if fits(line, pins)]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={pins[name]}\n" for name in pins))
        environment.install("--constraint", constraints, *wanted)
    if which == "no-tensorflow" and "tensorflow" in environment.packages():
        raise SystemExit("The tools of the tests have installed TensorFlow.")


def main():
    """Make the environment, install, test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=[*IMAGES, "lowest", "newest", "no-tensorflow"])
    parser.add_argument("--folder", type=Path, help="where to keep the environment")
    parser.add_argument("--python", help="the interpreter of the environment")
    parser.add_argument("--list", action="store_true", help="print the lowest versions and stop")
    parser.add_argument("--install-only", action="store_true", help="run no tests")
    parser.add_argument("pytest", nargs="*", help="options of pytest, behind --")
    options = parser.parse_args()
    if options.list:
        print("\n".join(lowest(declared())))
        return
    with tempfile.TemporaryDirectory(prefix="versions-") as temporary:
        environment = Environment(
            options.folder or temporary, options.python or find_python(options.which)
        )
        prepare(environment, options.which)
        before = environment.packages()
        install(environment, options.which)
        installed = report(environment, options.which, before)
        if options.install_only:
            return
        install_test_tools(environment, options.which, installed)
        runs = [options.pytest] if options.pytest else [[], NOTEBOOK]
        codes = [environment.run("-m", "pytest", *run, check=False).returncode for run in runs]
    raise SystemExit(max(codes))


if __name__ == "__main__":
    main()
