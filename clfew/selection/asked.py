"""What `clfew select` is asked for, checked before anything is opened."""

from clfew.data.lists import is_list
from clfew.errors import UsageError
from clfew.settings import SelectSettings

AUTO, HERDING, TYPICLUST, UNCERTAIN, RANDOM = "auto", "herding", "typiclust", "uncertain", "random"
STRATEGIES = (AUTO, HERDING, TYPICLUST, UNCERTAIN, RANDOM)


def check_asked(settings: SelectSettings) -> None:
    """Raises UsageError for options that say nothing together, and for numbers that only Python lets
    through."""
    for name in ("budget", "test"):
        value = getattr(settings, name)
        if value is not None and (type(value) is not int or value < 1):
            raise UsageError(f"--{name} {value} is no number of images.", f"for example: --{name} 40.")
    if settings.budget is None and settings.test is None:
        raise UsageError(
            "Neither --budget nor --test was given: how many images?",
            "for example: clfew select ./photos --budget 40 --test 50",
        )
    if settings.strategy not in STRATEGIES:
        raise UsageError(
            f"--strategy {settings.strategy} is not known.", f"choose {', '.join(STRATEGIES)}."
        )
    if settings.labels is not None and not is_list(settings.labels):
        raise UsageError(
            f"--labels {settings.labels} is no list of labels.",
            "name the list that was filled in: --labels runs/select-1/to_label.csv",
        )
    if settings.find is not None and settings.budget is None:
        raise UsageError("--find was given without --budget: how many images?", "add --budget 40.")
    if settings.find is not None and settings.strategy != AUTO:
        raise UsageError("--find and --strategy are two ways to choose.", "leave out one of them.")
    source = settings.source or ""
    may_have_labels = is_list(source) or source.startswith("hf:")
    needs_labels = settings.find is not None or settings.strategy == UNCERTAIN
    if needs_labels and settings.labels is None and not may_have_labels:
        option = "--find" if settings.find is not None else f"--strategy {UNCERTAIN}"
        raise UsageError(
            f"{option} asks a classifier, which needs labels, and no --labels was given.",
            "label some images first: clfew select --budget 40, then name the list with --labels.",
        )
