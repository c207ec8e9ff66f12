"""The compiled extension ``clipfast_kernels._C``: loaded once, or one sentence saying why not."""

import importlib
import importlib.util
import json
from pathlib import Path

_REMEDY = (
    "`pip install --no-build-isolation .` in clipfast's source tree, with torch and a C++ compiler"
    " installed, builds it"
)


def _build_reason() -> str:
    # setup.py leaves this file beside the place where the extension would be.
    record = Path(__file__).with_name("_build.json")
    try:
        reason = json.loads(record.read_text(encoding="utf-8"))["reason"]
    except (OSError, ValueError, KeyError):
        reason = "this source tree has not been installed"
    return f"{reason}; {_REMEDY}"


def _load() -> str | None:
    name = "clipfast_kernels._C"
    if importlib.util.find_spec(name) is None:
        return f"the compiled extension {name} is missing: {_build_reason()}"
    try:
        importlib.import_module(name)
    except ImportError as error:
        return f"the compiled extension {name} does not load with this torch: {error}"
    return None


# None where the extension loaded, else one sentence with the reason. Found once, at import, so that
# torch.compile sees a constant.
MISSING = _load()
