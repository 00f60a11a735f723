"""`clfew export`: writes a classifier as one ONNX file, once it is proven to answer the same."""

import json
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from clfew import console
from clfew.commands.exporting import smaller
from clfew.commands.thresholds import Thresholds, accepted_row, thresholds_of
from clfew.data.decode import EXTENSIONS
from clfew.data.sources import open_source
from clfew.errors import UserError
from clfew.exporting.parity import IMAGES, File, Parity, files_of, generated, parity_of
from clfew.exporting.runtime import Session
from clfew.exporting.to_onnx import onnx_model, require_onnx, require_small
from clfew.models.artifacts import load_classifier, read_evidence
from clfew.models.classifier import Classifier
from clfew.models.kept_scale import kept_scale
from clfew.models.metadata import ArtifactMetadata, read_metadata
from clfew.report.card import CARD, write_card
from clfew.runs.files import digest_of, make_folder, write_bytes, write_json
from clfew.runs.folders import find_artifact, from_here, read_config, with_name
from clfew.settings import ExportSettings, check_onnx_out
from clfew.signatures import function_of
from clfew.training.device import set_threads, without_traces
from clfew.version import __version__

FILE, INT8_FILE, KEPT, PROGRAM = "classifier.onnx", ".int8.onnx", "export.json", "predict_onnx.py"
PROMISED = (0.9, 0.95, 0.99)
"""The accuracies for which the file says from which probability on images may be accepted unseen."""


@dataclass(frozen=True)
class Prepared:
    """An export that is ready to run. out: the file to write. files: image files to try it on. of: where
    they come from, in words."""

    settings: ExportSettings
    artifact: Path
    out: Path
    classifier: Classifier
    metadata: ArtifactMetadata
    thresholds: Thresholds
    files: list[File]
    of: str


def run(settings: ExportSettings) -> dict[str, Any]:
    """Writes a classifier as one ONNX file: from uint8 images N×H×W×3 of any size to probabilities and
    features. Beside it lies predict_onnx.py, which runs it without clfew.

    Returns what is kept in the run as export.json: `file`, `bytes`, `parity` (see
    `clfew.exporting.parity.Parity`), `int8` (what became of --int8, None where it was not asked for) and
    `program` (predict_onnx.py, None where it cannot read the images). Raises UserError, also where the
    file does not answer as the classifier; then there is no file.
    """
    prepared = prepare(resolve(settings))
    model, result = proven(prepared)
    save(prepared, model, result)
    result["int8"] = save_smaller(prepared, model) if settings.int8 else None
    keep(prepared, result)
    return result


export = function_of(ExportSettings, without_traces(run))


def resolve(settings: ExportSettings) -> ExportSettings:
    """Finds the classifier and checks where the file is to be written. Raises UserError."""
    check_onnx_out(settings)
    require_onnx()
    set_threads(settings.threads)
    hint = "make a classifier first: clfew finetune --labels 1%"
    artifact = find_artifact(settings.origin, "finetune", hint)
    out = settings.out or artifact.with_name(FILE)
    for path in (out, out.with_suffix(INT8_FILE)) if settings.int8 else (out,):
        if (path.exists() or path.is_symlink()) and not _is_of(path, artifact):
            raise UserError(
                f"{path} exists already, and it is no export of this classifier.",
                "name another file with --out, or remove this one first.",
            )
    return replace(settings, origin=str(artifact), out=out)


