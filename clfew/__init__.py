"""clfew: image classifiers from a folder of images and a few labels.

The commands as functions: `pretrain`, `finetune`, `distill`, `evaluate`, `predict`, `embed`, `compare`,
`check`, `select`, `label` and `export`, each with the options of its command as keywords. They are
imported when they are first used, so that `import clfew` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clfew.version import __version__

if TYPE_CHECKING:
    from clfew.commands.check import check
    from clfew.commands.compare import compare
    from clfew.commands.distill import distill
    from clfew.commands.embed import embed
    from clfew.commands.evaluate import evaluate
    from clfew.commands.export import export
    from clfew.commands.finetune import finetune
    from clfew.commands.label import label
    from clfew.commands.predict import predict
    from clfew.commands.pretrain import pretrain
    from clfew.commands.select import select
    from clfew.methods.base import register_method
    from clfew.models.backbones import register_encoder

__all__ = [
    "__version__",
    "check",
    "compare",
    "distill",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "label",
    "predict",
    "pretrain",
    "register_encoder",
    "register_method",
    "select",
]

_PLACES = {
    "register_encoder": "clfew.models.backbones",
    "register_method": "clfew.methods.base",
}
"""Of what is not a command of the same name."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'clfew' has no attribute '{name}'")
    module = import_module(_PLACES.get(name, f"clfew.commands.{name}"))
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
