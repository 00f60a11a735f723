"""`clfew export`: writes a classifier as one ONNX file, once it is proven to answer the same."""

import errno
import json
import os
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from clfew import console
from clfew.commands.exporting import smaller
from clfew.commands.thresholds import Thresholds, accepted_row, thresholds_of
from clfew.data.decode import ENDINGS, EXTENSIONS
from clfew.data.source import Source
from clfew.data.sources import name_of, open_source
from clfew.errors import UserError
from clfew.exporting.parity import (
    IMAGES,
    MOST_DIFFERENT,
    MOST_FILES,
    Parity,
    Run,
    files_of,
    generated,
    parity_of,
    with_more_files,
)
from clfew.exporting.runtime import Session
from clfew.exporting.to_onnx import onnx_model, require_onnx, require_small
from clfew.models.artifacts import load_classifier, read_evidence
from clfew.models.classifier import Classifier
from clfew.models.kept_scale import kept_scale
from clfew.models.metadata import ArtifactMetadata, read_metadata
from clfew.report.card import CARD, write_card
from clfew.runs.files import digest_of, make_folder, sweep_of, write_bytes, write_json
from clfew.runs.folders import ARTIFACTS, find_artifact, from_here, read_config, with_name
from clfew.settings import ExportSettings, check_exporting
from clfew.signatures import function_of
from clfew.training.device import set_threads, without_traces
from clfew.version import __version__

FILE, INT8_FILE, KEPT, PROGRAM = "classifier.onnx", ".int8.onnx", "export.json", "predict_onnx.py"
PROMISED = (0.9, 0.95, 0.99)
"""The accuracies for which the file says from which probability on images may be accepted unseen."""


@dataclass(frozen=True)
class Prepared:
    """An export that is ready to run. out: the file to write. images: to try it on, None for generated
    ones."""

    settings: ExportSettings
    artifact: Path
    out: Path
    classifier: Classifier
    metadata: ArtifactMetadata
    thresholds: Thresholds
    images: Source | None


def run(settings: ExportSettings) -> dict[str, Any]:
    """Writes a classifier as one ONNX file: from uint8 images N×H×W×3 of any size to probabilities and
    features. Beside it lies predict_onnx.py, which runs it without clfew.

    Returns what is kept in the run as export.json: `file`, `bytes`, `parity` (see
    `clfew.exporting.parity.Parity`), `int8` (what became of --int8, None where it was not asked for) and
    `program` (predict_onnx.py, None where it cannot read the images, or is somebody's own). Raises
    UserError, also where the file does not answer as the classifier; then there is no file.
    """
    prepared = prepare(resolve(settings))
    model, result = proven(prepared)
    save(prepared, model, result)
    keep(prepared, result)
    if settings.int8:
        result["int8"] = save_smaller(prepared, model)
        keep(prepared, result)
    return result


export = function_of(ExportSettings, without_traces(run))


def resolve(settings: ExportSettings) -> ExportSettings:
    """Finds the classifier and checks where the file is to be written. Raises UserError."""
    check_exporting(settings)
    require_onnx()
    set_threads(settings.threads)
    hint = "make a classifier first: clfew finetune --labels 1%"
    artifact = find_artifact(settings.origin, "finetune", hint)
    out = settings.out or artifact.with_name(FILE)
    small = out.with_suffix(INT8_FILE)
    for path in (out, small) if settings.int8 else (out,):
        if not _is_free(path, artifact):
            raise UserError(
                f"{path} exists already, and it is no export of this classifier.",
                "name another file with --out, or remove this one first.",
            )
    if not settings.int8 and small.is_file():
        console.say(f"note       {small} is of an earlier export: it stays as it is")
    return replace(settings, origin=str(artifact), out=out)


def _is_free(path: Path, artifact: Path) -> bool:
    """Returns whether a file can be written: there is none, or an export of this classifier, which may
    be written anew. Raises UserError if its folder cannot be."""
    folder = path.parent
    try:
        is_there = path.exists() or path.is_symlink()
        # A folder that is not there yet is made when the file is written.
        problem = (
            "" if (folder if folder.exists() else folder.parent).is_dir() else "there is no such folder"
        )
        if folder.is_dir() and not os.access(folder, os.W_OK):
            problem = os.strerror(errno.EACCES)
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise UserError(f"{path} cannot be written: {problem}.", "name another place with --out.")
    return not is_there or _is_of(path, artifact)


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
    images = _source(settings, metadata)
    return Prepared(settings, artifact, out, classifier, metadata, thresholds, images)


def _source(settings: ExportSettings, metadata: ArtifactMetadata) -> Source | None:
    """Returns the images to try an export on, None where those of fine-tuning are gone. Raises UserError
    if a source was named that cannot be opened."""
    named = settings.source or metadata.data["finetune"]["source"]
    try:
        return replace(open_source(named), scale=kept_scale(metadata))
    except UserError as error:
        if settings.source:
            raise
        console.say(f"note       {error.message.removesuffix('.')}: it is tried on generated images")
        return None


