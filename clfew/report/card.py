"""The model card of a classifier: README.md in its run, in the form that the Hugging Face hub reads.

Every number in it comes from the artifact's metadata or from the run's result.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from clfew.console import plural, printable
from clfew.finetuning.metrics import wilson_interval
from clfew.models.metadata import DISTILLED, ArtifactMetadata
from clfew.report.render import render_page
from clfew.report.text import SCORES_IN_WORDS, beside, percent
from clfew.runs.files import write_text

CARD = "README.md"
MOST_CLASSES, MOST_WORST = 50, 5
_END = "\n<!-- written by clfew, {digest} -->\n"


def write_card(
    folder: Path,
    metadata: ArtifactMetadata,
    result: dict[str, Any],
    exported: dict[str, Any] | None = None,
) -> bool:
    """Writes the card of a run's classifier, unless somebody has written or changed one there. Returns
    whether it did. exported: see `model_card`."""
    path = folder / CARD
    if path.exists() and not _is_ours(path):
        return False
    text = model_card(folder, metadata, result, exported)
    write_text(path, text + _END.format(digest=_digest(text)))
    return True


def _is_ours(path: Path) -> bool:
    """Returns whether a card is as `write_card` wrote it."""
    text = path.read_bytes().decode("utf-8", "replace")
    found = re.search(_END.format(digest="([0-9a-f]{32})") + r"\Z", text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def model_card(
    folder: Path,
    metadata: ArtifactMetadata,
    result: dict[str, Any],
    exported: dict[str, Any] | None = None,
) -> str:
    """Returns the card of a classifier as Markdown with a header in YAML.

    folder: its run. result: of this run (see `clfew finetune --format json`); {} where it is not known.
    exported: what `clfew export` keeps of the file that it wrote, None where there is none.
    """
    report = result.get("test_report") or {}
    worst = [row for row in report.get("per_class", []) if row["recall"] is not None]
    worst = sorted(worst, key=lambda row: (row["recall"], -row["n"]))[:MOST_WORST]
    worst = [row for row in worst if row["recall"] < 1]
    classes = metadata.classes[:MOST_CLASSES]
    more = len(metadata.classes) - len(classes)
    first = ", ".join(map(markdown, classes)) + (f" and {more:,} more" if more else "")
    title = f"{folder.resolve().name}: images of {_source_name(metadata)}"
    has_timm = "timm:" in metadata.encoder
    return render_page(
        "card.md",
        {"markdown": markdown, "percent": percent},
        header=_header(metadata, report, title),
        title=title,
        classes=metadata.classes,
        first_classes=first,
        facts=_facts(metadata),
        labels=_labels(metadata, result),
        test=_test(result, report),
        beside=_beside(result),
        worst=worst,
        fails=_fails(report, worst),
        confused=report.get("most_confused", [])[:MOST_WORST],
        extra="'clfew[timm]'" if has_timm else "clfew",
        onnx=None if exported is None else {"file": exported["file"], "words": exported["words"]},
    )


def markdown(text: Any) -> str:
    """Returns text in which no character is taken for a mark of Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", printable(str(text)))


def _source_name(metadata: ArtifactMetadata) -> str:
    """Returns the name of the images, without the folders of the machine that they lie on."""
    source = str(metadata.data["finetune"]["source"])
    is_of_hub = source.startswith("hf:") and source[3:4] not in ("", ".", "/", "~")
    return source.removeprefix("hf:") if is_of_hub else Path(source).name


def _header(metadata: ArtifactMetadata, report: dict[str, Any], title: str) -> str:
    """Returns the card's header, which says what the hub shows and searches for."""
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if report:
        results = [
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=_source_name(metadata),
                dataset_name=_source_name(metadata),
                dataset_split="test",
                metric_type="f1" if name == "macro_f1" else "accuracy",
                metric_name=words,
                metric_value=round(report[name], 4),
            )
            for name, words in SCORES_IN_WORDS.items()
            if name in report
        ]
    data = ModelCardData(
        library_name="clfew",
        pipeline_tag="image-classification",
        tags=["clfew", "image-classification", "few-labels"],
        model_name=title,
        eval_results=results,
    )
    return str(data.to_yaml()).strip()


