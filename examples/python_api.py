"""The commands of clfew as Python functions.

    python examples/python_api.py FOLDER IMAGE [--label]

FOLDER holds a subfolder of 50 or more images for each class, IMAGE is an image to classify. With --label
it also serves the page to label in, and waits until somebody has labelled there. Classifiers are trained
on the labels of one image in twenty. Each function below calls one function of clfew with its most
useful keywords; `help(clfew.pretrain)` lists all of them. Every function of clfew takes these:

    out: Path | None        the folder to write, by default runs/pretrain-1 and so on (not for predict)
    device: str             "auto", "cpu", "cuda" or "mps"
    precision: str          "auto", "fp32" or "bf16"
    threads: int | None     the number of CPU threads, None for PyTorch's choice

Functions that write a run return its folder. Expected failures raise `clfew.errors.UserError`.
"""

import sys
from pathlib import Path

from clfew import (
    check,
    compare,
    distill,
    embed,
    evaluate,
    export,
    finetune,
    label,
    predict,
    pretrain,
    select,
)


def look_at_images(folder: str) -> None:
    """Shows what is in a folder, before anything is trained. The run folder holds check.html."""
    check_folder, result = check(
        folder,  # str | None: the images, None for ./labeled or those of pretraining
        full=True,  # bool: False looks at names and headers alone and writes nothing
        origin=None,  # str | None: a run or artifact whose features are looked at, too
        fix=None,  # Path | None: a CSV to write, of the images without the problems
    )
    for finding in result["findings"]:
        print(f"check      {finding['title']}: {finding['count']}")
    print(f"check      {result['images']} images, {check_folder}/check.html")


def pretrain_encoder(folder: str, minutes: float) -> Path:
    """Trains an encoder on images without labels. The run folder holds encoder.safetensors."""
    return pretrain(
        folder,  # str: a folder of images, a CSV file, or hf:NAME for a data set of the Hugging Face Hub
        minutes=minutes,  # float | None: the training time; or give epochs, passes over the images
        method="simclr",  # str: a name that `clfew pretrain --help` lists or that you have registered
        encoder="auto",  # str: such as "resnet8-w32", "resnet18" or "timm:NAME"
        init="auto",  # str: the weights to start from, "scratch" for random ones
        size=None,  # int | None: the side in pixels of the encoder's input, None chooses it
        seed=0,  # int: everything random follows from it
    )


def choose_images(folder: str, encoder: Path) -> None:
    """Chooses which images to label, and draws a random sample to test on, without looking at a label.
    The run folder holds to_label.csv, whose column label somebody fills in."""
    selection, result = select(
        folder,  # str | None: the images, None for those of the labels so far or of pretraining
        budget=10,  # int | None: how many images to choose
        test=5,  # int | None: how many to draw at random
        labels=None,  # str | None: the list with the labels so far, which the new one goes on from
        origin=str(encoder),  # str | None: the run or artifact whose features are looked at
        strategy="auto",  # str: "herding", "typiclust", "uncertain" or "random"
        find=None,  # str | None: a class whose likeliest images are chosen
    )
    print(
        f"select     {len(result['chosen'])} images by {result['strategy']}, {selection}/to_label.html"
    )


def label_in_a_page(folder: str, encoder: Path) -> None:
    """Serves a page to label in, on this machine; returns when the labels are finished there. The run
    folder holds labels.csv; fine-tuned on it, a classifier is in a run of its own."""
    labelling, result = label(
        folder,  # str | None: the images, None for those of the labels so far or of pretraining
        classes="deer,fox",  # str | None: names of classes; others can be added in the page
        budget=None,  # int | None: how many images may be labelled at most
        test=None,  # int | None: how many images to draw at random, to test on
        labels=None,  # str | None: the list with the labels so far
        origin=str(encoder),  # str | None: the run or artifact whose features are looked at
        browser=True,  # bool: opens the page in a browser
        port=None,  # int | None: of the page, None for any that is free
    )
    print(f"label      {result['labels']}, {labelling}/labels.csv, {result['finetune']['run']}")


def make_classifier(folder: str, encoder: Path) -> Path:
    """Trains a classifier on few labels. The run folder holds classifier.safetensors."""
    classifier, result = finetune(
        folder,  # str | None: the labelled images, None for ./labeled or the images of pretraining
        labels="5%",  # str: or "40" in all, "40/random", "4/class", "all", or a CSV file
        origin=[str(encoder)],  # list[str] | None: runs or artifacts to choose from, None for the newest
        mode="auto",  # str: "full" trains the whole network, the others only a head
        shares="auto",  # str: "equal", "labels", "rest=95,target=5" or a CSV file of class,share
        metric="auto",  # str: what "auto" chooses by: "accuracy", "balanced", "macro-f1", "ap:CLASS"
        repeat=3,  # int: the number of label samples; the classifier of the first is saved
    )
    print(f"finetune   accuracy {result['mean']:.3f} ± {result['std']:.3f} over 3 label samples")
    return classifier


