"""``python -m clipfast_kernels.rebuild``: compiles the extension anew from the sources that a wheel
has along, for an nvcc or a torch that it was not made with.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).parent
SOURCES = "_source"  # what setup.py puts into a wheel: itself and csrc/
_SETUPTOOLS = 77


def main() -> int:
    """Returns 0 if the extension was built."""
    sources = _PACKAGE / SOURCES
    if (mistake := _missing(sources)) is not None:
        print(f"rebuild: {mistake}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        # Away from the package, which may be read by others meanwhile.
        tree = Path(shutil.copytree(sources, Path(scratch, "tree")))
        made = Path(scratch, "made")
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(made)]
        done = subprocess.run(command, cwd=tree, check=False)
        record = made / _PACKAGE.name / "_build.json"
        if done.returncode != 0 or not record.exists():
            return 1
        found = json.loads(record.read_text(encoding="utf-8"))
        print(f"extension: {found['reason']}; its CUDA kernels: {found['cuda']}")
        if found["extension"] != "built":
            return 1
        for path in (made / _PACKAGE.name).iterdir():
            new = _PACKAGE / f"{path.name}.new"
            shutil.copyfile(path, new)
            new.replace(_PACKAGE / path.name)
    return 0


def _missing(sources: Path) -> str | None:
    if not sources.is_dir():
        return (
            f"expected the C++ sources in {sources}, as a wheel has them; got none: in clipfast's "
            "source tree `pip install --no-build-isolation .` builds the extension"
        )
    try:
        found = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        found = "none"
    if found == "none" or int(found.partition(".")[0]) < _SETUPTOOLS:
        return (
            f"expected setuptools {_SETUPTOOLS} or newer; got {found}: "
            f"pip install 'setuptools>={_SETUPTOOLS}'"
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
