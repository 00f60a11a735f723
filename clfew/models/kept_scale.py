"""The scale of wide pixels that artifacts learned with, which later steps keep."""

from clfew.data.find_scale import with_scale
from clfew.data.pixel_scale import PixelScale, scale_from
from clfew.data.source import Source
from clfew.errors import UsageError, UserError
from clfew.models.metadata import ArtifactMetadata


def kept_scale(metadata: ArtifactMetadata) -> PixelScale | None:
    """Returns the scale that an artifact learned with, None for the usual one."""
    steps = [metadata.data.get(name, {}).get("pixels") for name in ("finetune", "pretrain")]
    return next((scale_from(step) for step in steps if step is not None), None)


def scaled(source: Source, bands: tuple[int, ...] | None, artifacts: list[ArtifactMetadata]) -> Source:
    """Returns the source with the scale of its wide pixels: that which artifacts to start from learned
    with, else its own (see `find_scale.with_scale`).

    Raises UserError if these learned with different scales, UsageError if `bands` asks for other bands.
    """
    kept = {scale for each in artifacts if (scale := kept_scale(each)) is not None}
    if len(kept) > 1:
        one, other = sorted(scale.words() for scale in kept)[:2]
        raise UserError(
            f"The encoders learned from pixels on different scales: {one}, and {other}.",
            "name one of them with --from, or pretrain both on the same images.",
        )
    if kept:
        (scale,) = kept
        if bands not in (None, scale.bands):
            _refuse(bands, scale.bands)
        return with_scale(source, kept=scale)
    if source.rule < 4:
        return source
    ordinary = [step for each in artifacts for step in each.data.values() if "pixels" in step]
    if bands is not None and any(step.get("source") == source.spec for step in ordinary):
        _refuse(bands, None)
    return with_scale(source, bands)


def _refuse(bands: tuple[int, ...] | None, learned: tuple[int, ...] | None) -> None:
    named = "the first three" if learned is None else ",".join(map(str, learned))
    raise UsageError(
        f"--bands {','.join(map(str, bands or ()))} are other bands than those that the encoder learned "
        f"from ({named}).",
        "leave out --bands, or pretrain with the same ones.",
    )
