"""Run folders and the files in them.

Here are the folder of a run and its `config.json`, how a run is found again, the lock that keeps it
to one process, files and CSV that are written whole or not at all, and checksums in safetensors.

It imports `errors` and `group`.
Open first: `folders.py`.
"""
