"""The nine pretraining methods, one file each, by the name that --method takes.

Here are also what they share (`base.py`, `patches.py`), SimCLR for pretrained weights
(`adapter.py`), the signs of a collapse (`collapse.py`), and the way from options to what is trained
(`setup.py`). A new method is a file, a line below and a test.

It imports `console`, `data`, `errors`, `group`, `models`, `training` and `version`.
Open first: `simclr.py`, then `base.py`.
"""

from clfew.methods.base import METHODS
from clfew.methods.byol import BYOL
from clfew.methods.colorization import Colorization
from clfew.methods.context_prediction import ContextPrediction
from clfew.methods.counting import Counting
from clfew.methods.denoising import Denoising
from clfew.methods.inpainting import Inpainting
from clfew.methods.jigsaw import Jigsaw
from clfew.methods.simclr import SimCLR
from clfew.methods.split_brain import SplitBrain

METHODS |= {
    "simclr": SimCLR,
    "byol": BYOL,
    "jigsaw": Jigsaw,
    "context-prediction": ContextPrediction,
    "denoising": Denoising,
    "colorization": Colorization,
    "inpainting": Inpainting,
    "split-brain": SplitBrain,
    "counting": Counting,
}
