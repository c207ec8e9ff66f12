"""What every page of ours is made with: its template's settings, the style sheet, the figures at
its top."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

_PACKAGE, _ASSETS = "clipfast.report", "assets"


@dataclass
class Figure:
    """One number at the top of a page."""

    name: str
    value: str
    note: str = ""


def environment(package: str = _PACKAGE) -> Environment:
    """Templates from a package's folder `assets`."""
    return Environment(
        loader=PackageLoader(package, _ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str, package: str = _PACKAGE) -> str:
    """A file of that folder, such as "style.css", which all pages have in them."""
    return (resources.files(package) / _ASSETS / name).read_text(encoding="utf-8")
