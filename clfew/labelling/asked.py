"""What `clfew label` is asked for, checked before anything is opened."""

from clfew import console
from clfew.data.lists import is_list
from clfew.errors import UsageError
from clfew.settings import LabelSettings


def classes_of(settings: LabelSettings) -> list[str]:
    """Returns the names of --classes. Raises UsageError."""
    if settings.classes is None:
        return []
    names = [" ".join(name.split()) for name in settings.classes.split(",")]
    if not all(names) or not all(name.isprintable() for name in names):
        raise UsageError(
            f"--classes {console.printable(settings.classes)[:60]} has an empty name.",
            "separate the names by commas: --classes deer,fox",
        )
    return list(dict.fromkeys(names))


def check_labelling(settings: LabelSettings) -> None:
    """Raises UsageError for what cannot be meant, before anything is opened."""
    classes_of(settings)
    for name, least in (("budget", 1), ("test", 0)):
        value = getattr(settings, name)
        if value is not None and (type(value) is not int or value < least):
            raise UsageError(f"--{name} {value} is no number of images.", f"for example: --{name} 40.")
    if settings.labels is not None and not is_list(settings.labels):
        raise UsageError(
            f"--labels {settings.labels} is no list of labels.",
            "name the labels so far: --labels so_far.csv",
        )