def proven(prepared: Prepared) -> tuple[Any, dict[str, Any]]:
    """Returns the ONNX model and what is kept of it, if it answers as the classifier. Raises
    UserError."""
    metadata = prepared.metadata
    console.say("exporting  the network and everything before it")
    model = onnx_model(prepared.classifier, metadata.side, metadata.size)
    parity = _compared(prepared, Session(model.SerializeToString()).probabilities)
    if parity.problem:
        raise UserError(
            f"The ONNX model does not answer as the classifier: {parity.problem}. No file was written.",
            "label more images, so that it is surer of them: clfew label"
            if parity.difference <= MOST_DIFFERENT
            else "other versions may: pip install --upgrade torch onnxscript onnxruntime",
        )
    _describe(model, prepared, parity)
    return model, {"parity": parity.as_row(), "words": words_of(parity), "int8": None}


def _compared(prepared: Prepared, run: Run) -> Parity:
    """Returns how an ONNX model compares with the classifier: on images of the source, and on generated
    ones where there are fewer than are needed."""
    source, of = prepared.images, "generated"
    compared = prepared.classifier, prepared.metadata
    found = files_of(source, IMAGES) if source else []
    more = IMAGES - len(found)
    if source and found:
        name = name_of(source.spec)
        of = f"of {name}" if not more else f"{len(found)} of {name}, {more} generated"
    with console.progress_bar("comparing") as update:
        parity = parity_of(run, *compared, found + generated(more), of, len(found), update)
    if source and not more and parity.problem and parity.difference <= MOST_DIFFERENT:
        console.say(f"comparing  more files, as {parity.different_files} of {parity.files} differ")
        rest = files_of(source, MOST_FILES - IMAGES, skip=IMAGES)
        parity = with_more_files(parity, run, *compared, rest) if rest else parity
    return parity


def words_of(parity: Parity) -> str:
    """Returns in words how an ONNX model compares with its classifier."""
    return (
        f"Tried on {parity.images} images ({parity.of}) of {parity.sizes} sizes, at batches of "
        f"{', '.join(map(str, parity.batches))}: probabilities of the same pixels differ by at most "
        f"{parity.difference:.1g}; of {parity.files:,} files as clfew predict reads them, "
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
        "endings": sorted(EXTENSIONS - set(ENDINGS["HEIF"])),
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
    sweep_of(prepared.out)
    write_bytes(prepared.out, content)
    result |= {"file": str(prepared.out), "bytes": len(content), "artifact": str(prepared.artifact)}
    result["program"] = _save_program(prepared)


def save_smaller(prepared: Prepared, model: Any) -> dict[str, Any]:
    """Writes the model with numbers of 8 bits if it is worth having; returns what is kept of it."""
    found = smaller(prepared.settings, prepared.artifact, model)
    path = prepared.out.with_suffix(INT8_FILE)
    row = {name: value for name, value in asdict(found).items() if name != "model"} | {"file": None}
    if found.is_kept:
        sweep_of(path)
        small = _described_as_smaller(found.model, model, row)
        write_bytes(path, small)
        return row | {"file": str(path), "bytes": len(small)}
    path.unlink(missing_ok=True)  # An earlier export of this classifier, which is not worth having now.
    return row


def _described_as_smaller(small: bytes, model: Any, row: dict[str, Any]) -> bytes:
    """Returns a model of 8 bits with what the other one says of itself, but the figures of its own."""
    import onnx

    result = onnx.load_from_string(small)
    for each in model.metadata_props:
        own = {"parity": json.dumps(row), "may_be_accepted": "[]"}
        result.metadata_props.add(key=each.key, value=own.get(each.key, each.value))
    result.producer_name = model.producer_name
    content: bytes = result.SerializeToString()
    return content


def keep(prepared: Prepared, result: dict[str, Any]) -> None:
    """Writes export.json, a row for each file that was exported, and the model card into the run; of an
    artifact that lies in none, the figures are in the ONNX file."""
    folder, out = with_name(prepared.artifact.parent), prepared.out
    is_run = read_config(folder).get("command") in ("finetune", "distill")
    if not is_run or prepared.artifact.name != ARTIFACTS["finetune"]:
        return
    kept = _read(folder / KEPT) | {str(out.resolve()): result}
    beside = [row for file, row in kept.items() if Path(file).resolve().parent == folder.resolve()]
    exported = None
    if beside and Path(beside[-1]["file"]).is_file():
        last = beside[-1]
        exported = {
            "file": Path(last["file"]).name,
            "words": last["words"],
            "program": last["program"] is not None,
        }
    try:
        write_json(folder / KEPT, kept)
        is_written = write_card(folder, prepared.metadata, _read(folder / "result.json"), exported)
    except UserError as error:  # The file is there, and holds the figures.
        console.say(f"note       {error.message}")
        return
    if not is_written:
        console.say(f"note       {from_here(folder / CARD)} is not as clfew wrote it: it stays as it is")


def _read(path: Path) -> dict[str, Any]:
    """Returns the object in a file of JSON, {} if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _save_program(prepared: Prepared) -> str | None:
    """Writes the program that runs the file beside it, unless something else has its name."""
    if (scale := kept_scale(prepared.metadata)) is not None:
        console.say(
            f"note       no {PROGRAM}: the pixels of these images are scaled ({scale.words()}) before "
            "they are given to the file, and only clfew reads them"
        )
        return None
    path = prepared.out.with_name(PROGRAM)
    content = (files("clfew.exporting") / "program" / PROGRAM).read_bytes()
    if path.exists() or path.is_symlink():
        try:
            is_ours = path.read_bytes() == content
        except OSError:
            is_ours = False
        if not is_ours:
            console.say(f"note       {from_here(path)} is not what clfew writes: it stays as it is")
        return str(path) if is_ours else None
    write_bytes(path, content)
    return str(path)
