"""Tiny look-alikes of every published layout, for tests: same names and structure, a few small made-up images.

Each maker returns {member name: bytes}; `pack` writes them as a .zip, .tar, .tar.gz or an unpacked folder.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = (".zip", ".tar", ".tar.gz", "")


def pack(files: dict[str, bytes], folder: Path, stem: str, kind: str = ".zip") -> Path:
    """`files` under `folder` as `stem` + `kind`; kind "" is an unpacked folder."""
    path = folder / f"{stem}{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    if kind == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(
                    zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED
                )  # of a fixed date, so that its hash is fixed too
    elif kind:
        with tarfile.open(path, "w:" + kind.removeprefix(".tar").removeprefix(".")) as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def noise(seed: int, height: int, width: int, channels: int = 1) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def busi(each: int = 3) -> dict[str, bytes]:
    """Class folders with masks; `benign (1)` has a second lesion, images are 60 × 40."""
    files = {}
    for number, label in enumerate(("benign", "malignant", "normal")):
        for i in range(1, each + 1):
            stem = f"Dataset_BUSI_with_GT/{label}/{label} ({i})"
            files[f"{stem}.png"] = encoded(noise(100 * number + i, 40, 60))
            mask = np.zeros((40, 60), bool)
            if label != "normal":
                mask[10:20, 15:30] = True
            files[f"{stem}_mask.png"] = encoded(mask)
    second = np.zeros((40, 60), bool)
    second[30:35, 40:50] = True
    files["Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png"] = encoded(second)
    return files


def chest() -> dict[str, bytes]:
    """Published parts, patients in the names, one patient with several images."""
    names = [
        "train/NORMAL/IM-0115-0001",
        "train/NORMAL/IM-0115-0002",
        "train/NORMAL/NORMAL2-IM-0512-0001",
        "train/NORMAL/NORMAL2-IM-0512-0001-0002",
        "train/PNEUMONIA/person12_bacteria_34",
        "train/PNEUMONIA/person12_bacteria_35",
        "train/PNEUMONIA/person12_virus_40",
        "test/NORMAL/IM-0001-0001",
        "test/NORMAL/NORMAL2-IM-0030-0001",
        "test/PNEUMONIA/person12_virus_7_1".replace("12", "3"),
        "test/PNEUMONIA/person100_bacteria_475",
    ]
    files = {f"chest_xray/{name}.jpeg": encoded(noise(i, 48, 48), "JPEG") for i, name in enumerate(names)}
    return {
        **files,
        "__MACOSX/chest_xray/train/NORMAL/._IM-0115-0001.jpeg": b"fork",
        "chest_xray/.DS_Store": b"desktop",
    }


def mias(size: int = 256, women: int = 6) -> dict[str, bytes]:
    """Films of `women`: the first three have one finding each on the odd film (the third's is not located), the others none."""
    lines, files = ["mdb999 this line of the preamble says nothing", ""], {}
    for woman in range(1, women + 1):
        for film in (2 * woman - 1, 2 * woman):
            files[f"mdb{film:03d}.pgm"] = encoded(_film(film, size), "PPM")
            tissue = "FGD"[woman % 3]
            if woman <= 3 and film % 2:
                where = "" if woman == 3 else f" {'560' if woman == 1 else '520'} {400 + 20 * woman} {30 + 20 * woman}"
                lines.append(f"mdb{film:03d} {tissue} {('CIRC', 'SPIC', 'CALC')[woman - 1]} {'BMB'[woman - 1]}{where}")
            else:
                lines.append(f"mdb{film:03d} {tissue} NORM ")
    files["Info.txt"] = "\n".join(lines).encode()
    files["Licence.txt"] = b"research only"
    return files


def _film(film: int, size: int) -> np.ndarray:
    # A half ellipse of tissue at the chest wall, a bright muscle in the upper corner, a label outside.
    y, x = np.mgrid[:size, :size] / size
    from_wall = x if film % 2 else 1 - x
    pixels = 5 + 3 * np.random.default_rng(film).random((size, size))
    pixels[(from_wall / 0.75) ** 2 + ((y - 0.5) / 0.48) ** 2 < 1] += 110 + 10 * (film % 4)
    pixels[from_wall / 0.3 + y / 0.4 < 1] = 200
    pixels[(from_wall > 0.88) & (y < 0.1)] = 255
    return pixels.clip(0, 255).astype(np.uint8)


def cells(lines: tuple[str, ...], frames: int = 2, height: int = 200, width: int = 140) -> dict[str, bytes]:
    """`frames` of each line; the second line's second frame is of another well. The lowest 100 rows are white (the scale bar)."""
    files = {}
    for i, line in enumerate(lines):
        for frame in range(frames):
            pixels = noise(10 * i + frame, height, width) // 2
            pixels[-100:] = 255
            well = "G4" if i == 1 and frame == 1 else "C6"
            files[f"data/{line}/{line}_{well}_1_0{frame + 1}d02h30m.jpg"] = encoded(pixels, "JPEG")
    return files


def class_folders(
    classes: tuple[str, ...], splits: dict[str, int], root: str, channels: int = 1, size: int = 32
) -> dict[str, bytes]:
    """`root/SPLIT/CLASS/0001.png` (no folder for the split ""), as many images a class as `splits` says."""
    files = {}
    for split, count in splits.items():
        for c, name in enumerate(classes):
            for i in range(count):
                files[f"{root}/{split}/{name}/{i + 1:04d}.png".replace("//", "/")] = encoded(
                    noise(1000 * c + 10 * i + len(split), size, size, channels)
                )
    return files


def bone() -> dict[str, bytes]:
    """YOLO layout: a polygon, a plain box, an image without a mark, and two copies of one original."""
    files = {"bone_fracture/data.yaml": b"nc: 2\nnames: ['elbow positive', 'wrist positive']\n"}
    labels = {
        "train": {
            "image1_1_png.rf.aaa": "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5",
            "image1_1_png.rf.bbb": "1 0.5 0.5 0.2 0.4",
            "image1_2_png.rf.ccc": "",
        },
        "val": {"image1_3_png.rf.ddd": "1 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.1 0.1"},
        "test": {"image2_4_png.rf.eee": ""},
    }
    for split, images in labels.items():
        for i, (stem, text) in enumerate(images.items()):
            files[f"bone_fracture/{split}/images/{stem}.jpg"] = encoded(noise(i + len(split), 40, 80), "JPEG")
            files[f"bone_fracture/{split}/labels/{stem}.txt"] = text.encode()
    return files


def kvasir(frames: int = 4, height: int = 200, width: int = 240) -> dict[str, bytes]:
    """Frames of reddish tissue with black corners, a caption at the left and a bright polyp each; boxes are in pixels of originals twice
    as large. The polyp of the last frame leaves no room beside it; that of the third is smaller than a patch and lies in two parts."""
    files, table = {}, {}
    y, x = np.mgrid[:height, :width]
    for i in range(frames):
        pixels = np.stack([0 * x + 180, 80 + x // 8, 60 + y // 8], 2) + np.random.default_rng(i).integers(0, 20, (height, width, 1))
        if i == frames - 1:
            boxes = [(40, 20, 220, 180)]
        else:
            boxes = [(60, 60, 90, 84), (100, 70, 110, 90)] if i == 2 else [(140, 90, 190 + 10 * i, 150)]
        mask = np.zeros((height, width), bool)
        for x0, y0, x1, y1 in boxes:
            mask |= ((x + 0.5 - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y + 0.5 - (y0 + y1) / 2) / (y1 - y0)) ** 2 < 0.25
        pixels[mask] += (40, 70, 60)
        pixels[20:60, 2:30:2] = 255
        pixels[(x + y < 40) | (x + y > height + width - 40) | (x - y > width - 30) | ((y > height - 60) & (x < 50))] = 2
        stem = f"cju{i:05d}"
        files[f"Kvasir-SEG/images/{stem}.jpg"] = encoded(pixels.clip(0, 255).astype(np.uint8), "JPEG")
        files[f"Kvasir-SEG/masks/{stem}.jpg"] = encoded(mask.astype(np.uint8) * 255, "JPEG")
        corners = [dict(zip(("xmin", "ymin", "xmax", "ymax"), [2 * v for v in box]), label="polyp") for box in boxes]
        table[stem] = {"height": 2 * height, "width": 2 * width, "bbox": corners}
    files["Kvasir-SEG/kavsir_bboxes.json"] = json.dumps(table).encode()
    return files


def eyes() -> dict[str, bytes]:
    """Class folders of several sources: both eyes of patient 951, one of patient 17, and files that name no patient."""
    names = ["normal/951_left.jpg", "normal/951_right.jpg", "diabetic_retinopathy/17_left.jpeg", "diabetic_retinopathy/44_right.jpeg",
             "cataract/_12_9876.jpg", "cataract/cataract_098.png", "glaucoma/_9_9966988.jpg", "glaucoma/Glaucoma_001.png"]  # fmt: skip
    return {
        f"dataset/{name}": encoded(noise(i, 40, 40, 3), "PNG" if name.endswith("png") else "JPEG") for i, name in enumerate(names)
    }


def medmnist(
    path: Path, size: int = 28, classes: int = 2, channels: int = 1, counts: tuple[int, int, int] = (12, 4, 6)
) -> Path:
    """A MedMNIST .npz: {train,val,test}_images and _labels."""
    arrays = {}
    for number, (part, count) in enumerate(zip(("train", "val", "test"), counts)):
        shape = (count, size, size) if channels == 1 else (count, size, size, channels)
        arrays[f"{part}_images"] = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def own_folder(folder: Path, rows: str | None = None) -> Path:
    """A folder with manifest.csv and images of every kind that is read; `rows` replaces the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.tile(np.linspace(0, 255, 40), (30, 1)).astype(np.uint8)
    Image.fromarray(ramp).save(folder / "a.png")
    Image.fromarray(ramp).save(folder / "b.jpg", quality=95)
    Image.fromarray(ramp.astype(np.uint16) * 16).save(folder / "c.tif")  # 12 bits in 16
    Image.fromarray(ramp.astype(np.uint16) * 257).save(folder / "d.png")
    (folder / "e.dcm").write_bytes(dicom(ramp.astype(np.uint16) * 16, window=(2040, 4080)))
    (folder / "f.dcm").write_bytes(dicom(4080 - ramp.astype(np.uint16) * 16, photometric="MONOCHROME1"))
    (folder / "manifest.csv").write_text(
        rows
        or "path,label,group,center,split,x0,y0,x1,y1,scanner\na.png,ill,p1,A,train,4,3,20,15,x\n"
        "a.png,ill,p1,A,train,30,20,40,30,x\nb.jpg,well,p2,A,train,,,,,y\nc.tif,ill,p3,B,val,,,,,y\n"
        "d.png,well,p4,B,val,,,,,y\ne.dcm,ill,p5,B,test,,,,,y\nf.dcm,well,p6,B,test,,,,,z\n"
    )
    return folder


def dicom(
    pixels: np.ndarray,
    *,
    bits: int = 12,
    window: tuple[float, float] | None = None,
    photometric: str = "MONOCHROME2",
    lut: np.ndarray | None = None,
    slope: float = 1,
    intercept: float = 0,
    function: str = "LINEAR",
) -> bytes:
    """An uncompressed DICOM file of one frame of uint16 `pixels`, with a VOI window (center, width) or a VOI LUT."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["look-alike"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PixelRepresentation, file.PhotometricInterpretation = 1, 0, photometric
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, bits, bits - 1
    file.RescaleSlope, file.RescaleIntercept = slope, intercept
    if window:
        file.WindowCenter, file.WindowWidth = window
        file.VOILUTFunction = function
    if lut is not None:
        item = Dataset()
        item.LUTDescriptor = [len(lut), 0, 16]
        item.LUTData = lut.astype("<u2").tobytes()
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
        file.VOILUTSequence = [item]
    file.PixelData = pixels.astype("<u2").tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
