"""``python kernels/hub_folder.py WHEEL FOLDER``: the wheel's kernels in the form that Hugging
Face's package `kernels` loads from a folder, by ``kernels.get_local_kernel(Path(FOLDER))``.

One variant serves every backend and torch: the extension is bound to torch's stable ABI, and where
it does not load, its reason is shown and the other backends serve. The kernel's identifier is the
package's own name, under which it also registers its operators, so a process holds one version of
it, and not beside an installed one.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import zipfile
from pathlib import Path, PurePosixPath

_PACKAGE = "clipfast_kernels"
_VARIANT = "torch-universal"
_LEFT_OUT = "_source"


def lay_out(wheel: Path, folder: Path) -> Path:
    """Returns the folder of the variant.

    Raises:
        FileExistsError: there is one already.
    """
    variant = folder / "build" / _VARIANT
    variant.mkdir(parents=True)
    digests = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.parts[0] != _PACKAGE or path.parts[1] == _LEFT_OUT:
                continue
            content, inside = archive.read(name), path.relative_to(_PACKAGE)
            target = variant / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            digest = hashlib.sha256(content).digest()
            digests[str(inside)] = base64.b64encode(digest).decode()
    metadata = {
        "name": _PACKAGE.replace("_", "-"),
        "id": _PACKAGE,
        "version": 0,  # by the hub's convention, of kernels whose interface still changes
        "license": "mit",
        "python-depends": [],
        "backend": {"type": "cpu"},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    return variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(lay_out(args.wheel, args.folder))


if __name__ == "__main__":
    main()
