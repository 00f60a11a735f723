"""A classifier as one ONNX file, with everything between decoding and the class inside.

`preprocessing.py` is what happens to pixels as an ONNX graph, `to_onnx.py` joins the network to it,
`parity.py` compares the result with the classifier, `int8.py` makes it smaller, `runtime.py` runs it.
`program/` holds what is written beside an exported file, and is no part of clfew's own code.

It imports `console`, `data`, `errors` and `models`. Open first: `to_onnx.py`.
"""
