"""From the bytes of an image file to the pixels that are trained on: decode, window, cut, resize.

Everything here is pure and runs in threads: Pillow and zlib release the interpreter lock while they work.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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
    are scaled by their own 0.1 and 99.9 percentiles, DICOM by its VOI window (see `dicom_pixels`).
    `smallest`: a JPEG may be decoded at a half, quarter or eighth of its size, but no side shorter than this many pixels.
    Raises `MstlError`, naming the entry, where the bytes are no image.
    """
    mode = "L" if channels == 1 else "RGB"
    if PurePosixPath(name).suffix.lower() in DICOM or data[128:132] == b"DICM":
        return Image.fromarray(dicom_pixels(data, name)).convert(mode)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if smallest and image.format == "JPEG":
            image.draft(None, (smallest, smallest))
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise MstlError(
                f"{name}: this TIFF file holds {image.n_frames} pages; save the pages that you mean as single images"
            )
        image.load()
        image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        raise MstlError(
            f"{name}: refused, because it would unfold to more pixels than any image should ({problem}); "
            "shrink it, or leave it out"
        ) from None
    except (MemoryError, MstlError):
        raise
    except (
        Exception
    ) as problem:  # Pillow's decoders raise many types (OSError, SyntaxError, struct.error, ValueError …)
        raise MstlError(
            f"{name}: this image does not decode ({_brief(problem)}); "
            "replace it by an intact copy, or take it out of the archive or manifest"
        ) from None
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert(mode)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert(mode)


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """`values` of any depth as uint8. uint8 stays as it is; else the 0.1 and 99.9 percentiles become 0 and 255, so that a
    12-bit image in a 16-bit file is not black and a few hot pixels do not darken the rest."""
    if values.dtype == np.uint8:
        return values
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(finite, [0.1, 99.9])
    if high <= low:
        low, high = finite.min(), finite.max()
    return _shares_to_eight_bits((np.nan_to_num(values, nan=low) - low) / (high - low if high > low else 1.0))


def dicom_pixels(data: bytes, name: str) -> np.ndarray:
    """A DICOM image as the radiologist sees it: uint8 (H, W), or (H, W, 3) for a colour image.

    Modality LUT, then the VOI LUT or the first VOI window (LINEAR, LINEAR_EXACT or SIGMOID, DICOM PS3.3 C.11.2), whose ends become
    0 and 255; without either, the 0.1 and 99.9 percentiles. MONOCHROME1 is inverted. A file of several frames is refused.
    """
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space

    try:
        header = pydicom.dcmread(io.BytesIO(data), force=data[128:132] != b"DICM")
        pixels = header.pixel_array
    except Exception as problem:  # pydicom and its plug-ins raise many types
        raise MstlError(
            f"{name}: this DICOM file does not decode ({_brief(problem)}); export it uncompressed, or as 16-bit PNG"
        ) from None
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise MstlError(
            f"{name}: this DICOM file holds {header.NumberOfFrames} frames; export the frames that you mean as single images"
        )
    meaning = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if pixels.ndim == 3:
        return to_eight_bits(convert_color_space(pixels, meaning, "RGB") if meaning.startswith("YBR") else pixels)
    values = np.asarray(apply_modality_lut(pixels, header))
    if header.get("VOILUTSequence"):
        table = np.asarray(header.VOILUTSequence[0].LUTData)
        values = np.asarray(apply_voi_lut(np.rint(values).astype(np.int64), header, prefer_lut=True), np.float64)
        shown = _shares_to_eight_bits(
            values / max(1.0, float(np.max(table)) if table.dtype.kind in "iu" else values.max())
        )
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        shown = _shares_to_eight_bits(_windowed(values.astype(np.float64), header))
    else:
        shown = to_eight_bits(values.astype(np.float64))
    return 255 - shown if meaning == "MONOCHROME1" else shown


def _windowed(values: np.ndarray, header) -> np.ndarray:
    center, width = (
        float(np.atleast_1d(np.asarray(value, float))[0]) for value in (header.WindowCenter, header.WindowWidth)
    )
    function = header.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / max(width, 1e-9), -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - center) / max(width, 1e-9) + 0.5
    return (values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5


def _shares_to_eight_bits(shares: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


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
    if isinstance(problem, UnidentifiedImageError):  # its text holds an address in memory
        return "it is no image of a known kind"
    text = " ".join(str(problem).split())
    return (text[:157] + "…" if len(text) > 160 else text) or type(problem).__name__
