"""Pictures of slides: a thumbnail, and regions at full resolution, by OpenSlide or Pillow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

from momkd_ray import storage
from momkd_ray.errors import InputError
from momkd_ray.input_faults import FileFaultError, Problem

FLAT_SUFFIXES = (".png", ".jpg", ".jpeg")
SLIDE_SUFFIXES = (
    ".svs",
    ".tif",
    ".tiff",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".vms",
    ".vmu",
    ".bif",
    ".svslide",
    ".dcm",
    ".czi",
)
Image.MAX_IMAGE_PIXELS = None  # a thumbnail of a slide may be large, and is the user's own


class PictureFaultError(FileFaultError):
    """A `FileFaultError` about the picture of a slide.

    Attributes:
        path: of the picture.
    """

    def __init__(self, problem: Problem, path: str, reason: str) -> None:
        super().__init__(problem, reason)
        self.args = (problem, path, reason)
        self.path = path


class SlideImage(Protocol):
    """A picture of a slide.

    Attributes:
        size: width and height in level-0 pixels; None if unknown.
        mpp: micrometres per level-0 pixel; None if unknown.
    """

    size: tuple[int, int] | None
    mpp: float | None

    def thumbnail(self, size: tuple[int, int], longest: int) -> Image.Image:
        """Returns the whole slide, of `size` level-0 pixels, with at most `longest` pixels an edge."""
        ...

    def region(self, x: float, y: float, edge: float, out_px: int) -> Image.Image | None:
        """Returns a square region of level-0 pixels, scaled to `out_px`; None if it has no such resolution."""
        ...


class PyramidImage:
    """A slide that OpenSlide reads."""

    def __init__(self, path: str) -> None:
        self.slide = _open_slide(path)
        self.size: tuple[int, int] | None = tuple(self.slide.dimensions)
        text = self.slide.properties.get("openslide.mpp-x")
        self.mpp: float | None = float(text) if text else None

    def thumbnail(self, size: tuple[int, int], longest: int) -> Image.Image:
        """Returns the whole slide."""
        thumbnail: Image.Image = self.slide.get_thumbnail((longest, longest))
        return thumbnail.convert("RGB")

    def region(self, x: float, y: float, edge: float, out_px: int) -> Image.Image | None:
        """Reads a region from the level that has at least its resolution."""
        level = self.slide.get_best_level_for_downsample(max(1.0, edge / out_px))
        pixels = max(1, round(edge / self.slide.level_downsamples[level]))
        cut = self.slide.read_region((round(x), round(y)), level, (pixels, pixels))
        white = Image.new("RGB", cut.size, "white")
        white.paste(cut, mask=cut.getchannel("A"))
        return white.resize((out_px, out_px), Image.Resampling.LANCZOS)


class FlatImage:
    """A picture of the whole slide at any resolution, such as a thumbnail."""

    def __init__(self, path: str) -> None:
        try:
            self.image = Image.open(path).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise PictureFaultError(
                "unreadable", path, f"{path} is no picture that can be read: {error}; give a PNG, a JPEG or a slide"
            ) from error
        self.size: tuple[int, int] | None = None
        self.mpp: float | None = None

    def thumbnail(self, size: tuple[int, int], longest: int) -> Image.Image:
        """Returns the picture, made smaller if it is large."""
        image = self.image.copy()
        image.thumbnail((longest, longest))
        return image

    def region(self, x: float, y: float, edge: float, out_px: int) -> Image.Image | None:
        """Returns nothing: tiles are cut from slides."""
        return None


def _open_slide(path: str) -> Any:
    try:
        import openslide
    except ImportError as error:
        raise InputError(
            f"{path} is a slide, which OpenSlide reads: pip install 'momkd-ray[slides]', or give a PNG or JPEG of it"
        ) from error
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise PictureFaultError(
            "unreadable",
            path,
            f"{path} is no slide that OpenSlide reads ({error}): give a pyramidal slide, or a PNG or JPEG of it",
        ) from error


def open_image(path: str) -> SlideImage:
    """Opens a slide or a flat picture.

    Raises:
        PictureFaultError: it cannot be read.
        InputError: OpenSlide is not installed.
    """
    return FlatImage(path) if path.lower().endswith(FLAT_SUFFIXES) else PyramidImage(path)


def find_images(images: str | None, slide_ids: Sequence[str]) -> dict[str, str]:
    """Finds the picture of each slide by name.

    Args:
        images: a folder whose files are named as the slides, or, for one slide, its file; None finds none.
        slide_ids: the slides.

    Returns:
        The local path for each slide that has a picture.

    Raises:
        InputError: the location is not local, does not exist, or is one file for several slides.
    """
    if images is None:
        return {}
    path = storage.local_path(images)
    if path is None:
        raise InputError(f"--images {images}: pictures are read from a local folder only; copy them to one")
    if os.path.isfile(path):
        if len(slide_ids) > 1:
            raise InputError(
                f"--images {images} is one file for {len(slide_ids)} slides: give a folder, or one --slide"
            )
        return {slide_ids[0]: path}
    if not os.path.isdir(path):
        raise InputError(f"--images {images} does not exist: name the folder of the slides or their pictures")
    by_name = _by_name(sorted(os.listdir(path)))
    return {slide_id: os.path.join(path, by_name[slide_id]) for slide_id in slide_ids if slide_id in by_name}


def _by_name(names: Sequence[str]) -> Mapping[str, str]:
    """Returns the file for each name without suffix; a slide rather than a flat picture of it."""
    found: dict[str, str] = {}
    for suffix in (*FLAT_SUFFIXES, *reversed(SLIDE_SUFFIXES)):
        found |= {name[: -len(suffix)]: name for name in names if name.lower().endswith(suffix)}
    return found
