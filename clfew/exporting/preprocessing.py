"""What happens to pixels between decoding and the network, as an ONNX graph.

It does what `clfew.data.decode.to_square` and `clfew.data.augment.evaluation_view` do: Pillow's
antialiased bicubic reduction, with its integer arithmetic and its rounding, and the crop and resize of
the view. No operator does the first: ONNX's Resize neither shrinks in two steps, as Pillow does with a
`reducing_gap`, nor rounds between columns and rows. Versions of Pillow differ in which of these comes
first: the graph does as the one that is installed. Whole numbers below 2**53 are exact in DOUBLE.

Shape suffixes: N images, H and W their sides, S side of the cached image, R of the view.
"""

# mypy: ignore-errors
# It is onnxscript, which is translated and never run: to mypy, its operators and literals do not fit.

from typing import Any

import onnxscript
from onnxscript import BOOL, FLOAT, INT64, UINT8
from onnxscript import opset18 as op
from PIL import Image

from clfew.data.augment import CROP_RATIO
from clfew.data.decode import REDUCING_GAP

_SCOPE = onnxscript.values.Opset("clfew", 1)
_WIDEST, _NARROWEST = CROP_RATIO[1], CROP_RATIO[0]
_STEP = 1 / 255
_FIRST_THAT_TURNS = 13
"""The first version of Pillow that may resize the columns of an image before the rows."""
_TWO_TO_24, _TWO_TO_32 = float(2**24), float(2**32)


def preprocessing(side: int, size: int) -> Any:
    """Returns the ONNX model from `images`, uint8 (N, H, W, 3) with 1 ≤ H, W, to `views`, float32
    (N, 3, R, R). side: S. size: R."""
    gap = int(REDUCING_GAP) * side
    sides, sizes = float(side), float(size)
    turns = int(Image.__version__.split(".")[0]) >= _FIRST_THAT_TURNS

    @onnxscript.script(default_opset=op)
    def clfew_views(images: UINT8["N", "H", "W", 3]) -> FLOAT["N", 3, "R", "R"]:  # type: ignore  # noqa: F821
        height = op.Shape(images, start=1, end=2)
        width = op.Shape(images, start=2, end=3)
        # Blocks of pixels are averaged as long as three times the sides that are wanted remain.
        tall, wide = op.Max(height / gap, [1]), op.Max(width / gap, [1])
        if op.Squeeze(tall * wide) > 1:
            blocks = averaged_blocks(images, height, width, tall, wide)
        else:
            blocks = op.Cast(images, to=1)
        rows = bicubic_matrix(height, tall, op.Constant(value_ints=[side]))
        columns = bicubic_matrix(width, wide, op.Constant(value_ints=[side]))
        if is_vertical_first(blocks, sides, turns):
            square_NxSxSx3 = columns_resized(rows_resized(blocks, rows), columns)
        else:
            square_NxSxSx3 = rows_resized(columns_resized(blocks, columns), rows)
        pixels_NxSx3S = op.Reshape(square_NxSxSx3, [0, 0, -1]) * _STEP
        aspect = op.Cast(op.Cast(width, to=11) / op.Cast(height, to=11), to=1)
        view_rows = view_matrix(aspect / _NARROWEST, sides, sizes)
        view_columns = view_matrix(_WIDEST / aspect, sides, sizes)
        view = op.Reshape(op.MatMul(view_rows, pixels_NxSx3S), op.Constant(value_ints=[0, 0, side, 3]))
        view = op.MatMul(op.Transpose(view, perm=[0, 3, 1, 2]), op.Transpose(view_columns, perm=[1, 0]))
        views = op.Clip(view, 0.0, 1.0)
        return views

    return clfew_views.to_model_proto()


@onnxscript.script(_SCOPE, default_opset=op)
def averaged_blocks(images: UINT8, height: INT64, width: INT64, tall: INT64, wide: INT64) -> FLOAT:
    """Returns the means of blocks of tall × wide pixels, (N, rows, columns, 3), rounded as
    `Image.reduce` rounds them; the blocks at the lower and right edges are smaller."""
    rows = (height + tall - 1) / tall
    columns = (width + wide - 1) / wide
    padding = op.Concat([0, 0, 0, 0, 0], rows * tall - height, columns * wide - width, [0], axis=0)
    pixels = op.Cast(op.Pad(images, padding), to=6)
    pixels = op.Reshape(pixels, op.Concat([0], rows, tall, [-1], axis=0))
    pixels = op.ReduceSum(pixels, [2], keepdims=0)
    pixels = op.Reshape(pixels, op.Concat([0], rows, columns, wide, [3], axis=0))
    pixels = op.ReduceSum(pixels, [3], keepdims=0)
    sums = op.Cast(op.Reshape(pixels, [0, 0, -1]), to=11)
    heights = op.Min(height - tall * op.Range(0, op.Squeeze(rows), 1), tall)
    widths = op.Min(width - wide * op.Range(0, op.Squeeze(columns), 1), wide)
    # Of each value of a row; three have the same count.
    widths = op.Reshape(op.Expand(op.Unsqueeze(widths, [1]), [1, 3]), [-1])
    counts = op.Unsqueeze(heights, [1]) * widths
    # Pillow divides by a count in fixed point: the quotient is a single-precision number without its
    # fraction.
    factors = op.Cast(op.Floor(_TWO_TO_32 / op.Cast(256 * counts, to=1)), to=11) / _TWO_TO_24
    means = op.Floor((sums + op.Cast(counts / 2, to=11)) * factors)
    return op.Reshape(op.Cast(means, to=1), op.Shape(pixels))


