"""A classifier as one ONNX file, with everything between decoding and the class inside.

`preprocessing.py` is what happens to pixels as an ONNX graph, `to_onnx.py` joins the network to it,
`parity.py` compares the result with the classifier, `int8.py` makes it smaller, `runtime.py` runs it.
`predict_onnx.py` is the program that is written beside an exported file; it imports nothing of clfew.

It imports `console`, `data`, `errors` and `models`. Open first: `to_onnx.py`.
"""
