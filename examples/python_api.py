"""Pretrain, fine-tune, test and predict from Python instead of the command line.

    python examples/python_api.py FOLDER IMAGE

FOLDER holds a subfolder of images for each class; of their labels one in twenty is used.
"""

import sys
from pathlib import Path

from clfew.commands.evaluate import evaluate
from clfew.commands.finetune import finetune
from clfew.commands.predict import predict
from clfew.commands.pretrain import pretrain


def main(folder: str, image: str) -> None:
    encoder = pretrain(folder, minutes=1)
    classifier, result = finetune(folder, labels="5%", origin=str(encoder), repeat=3)
    print(f"accuracy {result['mean']:.3f} ± {result['std']:.3f} over 3 draws of the labels")

    report_folder, report = evaluate(origin=str(classifier))
    print(f"of the classifier that was kept: {report['accuracy']:.3f}; see {report_folder}/report.html")

    for prediction in predict([image], classifier / "classifier.safetensors", top=2):
        print(prediction.path, prediction.top or prediction.error)


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    main(*sys.argv[1:])