@onnxscript.script(_SCOPE, default_opset=op)
def bicubic_matrix(length: INT64, block: INT64, side: INT64) -> FLOAT:
    """Returns the weights with which Pillow resizes a line of `length` pixels, averaged in blocks, to
    `side`: whole numbers, 2**22 for 1.

    They are two matrices, (2·S, ceil(length / block)): the upper one holds how often 2048 is in a
    weight, the lower one what remains. So every sum of pixels with one of them is a whole number below
    2**24, which is exact in single precision: at most 25 weights are not 0, as blocks leave a line at
    most six times as long as it is to be.
    """
    count = (length + block - 1) / block
    # Pillow has the length in single precision.
    exact = op.Cast(length, to=11) / op.Cast(block, to=11)
    scale = op.Cast(op.Cast(exact, to=1), to=11) / op.Cast(side, to=11)
    stretch = op.Max(scale, [1.0])
    places = op.Cast(op.Range(0, op.Squeeze(side), 1), to=11) + 0.5
    centre = op.Unsqueeze(places * scale, [1])
    index = op.Cast(op.Range(0, op.Squeeze(count), 1), to=11)
    first = op.Floor(op.Max(centre - 2.0 * stretch + 0.5, 0.0))
    last = op.Floor(centre + 2.0 * stretch + 0.5)
    x = op.Abs((index - centre + 0.5) / stretch)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    weight = op.Where(x < 1.0, near, op.Where(x < 2.0, far, 0.0 * x))
    weight = op.Where(op.And(index >= first, index < last), weight, 0.0 * x)
    whole = weight / op.ReduceSum(weight, [1], keepdims=1) * 4194304.0
    # Half away from zero: ONNX's own Round goes to the even number.
    whole = op.Sign(whole) * op.Floor(op.Abs(whole) + 0.5)
    high = op.Floor(whole / 2048.0)
    return op.Cast(op.Concat(high, whole - 2048.0 * high, axis=0), to=1)


@onnxscript.script(_SCOPE, default_opset=op)
def is_vertical_first(blocks: FLOAT, side: FLOAT, turns: BOOL) -> BOOL:
    """Returns whether Pillow resizes the columns of an image first: since version 13, where the height
    shrinks by more than twice the pixels of the width."""
    shape = op.Cast(op.Shape(blocks), to=1)
    taller = op.Squeeze(op.Slice(shape, [1], [2])) - side
    wider = op.Squeeze(op.Slice(shape, [2], [3])) - side
    return op.And(turns, op.And(taller > 0.0, taller > 2.0 * wider))


@onnxscript.script(_SCOPE, default_opset=op)
def rounded(high: FLOAT, low: FLOAT) -> FLOAT:
    """Returns the grey levels of sums of pixels with the two matrices of `bicubic_matrix`."""
    sums = op.Cast(high, to=11) * 2048.0 + op.Cast(low, to=11)
    return op.Cast(op.Clip(op.Floor((sums + 2097152.0) / 4194304.0), 0.0, 255.0), to=1)


@onnxscript.script(_SCOPE, default_opset=op)
def rows_resized(pixels: FLOAT, rows: FLOAT) -> FLOAT:
    """Returns pixels (N, H, W, 3) resized to (N, S, W, 3)."""
    high, low = op.Split(op.MatMul(rows, op.Reshape(pixels, [0, 0, -1])), axis=1, num_outputs=2)
    lines = rounded(high, low)
    return op.Reshape(lines, op.Concat([0, -1], op.Shape(pixels, start=2), axis=0))


@onnxscript.script(_SCOPE, default_opset=op)
def columns_resized(pixels: FLOAT, columns: FLOAT) -> FLOAT:
    """Returns pixels (N, H, W, 3) resized to (N, H, S, 3)."""
    lines = op.Transpose(pixels, perm=[0, 1, 3, 2])
    flat = op.Reshape(lines, op.Concat([-1], op.Shape(lines, start=3), axis=0))
    flat = op.MatMul(flat, op.Transpose(columns, perm=[1, 0]))
    lines = op.Reshape(flat, op.Concat(op.Shape(lines, end=3), [-1], axis=0))
    high, low = op.Split(lines, axis=3, num_outputs=2)
    return op.Transpose(rounded(high, low), perm=[0, 1, 3, 2])


@onnxscript.script(_SCOPE, default_opset=op)
def view_matrix(part: FLOAT, side: FLOAT, size: FLOAT) -> FLOAT:
    """Returns the weights (R, S) of `clfew.data.augment.resampling_matrix` for a centred crop of the
    fraction `part` of a line, of all of it where that is more than 1."""
    length = op.Max(op.Min(part, 1.0) * side, 1.0)
    start = (side - op.Min(part, 1.0) * side) / 2.0
    scale = length / size
    reach = op.Max(scale, 1.0)
    places = op.Range(0.0, op.Squeeze(size), 1.0) + 0.5
    centre = op.Unsqueeze(start + places * scale, [1])
    pixel = op.Range(0.0, op.Squeeze(side), 1.0) + 0.5
    weight = op.Max(1.0 - op.Abs(pixel - centre) / reach, 0.0)
    is_inside = op.And(pixel > start - 0.001, pixel < start + length + 0.001)
    weight = op.Where(is_inside, weight, 0.0 * weight)
    return weight / op.ReduceSum(weight, [1], keepdims=1)
