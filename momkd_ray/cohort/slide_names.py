"""Names of slides: the suffixes of scanners and feature files, folders in front of them, GDC's identifiers."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

EXTRACTORS_SUFFIXES = (".h5", ".hdf5", ".pt", ".pth")  # in order of preference: HDF5 files have coordinates
FEATURE_SUFFIXES = (*EXTRACTORS_SUFFIXES, ".npz", ".npy")
_SCANNERS = (
    ".svs .svslide .afi .tif .tiff .btf .tf2 .tf8 .gtiff .qptiff .ome .ndpi .ndpis .vms .vmu .mrxs .scn .czi .zvi .lif "
    ".lsm .vsi .ets .bif .isyntax .i2syntax .dcm .dicom .sdpc .dyqx .kfb .tmap .tron .mds .nd2 .oir .ims .zarr .jp2 "
    ".j2k .jpx .jpg .jpeg .png .bmp .wsi"
)
SLIDE_SUFFIXES = frozenset({*FEATURE_SUFFIXES, ".pkl", *_SCANNERS.split()})

_GDC_ID = re.compile(r"\.[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$", re.IGNORECASE)


def slide_id_of(file_name: str) -> str:
    """Removes the known suffixes of slides and feature files from a name; other dots in it are kept.

    >>> slide_id_of("S.1.ome.tiff"), slide_id_of("S.svs.h5"), slide_id_of("S.v2")
    ('S.1', 'S', 'S.v2')
    """
    suffix = PurePosixPath(file_name).suffix
    while suffix.lower() in SLIDE_SUFFIXES:
        file_name = file_name[: -len(suffix)]
        suffix = PurePosixPath(file_name).suffix
    return file_name


def scanner_suffix(file_name: str) -> str:
    """Returns the scanner's suffix of a name in lower case, such as `.svs` of `S.svs.h5`; '' if it has none."""
    name = without_feature_suffix(file_name)
    return name[len(slide_id_of(name)) :].lower()


def without_feature_suffix(file_name: str) -> str:
    """Removes the suffix of a feature file, if the name has one."""
    suffix = next((suffix for suffix in FEATURE_SUFFIXES if file_name.lower().endswith(suffix)), "")
    return file_name[: len(file_name) - len(suffix)] or file_name


def without_gdc_id(slide_id: str) -> str:
    """Removes the UUID that the Genomic Data Commons appends to the names of its slides."""
    return _GDC_ID.sub("", slide_id)


def folder_and_name(path: str) -> tuple[str, str]:
    r"""Divides a path into its folder, '' if there is none, and the name of the file.

    >>> folder_and_name("P1/S.h5"), folder_and_name("D:\\scans\\S.svs"), folder_and_name("./S.h5")
    (('P1', 'S.h5'), ('D:/scans', 'S.svs'), ('', 'S.h5'))
    """
    folder, _, name = path.replace("\\", "/").rpartition("/")
    parts = [part for part in folder.split("/") if part != "."]
    return "/".join(parts), name