def _is_of(path: Path, artifact: Path) -> bool:
    """Returns whether a file is an export of a classifier, which may be written anew."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf raises errors of its own.
        return False
    kept = {each.key: each.value for each in model.metadata_props}
    return model.producer_name == "clfew" and kept.get("artifact") == json.dumps(digest_of(artifact))


def prepare(settings: ExportSettings) -> Prepared:
    """Loads the classifier, decides what its thresholds are, and opens images to try the file on. Raises
    UserError."""
    artifact, out = Path(settings.origin or ""), settings.out
    assert out is not None
    metadata, shapes = read_metadata(artifact)
    require_small(metadata.encoder, shapes)
    classifier, metadata, _ = load_classifier(artifact)
    thresholds = thresholds_of(settings, artifact, metadata)
    console.say(f"classifier {from_here(artifact)}: {metadata.mode}, {metadata.encoder}")
    found, of = _files(settings, metadata)
    return Prepared(settings, artifact, out, classifier, metadata, thresholds, found, of)


def _files(settings: ExportSettings, metadata: ArtifactMetadata) -> tuple[list[File], str]:
    """Returns image files to try an export on, and in words where they come from: those of the source,
    and generated ones where there are fewer than are needed. Raises UserError if a source was named that
    cannot be opened."""
    named = settings.source or metadata.data["finetune"]["source"]
    found: list[File] = []
    try:
        source = replace(open_source(named), scale=kept_scale(metadata))
        found = files_of(source, IMAGES)
    except UserError as error:
        if settings.source:
            raise
        console.say(f"note       {error.message.removesuffix('.')}: it is tried on generated images")
    more = IMAGES - len(found)
    if not more:
        return found, f"of {named}"
    return found + generated(
        more
    ), f"{len(found)} of {named}, {more} generated" if found else "generated"


def proven(prepared: Prepared) -> tuple[Any, dict[str, Any]]:
    """Returns the ONNX model and what is kept of it, if it answers as the classifier. Raises
    UserError."""
    metadata = prepared.metadata
    console.say("exporting  the network and everything before it")
    model = onnx_model(prepared.classifier, metadata.side, metadata.size)
    session = Session(model.SerializeToString())
    with console.progress_bar("comparing") as update:
        parity = parity_of(
            session.probabilities,
            prepared.classifier,
            metadata,
            prepared.files,
            prepared.of,
            update,
        )
    if parity.problem:
        raise UserError(
            f"The ONNX model does not answer as the classifier: {parity.problem}. No file was written.",
            "other versions of torch, onnxscript or onnxruntime may do: pip install --upgrade torch "
            "onnxscript onnxruntime",
        )
    _describe(model, prepared, parity)
    return model, {"parity": parity.as_row(), "words": words_of(parity)}


def words_of(parity: Parity) -> str:
    """Returns in words how an ONNX model compares with its classifier."""
    return (
        f"Tried on {parity.images} images ({parity.of}) of {parity.sizes} sizes, at batches of "
        f"{', '.join(map(str, parity.batches))}: probabilities of the same pixels differ by at most "
        f"{parity.difference:.1g}; of files as clfew predict reads them, "
        f"{100 * parity.from_files:.1f} % have the same class."
    )


def _describe(model: Any, prepared: Prepared, parity: Parity) -> None:
    """Puts into the model what a program needs to run it, and where it comes from, each as JSON."""
    metadata, thresholds = prepared.metadata, prepared.thresholds
    evidence = read_evidence(prepared.artifact)
    limits = [0.0] * len(metadata.classes)
    for number, limit in thresholds.of_classes.items():
        limits[number] = max(limit, 1e-12)
    above = None if not thresholds.is_asked else 1.0 if thresholds.above is None else thresholds.above
    scale = kept_scale(metadata)
    kept = {
        "clfew": __version__,
        "artifact": digest_of(prepared.artifact),
        "classes": metadata.classes,
        "encoder": metadata.encoder,
        "mode": metadata.mode,
        "size": metadata.size,
        "side": metadata.side,
        "endings": sorted(EXTENSIONS),
        "pixels": None if scale is None else scale.as_data(),
        "shares": metadata.training.get("finetune", {}).get("shares"),
        "limits": limits,
        "accept_above": above,
        "may_be_accepted": [accepted_row(evidence, metadata, each) for each in PROMISED],
        "parity": parity.as_row(),
    }
    del model.metadata_props[:]
    for key, value in kept.items():
        model.metadata_props.add(key=key, value=json.dumps(value))


def save(prepared: Prepared, model: Any, result: dict[str, Any]) -> None:
    """Writes the file and the program that runs it, and adds to the result what they are."""
    content = model.SerializeToString()
    make_folder(prepared.out.parent)
    write_bytes(prepared.out, content)
    result |= {"file": str(prepared.out), "bytes": len(content), "artifact": str(prepared.artifact)}
    result["program"] = _save_program(prepared)


def save_smaller(prepared: Prepared, model: Any) -> dict[str, Any]:
    """Writes the model with numbers of 8 bits if it is worth having; returns what is kept of it."""
    found = smaller(prepared.settings, prepared.artifact, model)
    path = prepared.out.with_suffix(INT8_FILE)
    row = {name: value for name, value in asdict(found).items() if name != "model"} | {"file": None}
    if found.is_kept:
        write_bytes(path, found.model)
        return row | {"file": str(path), "bytes": len(found.model)}
    path.unlink(missing_ok=True)  # An earlier export of this classifier, which is not worth having now.
    return row


def keep(prepared: Prepared, result: dict[str, Any]) -> None:
    """Writes export.json and the model card into the run; of an artifact that lies in none, the figures
    are in the ONNX file."""
    folder, out = with_name(prepared.artifact.parent), prepared.out
    if not read_config(folder):
        return
    try:
        before = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    is_beside = out.resolve().parent == folder.resolve()
    exported = {"file": out.name, "words": result["words"]} if is_beside else None
    try:
        write_json(folder / KEPT, result)
        is_written = write_card(folder, prepared.metadata, before, exported)
    except UserError as error:  # The file is there, and holds the figures.
        console.say(f"note       {error.message}")
        return
    if not is_written:
        console.say(f"note       {from_here(folder / CARD)} is not as clfew wrote it: it stays as it is")


def _save_program(prepared: Prepared) -> str | None:
    """Writes the program that runs the file beside it, unless something else has its name."""
    if (scale := kept_scale(prepared.metadata)) is not None:
        console.say(
            f"note       no {PROGRAM}: the pixels of these images are scaled ({scale.words()}) before "
            "they are given to the file, and only clfew reads them"
        )
        return None
    path = prepared.out.with_name(PROGRAM)
    content = files("clfew.exporting").joinpath(PROGRAM).read_bytes()
    first_line = content.split(b"\n")[0]
    if path.exists() and path.read_bytes().split(b"\n")[0] != first_line:
        console.say(f"note       {from_here(path)} is not clfew's: it stays as it is")
        return None
    write_bytes(path, content)
    return str(path)