def _facts(metadata: ArtifactMetadata) -> list[tuple[str, str]]:
    """Returns what it is, as rows of a table."""
    pretraining = metadata.training.get("pretrain", {})
    started = pretraining.get("init") or metadata.training.get("init", {}).get("source", "")
    learned = f"{metadata.method}, without labels" if metadata.method else "none"
    if images := metadata.data.get("pretrain", {}).get("images") or pretraining.get("images"):
        learned += f", on {images:,} images"
    rows = [
        ("network", f"{metadata.encoder}, {metadata.size} × {metadata.size} pixels"),
        ("head", "student of another classifier" if metadata.mode == DISTILLED else metadata.mode),
        ("initial weights", Path(started).name),  # Of a file, not where it lies.
        ("pretraining", learned),
        ("made by", f"clfew {metadata.clfew_version}"),
    ]
    shares = metadata.training.get("finetune", {}).get("shares")
    if shares:
        by_share = sorted(zip(shares["share"], shares["classes"], strict=True), reverse=True)
        some = [f"{name} {100 * share:.0f} %" for share, name in by_share[:MOST_WORST]]
        rows.append(("expected class shares", f"{', '.join(some)} ({shares['origin']})"))
    return [(name, value) for name, value in rows if value]


def _labels(metadata: ArtifactMetadata, result: dict[str, Any]) -> str:
    """Returns how many labels were learned and how they were chosen, in words."""
    learned = metadata.data["finetune"]
    origins = learned.get("label_origins") or result.get("label_origins") or {}
    few = f"It learned from {plural(learned['labels'], 'label')}"
    return f"{few}{_origins(origins)}."


def _origins(origins: dict[str, int]) -> str:
    """Returns in words how labels came about, to be read after their number."""
    if len(origins) == 1:
        return f", {next(iter(origins))}"
    return "".join(f"{', ' if n else ': '}{c:,} {o}" for n, (o, c) in enumerate(origins.items()))


def _test(result: dict[str, Any], report: dict[str, Any]) -> str:
    """Returns how it was tested and with what result, in words."""
    if not report:
        return "No test is kept with it: `clfew eval` tests it on labelled images."
    low, high = report["ci95"]
    how = _origins(result.get("test_origins") or {}).lstrip(",: ")
    words = (
        f"It was right on {percent(report['accuracy'])} of {report['n']:,} test images, of which it had "
        f"seen no label (95 % interval {percent(low)} to {percent(high)}). "
        f"{f'How they came about: {how}.' if how else HELD_OUT} "
        f"Balanced accuracy {percent(report['balanced_accuracy'])}, macro F1 "
        f"{percent(report['macro_f1'])}, expected calibration error {percent(report['ece'])}."
    )
    if len(result.get("draws", [])) > 1:
        low, high = result["ci95"]
        words += (
            f" Over {len(result['draws'])} samples of as many labels, of which this classifier has the "
            f"first, the mean is {percent(result['mean'])} ({percent(low)} to {percent(high)})."
        )
    return words


def _beside(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the classifier beside its baselines, the header first; nothing where there are none."""
    if not result.get("baselines") or "means" not in result:
        return []
    return beside(result["means"], result["baselines"])


def _fails(report: dict[str, Any], worst: list[dict[str, Any]]) -> str:
    if not report:
        return "That is not known without a test."
    if not worst:
        return f"It made no mistake on the {report['n']:,} test images; more images would show some."
    few = [row for row in worst if row["n"] < FEW]
    words = "The classes of which the smallest part was found, and what was taken for what most often."
    if few:
        low, high = wilson_interval(round(few[0]["recall"] * few[0]["n"]), few[0]["n"])
        words += (
            f" Some have few test images: of {few[0]['class']} {plural(few[0]['n'], 'image')}, so that "
            f"between {percent(low, 0)} and {percent(high, 0)} may be found."
        )
    return words


HELD_OUT = "They are the test split of the images, or were drawn at random for each class."

FEW = 20
"""A class with fewer test images than this is said to have few."""
