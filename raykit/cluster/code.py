"""raykit itself, as a zip file that Python imports from: so it travels to images that lack it."""

from __future__ import annotations

import io
import os
import zipfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

LEFT_OUT = ("jupyter", "__pycache__")
ROOT = Path(__file__).parents[1]
SHIM = Path(__file__).parent / "shim"
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the same code gives the same bytes


def python_path(place: str) -> str:
    """Give the ``PYTHONPATH`` of Ray's processes where the zip lies: the stand-ins of slow packages come first."""
    return f"{place}/{SHIM.relative_to(ROOT.parent)}:{place}"


def python_path_here() -> str:
    """Give the ``PYTHONPATH`` of a process on this machine that imports Ray: the stand-ins of slow packages come first."""
    return os.pathsep.join(filter(None, [str(SHIM), os.environ.get("PYTHONPATH")]))


@cache
def zipped() -> bytes:
    """Give the package and its version as a zip, without what is seen in a notebook."""
    number = version("raykit")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, FIXED_TIME), data, zipfile.ZIP_DEFLATED)

        for file in sorted(ROOT.rglob("*.py")):
            inside = file.relative_to(ROOT)
            if not set(LEFT_OUT) & set(inside.parts):
                add(f"raykit/{inside.as_posix()}", file.read_bytes())
        about = f"Metadata-Version: 2.1\nName: raykit\nVersion: {number}\n"
        add(f"raykit-{number}.dist-info/METADATA", about.encode())
    return packed.getvalue()
