"""The colours of classes and methods in pictures."""

COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#b07aa1",
    "#76b7b2",
    "#edc948",
    "#9c755f",
    "#ff9da7",
)
"""Nine of Tableau's ten colours of 2016, chosen to be easy to distinguish on white and on dark. The
tenth, a grey, is left out, because a comparison draws its baselines in greys."""
