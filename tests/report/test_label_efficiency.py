import io

import numpy as np
import pytest
from PIL import Image

from clfew.report.label_efficiency import draw_label_efficiency


@pytest.mark.parametrize("std", [None, 0.03])
def test_no_words_are_cut_off_at_the_edges(std):
    rows = [
        {"labels": labels, "method": "clfew", "mean": 0.6, "std": std, "draws": [0.6]}
        for labels in (10, 51)
    ]
    drawn = draw_label_efficiency(rows, {"clfew": "clfew"})
    pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("L"))
    edges = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    assert all((edge > 250).all() for edge in edges)
