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
            raise UsageError(
                f"--bands {','.join(map(str, bands or ()))} are other bands than those that the encoder "
                f"learned from ({','.join(map(str, scale.bands or (1, 2, 3)))}).",
                "leave out --bands, or pretrain with the same ones.",
            )
        return with_scale(source, kept=scale)
    # Before it had a number, and in its first versions, a run read whole 16 bits.
    if bands is None and (source.rule < 3 or any(_is_older(each, source) for each in artifacts)):
        return source
    return with_scale(source, bands)


def _is_older(metadata: ArtifactMetadata, source: Source) -> bool:
    """Returns whether an artifact learned from the source before scales were kept."""
    return any(
        step.get("source") == source.spec and "pixels" not in step for step in metadata.data.values()
    )
