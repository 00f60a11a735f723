"""From what a user names to pixels on the device that computes.

Here are sources (a folder, a CSV, a data set of Hugging Face), decoding, the image cache, the test
split and the sample of labels, and random views of batches of images.

It imports `console`, `errors`, `group` and `runs`.
Open first: `source.py`, then `image_cache.py`.
"""
