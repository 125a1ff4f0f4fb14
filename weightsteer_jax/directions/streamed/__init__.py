"""Changes and checkpoints read from disk in pieces, so that no model is ever held whole.

blocks.py            arithmetic on blocks of elements, several blocks at once
on_disk.py           dense changes that stay on disk until used
computed.py          dense changes that are computed when used, in place of such
checkpoints.py       open checkpoints, and the difference of two
direction_file.py    a direction written while its changes are computed
"""