def evaluate_classifier(classifier: Path) -> None:
    """Tests a classifier on images it was not trained on and writes report.html."""
    report_folder, report = evaluate(
        None,  # str | None: the images to test on, None for the test split of the fine-tuning images
        origin=str(classifier),  # str | None: a run or artifact, None for the newest classifier
    )
    print(f"evaluate   accuracy {report['accuracy']:.3f} of the saved one, {report_folder}/report.html")


def classify(images: list[str], classifier: Path) -> None:
    """Predicts the class of image files, one after another, so that any number of files is possible."""
    predictions = predict(
        images,  # Iterable[str]: paths of image files
        classifier,  # str | Path | None: a run or artifact, None for the newest classifier
        top=2,  # int: the number of likeliest classes in each prediction
        accept=None,  # str | None: with "0.95", the `decision` of each is "accept" or "review"
        min_precision=None,  # list[str] | None: such as ["target=0.9"], for thresholds of classes
    )
    for prediction in predictions:
        # top: (class, probability) of the likeliest classes; empty if the image has an `error`.
        print(f"predict    {prediction.path} {prediction.top or prediction.error}")


def save_features(folder: str, encoder: Path) -> None:
    """Writes the encoder's features of all images to features.safetensors and their paths.csv."""
    features_folder, images, width = embed(
        folder,  # str: the images
        origin=str(encoder),  # str | None: a run or artifact, None for the newest encoder
        stage=0,  # int: 0 for the encoder's output, or the number of a stage, counted from 1
    )
    print(f"embed      {images} × {width} features, {features_folder}/features.safetensors")


def distill_classifier(classifier: Path, minutes: float) -> None:
    """Trains a student on the classifier's predictions for unlabelled images."""
    student, result = distill(
        None,  # str | None: the unlabelled images, None for those of pretraining
        origin=str(classifier),  # str | None: the teacher, None for the newest classifier
        student="same",  # str: the student's encoder, "same" for the teacher's
        minutes=minutes,  # float | None: the training time; or give epochs
        keep=False,  # bool: True saves the student even if it is not better than the teacher
    )
    kept = "kept" if result["kept"] else "not kept"
    print(f"distill    {result['teacher']:.3f} → {result['student']:.3f}, student {kept}, {student}")


def compare_methods(folder: str, minutes: float) -> None:
    """Compares pretraining methods by the accuracy of classifiers on their encoders."""
    comparison, result = compare(
        folder,  # str: a folder, CSV file or hf:NAME with labels
        methods="simclr,denoising",  # str: names with commas between them, or "all"
        labels="5%",  # str: label budgets with commas between them
        draws=3,  # int: label samples of each budget, the same for all methods
        minutes=minutes,  # float | None: pretraining time of each method; or give epochs
    )
    for row in result["rows"]:
        print(f"compare    {row['method']}, {row['budget']} of the labels: {row['mean']:.3f}")
    print(f"compare    {comparison}/compare.html")


def export_classifier(classifier: Path) -> None:
    """Writes the classifier as one ONNX file, which answers the same without clfew. It needs the extra
    clfew[onnx]."""
    result = export(
        None,  # str | None: images to try the file on, None for those of fine-tuning
        origin=str(classifier),  # str | None: a run or artifact, None for the newest classifier
        int8=False,  # bool: True tries a smaller file, too
        accept=None,  # str | None: as in predict, what predict_onnx.py decides by
        out=None,  # Path | None: the file, None for classifier.onnx in the run
    )
    print(f"export     {result['file']}, {result['bytes']:,} bytes")


def main(folder: str, image: str, minutes: float = 1.0, with_page: bool = False) -> None:
    look_at_images(folder)
    encoder = pretrain_encoder(folder, minutes)
    choose_images(folder, encoder)
    if with_page:
        label_in_a_page(folder, encoder)
    classifier = make_classifier(folder, encoder)
    evaluate_classifier(classifier)
    classify([image], classifier)
    save_features(folder, encoder)
    distill_classifier(classifier, minutes)
    compare_methods(folder, minutes)
    export_classifier(classifier)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    main(*sys.argv[1:3], with_page=sys.argv[3:] == ["--label"])
