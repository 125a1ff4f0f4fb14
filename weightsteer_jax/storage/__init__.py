"""Files: whole or absent, never overwritten, and verified when read.

writers.py      processes as files name them, and whether a process is gone
files.py        files and folders that appear whole or not at all
locks.py        a single writer for a workdir, a journal or an output
versions.py     versions of Python and packages, for provenance
safetensors.py  safetensors files, whole or as ranges of bytes
sealed.py       manifests, to notice folders cut short or changed
checkpoint.py   orbax in and out: atomic, fingerprinted, verified
line_checks.py  checks in the lines of a journal
journal.py      files of finished work, one line at a time
made_from.py    the inputs of finished work, kept beside the work
scalars.py      numbers for TensorBoard
resumable.py    work kept line by line, for an interrupted run to be continued
remote/         a workdir at a URL: a local staging folder and a mirror
"""
