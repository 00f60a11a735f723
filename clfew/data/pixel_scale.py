"""The scale of wide pixels: which of their values are black and white, and which bands are red, green
and blue. It is the same for all images of a source, and artifacts keep it.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from clfew.data.wide import NotRead, Wide

WHOLE = (0.0, 65535.0)
MOST_BANDS = 9999
LARGEST = 1e30
"""Numbers that are larger, either way, are no measurements: files are filled with such."""

_CHUNK = 2**18


@dataclass(frozen=True)
class PixelScale:
    """low, high: the values that become black and white, where they have more than 8 bits. bands: the
    numbers, from 1, of the bands that are taken as red, green and blue, or of the one taken as grey;
    None for the first three. is_float: whether the values are floating-point numbers; whole ones then
    have no known range, and otherwise these have none. is_opaque: whether a band that files declare as
    transparency is none."""

    low: float = WHOLE[0]
    high: float = WHOLE[1]
    bands: tuple[int, ...] | None = None
    is_float: bool = False
    is_opaque: bool = False

    def as_data(self) -> dict[str, Any]:
        """Returns it as JSON keeps it."""
        return asdict(self) | {"bands": None if self.bands is None else list(self.bands)}

    def words(self) -> str:
        taken = "" if self.bands is None else f", bands {', '.join(map(str, self.bands))}"
        return f"{self.low:,.6g} is black and {self.high:,.6g} white{taken}"


def scale_from(data: Any) -> PixelScale | None:
    """Returns the scale that `as_data` made JSON of, None for None. Raises ValueError for anything else
    that is no scale."""
    if data is None:
        return None
    if type(data) is not dict or set(data) != {each.name for each in fields(PixelScale)}:
        raise ValueError("a scale of pixels has low, high, bands, is_float and is_opaque")
    low, high, bands = data["low"], data["high"], data["bands"]
    if not all(type(v) in (int, float) and abs(v) < LARGEST for v in (low, high)) or not low < high:
        raise ValueError("a scale of pixels goes from a number to a larger one")
    if not all(type(data[name]) is bool for name in ("is_float", "is_opaque")):
        raise ValueError("is_float and is_opaque of a scale of pixels are true or false")
    if bands is not None and not (
        type(bands) is list
        and len(bands) in (1, 3)
        and all(type(b) is int and 1 <= b <= MOST_BANDS for b in bands)
    ):
        raise ValueError("a scale of pixels has one band, three, or none")
    taken = None if bands is None else tuple(bands)
    return PixelScale(float(low), float(high), taken, data["is_float"], data["is_opaque"])


def to_rgb(wide: Wide, scale: PixelScale | None) -> Image.Image:
    """Returns wide pixels as an RGB image, with transparency on white. Without a scale, 16 bits are
    scaled as a whole. Raises NotRead if the image lacks a band, or its values have no known range."""
    values = wide.values
    taken = [band - 1 for band in taken_bands(wide, scale)]
    _check_range(values[..., taken], scale)
    alpha = wide.has_alpha and (scale is None or not (scale.bands or scale.is_opaque))
    result = np.empty((*values.shape[:2], 3), np.uint8)
    rows = max(1, _CHUNK // values.shape[1])
    # Some rows at a time: as numbers with a point they take several times the memory.
    for top in range(0, len(values), rows):
        some = values[top : top + rows]
        colours = _to_bytes(some[..., taken], scale)
        if wide.is_negative:
            colours = 255 - colours
        if alpha:
            opacity = some[..., -1:].astype(np.float32) / whole_of(values.dtype)
            colours = np.rint(255 + (colours - 255.0) * opacity.clip(0, 1)).astype(np.uint8)
        result[top : top + rows] = colours
    return Image.fromarray(result)


def whole_of(dtype: np.dtype) -> float:
    """Returns the value of a band of transparency that hides what lies below."""
    return 255.0 if dtype == np.uint8 else 1.0 if dtype.kind == "f" else WHOLE[1]


def _check_range(values: np.ndarray, scale: PixelScale | None) -> None:
    """Raises NotRead if values have no place on a scale."""
    if values.dtype == np.uint8:
        return
    if values.dtype.kind == "f":
        if not (scale and scale.is_float):
            raise NotRead("floating-point pixels have no known range")
        return
    if scale and scale.is_float:
        raise NotRead("whole numbers have no known range beside floating-point pixels")
    is_wider = scale is not None and not (scale.low >= WHOLE[0] and scale.high <= WHOLE[1])
    if is_wider or (values.dtype.kind == "u" and values.dtype.itemsize <= 2):
        return
    beyond = (values < WHOLE[0]) | (values > WHOLE[1])
    # On a scale of its own, a source may mark by some such value what was not measured.
    if beyond.mean() > (0.5 if scale else 0):
        raise NotRead("pixel values beyond 16 bits")


def taken_bands(wide: Wide, scale: PixelScale | None) -> tuple[int, ...]:
    """Returns the bands that are red, green and blue, or the one that is grey. Raises NotRead if the
    image lacks one of them."""
    if scale is not None and scale.bands is not None:
        if max(scale.bands) > wide.bands:
            has = "1 band" if wide.bands == 1 else f"{wide.bands} bands"
            raise NotRead(f"it has {has}, and band {max(scale.bands)} is taken")
        return scale.bands
    colours = wide.bands - wide.has_alpha
    return (1,) if colours == 1 else (1, 2, 2) if colours == 2 else (1, 2, 3)


def _to_bytes(values: np.ndarray, scale: PixelScale | None) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if scale is None:
        return (values.astype(np.int64) // 257).astype(np.uint8)
    numbers = np.nan_to_num(values.astype(np.float64), nan=scale.low, posinf=math.inf, neginf=-math.inf)
    # 256 steps of the same width; the white one has no upper end.
    return ((numbers - scale.low) * (256 / (scale.high - scale.low))).clip(0, 255).astype(np.uint8)
