"""From the bytes of an image file to the pixels that are trained on: decode, window, cut, resize.

Everything here is pure and runs in threads: Pillow and zlib release the interpreter lock while they work.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from ..errors import MstlError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF", "WEBP")
DICOM = {".dcm", ".dicom", ".ima"}


@dataclass(frozen=True)
class Picture:
    """One prepared row: `image` uint8 (size, size, C), `mask` uint8 (size, size) 0/1 or None, `boxes` (class, x0, y0, x1, y1)
    in pixels of the prepared image, `extra` values that only the pixels can tell."""

    image: np.ndarray
    mask: np.ndarray | None = None
    boxes: tuple[tuple, ...] = ()
    extra: dict = field(default_factory=dict)


def decode(data: bytes, name: str, channels: int = 1, *, smallest: int | None = None) -> Image.Image:
    """The image in `data` as an 8-bit Pillow image, mode ``L`` (channels 1) or ``RGB`` (channels 3).

    PNG, JPEG, TIFF, BMP, PNM, GIF (first frame), WebP and DICOM. EXIF rotation is applied. Images of more than 8 bits
    are scaled by their own 0.1 and 99.9 percentiles, DICOM by its VOI window (see `dicom_array`).
    `smallest`: a JPEG may be decoded at a half, quarter or eighth of its size, but no side shorter than this many pixels.
    Raises `MstlError`, naming the entry, where the bytes are no image.
    """
    mode = "L" if channels == 1 else "RGB"
    if PurePosixPath(name).suffix.lower() in DICOM or data[128:132] == b"DICM":
        return Image.fromarray(to_eight_bits(dicom_array(data, name), whole_range=True)).convert(mode)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if smallest and image.format == "JPEG":
            image.draft(None, (smallest, smallest))
        image.load()
        image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        raise MstlError(f"{name}: refused, because it would unfold to more pixels than any image should ({problem}); "
                        "shrink it, or leave it out") from None
    except MemoryError:
        raise
    except Exception as problem:  # Pillow's decoders raise many types (OSError, SyntaxError, struct.error, ValueError …)
        raise MstlError(f"{name}: this image does not decode ({_brief(problem)}); "
                        "replace it by an intact copy, or take it out of the archive or manifest") from None
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert(mode)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert(mode)


def to_eight_bits(values: np.ndarray, *, whole_range: bool = False) -> np.ndarray:
    """`values` of any depth as uint8. uint8 stays as it is; else the 0.1 to 99.9 percentiles (or, with `whole_range`,
    the least and the largest value) become 0 and 255, so that a 12-bit image in a 16-bit file is not black."""
    if values.dtype == np.uint8:
        return values
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = (finite.min(), finite.max()) if whole_range else np.percentile(finite, [0.1, 99.9])
    if high <= low:
        low, high = finite.min(), finite.max()
    span = high - low if high > low else 1.0
    return np.rint(np.clip((np.nan_to_num(values, nan=low) - low) / span, 0, 1) * 255).astype(np.uint8)


def dicom_array(data: bytes, name: str) -> np.ndarray:
    """Display values of a DICOM image: modality LUT, VOI LUT or window, MONOCHROME1 inverted; (H, W) float or (H, W, 3) uint8.

    Where the file has a window, values outside it are cut, so that 0 and the maximum mean what the radiologist saw; without
    one, the 0.1 to 99.9 percentiles are taken. Multi-frame files are refused.
    """
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        header = pydicom.dcmread(io.BytesIO(data), force=data[128:132] != b"DICM")
        pixels = header.pixel_array
    except Exception as problem:  # pydicom and its plug-ins raise many types
        raise MstlError(f"{name}: this DICOM file does not decode ({_brief(problem)}); export it uncompressed or as 16-bit PNG") from None
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise MstlError(f"{name}: this DICOM file holds {header.NumberOfFrames} frames; export the frames that you mean as single images")
    if header.get("SamplesPerPixel", 1) == 3:
        if "YBR" in header.get("PhotometricInterpretation", ""):
            from pydicom.pixels import convert_color_space

            pixels = convert_color_space(pixels, header.PhotometricInterpretation, "RGB")
        return to_eight_bits(pixels)
    values = apply_modality_lut(pixels, header)
    if "VOILUTSequence" in header or ("WindowCenter" in header and "WindowWidth" in header):
        values = apply_voi_lut(values, header).astype(np.float64)
    else:
        values = to_eight_bits(np.asarray(values, np.float64)).astype(np.float64)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values
    return values


@dataclass(frozen=True)
class Frame:
    """How an image of `width` × `height` pixels comes to lie in the square of `size` pixels: scale, then shift."""

    size: int
    width: int
    height: int
    left: int
    top: int
    across: float
    down: float

    def box(self, label: str, x0: float, y0: float, x1: float, y1: float) -> tuple | None:
        """A box in pixels of the original, moved into the prepared image; None where nothing of it is left."""
        x0, x1 = (np.clip(np.array([x0, x1]) * self.across, 0, self.width) + self.left).tolist()
        y0, y1 = (np.clip(np.array([y0, y1]) * self.down, 0, self.height) + self.top).tolist()
        return (label, x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def frame(width: float, height: float, size: int, fit: str) -> Frame:
    """`fit="letterbox"`: the aspect is kept and the rest is black, centred; `"squash"`: both sides become `size`."""
    if fit == "squash":
        return Frame(size, size, size, 0, 0, size / width, size / height)
    scale = size / max(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    return Frame(size, wide, high, (size - wide) // 2, (size - high) // 2, wide / width, high / height)


def place(image: Image.Image, size: int, fit: str) -> tuple[np.ndarray, Frame]:
    """`image` resized into a (size, size, C) uint8 square (antialiased: Lanczos), and how it lies there."""
    where = frame(image.width, image.height, size, fit)
    small = image.resize((where.width, where.height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = np.asarray(small)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[:2] == (size, size):
        return pixels, where
    square = np.zeros((size, size, pixels.shape[2]), np.uint8)
    square[where.top : where.top + where.height, where.left : where.left + where.width] = pixels
    return square, where


def place_mask(mask: np.ndarray, size: int, fit: str) -> np.ndarray:
    """A mask (H, W) of true and false as uint8 (size, size) of 0 and 1, laid like its image: 1 where at least half is covered."""
    where = frame(mask.shape[1], mask.shape[0], size, fit)
    kind = Image.Resampling.BOX if where.width < mask.shape[1] else Image.Resampling.BILINEAR
    small = Image.fromarray((mask > 0).astype(np.uint8) * 255).resize((where.width, where.height), kind)
    square = np.zeros((size, size), np.uint8)
    square[where.top : where.top + where.height, where.left : where.left + where.width] = np.asarray(small) >= 128
    return square


def extent(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The box (x0, y0, x1, y1) around all of a mask, pixel edges; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _brief(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return (text[:157] + "…" if len(text) > 160 else text) or type(problem).__name__
