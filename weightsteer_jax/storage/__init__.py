"""Files: whole or not there, never overwritten, and verified when read.

files.py        files and folders that appear whole or not at all
journal.py      files of finished work, one line at a time
resumable.py    work kept line by line, continued where an earlier run stopped
checkpoint.py   orbax in and out: atomic, fingerprinted, verified
sealed.py       manifests, by which a folder cut short or changed is noticed
made_from.py    the inputs of finished work, kept beside the work
versions.py     versions of Python and packages, for provenance
safetensors.py  safetensors files as ranges of bytes
remote/         a workdir at a URL: a local staging folder and its mirror
"""
