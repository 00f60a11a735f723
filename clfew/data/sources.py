"""Opens sources of images: a folder, a CSV, or a data set read through Hugging Face `datasets`.

A source lists its images without decoding them. It has labels and splits if the data has them;
pretraining does not use the labels.
"""

import os
from pathlib import Path

from clfew.data.csv_source import open_csv
from clfew.data.folder_source import open_folder
from clfew.data.source import Source
from clfew.errors import UserError

LABELLED_FOLDERS = ("labeled", "labelled")
"""The folders in which labelled images are looked for when no source is named."""


def open_source(spec: str) -> Source:
    """Opens the source that a user named: a folder, a .csv file, or hf:NAME.

    Raises UserError if nothing has that name or there is no image in it.
    """
    if spec.startswith("hf:"):
        from clfew.data.huggingface import open_dataset

        return open_dataset(spec)
    path = Path(os.path.expanduser(spec))  # pathlib raises for the ~ of an unknown user.
    if path.is_dir():
        return open_folder(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return open_csv(path)
    if path.is_file():
        raise UserError(
            f"{spec} is a file, but a folder of images is needed.",
            "name a folder, a .csv file with the columns path and label, or hf:NAME.",
        )
    raise UserError(f"There is no folder or file {spec}.", "check the spelling, or give the full path.")
