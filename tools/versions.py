"""Run the tests with the lowest, or the newest, versions of everything that is declared.

``python tools/versions.py lowest`` (or ``newest``) makes an environment of its own, installs the
package with its test extra, and runs the tests in it; what follows ``--`` goes to pytest. Lowest
are the versions behind each ``>=`` of ``pyproject.toml`` that hold for this Python. ``--folder``
keeps the environment, ``--list`` only prints what would be installed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Tools: what they do does not depend on our users' environments.
NEWEST_ALWAYS = {"ruff", "setuptools", "setuptools-scm", "build", "twine", "check-wheel-contents"}


def declared():
    """Return the requirements of the package and of its tests, extras resolved."""
    if sys.version_info < (3, 11):
        raise SystemExit("Python 3.11 or newer is needed, which reads pyproject.toml.")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, found = project["optional-dependencies"], list(project["dependencies"])
    pending, seen = ["test"], set()
    while pending:
        extra = pending.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for line in extras[extra]:
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
        pinned[requirement.name] = f"{requirement.name}=={bound}"
    return sorted(pinned.values())


def main():
    """Make the environment, install, test."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("which", choices=["lowest", "newest"])
    parser.add_argument("--folder", type=Path, help="where to keep the environment")
    parser.add_argument("--list", action="store_true", help="print the lowest versions and stop")
    parser.add_argument("pytest", nargs="*", help="options of pytest, behind --")
    options = parser.parse_args()
    pins = lowest(declared()) if options.which == "lowest" else []
    if options.list:
        print("\n".join(pins))
        return
    with tempfile.TemporaryDirectory(prefix="versions-") as temporary:
        folder = options.folder or Path(temporary)
        venv.create(folder, with_pip=True)
        python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", ".[test]", *pins], cwd=ROOT, check=True
        )
        subprocess.run([python, "-m", "pip", "list"], check=True)
        done = subprocess.run([python, "-m", "pytest", *options.pytest], cwd=ROOT)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
