"""Files: whole or not there, never overwritten, and verified when they are read.

files.py        files and folders that appear whole or not at all
journal.py      files of finished work, one line at a time
resumable.py    work that is kept line by line, and goes on where it stopped
checkpoint.py   orbax in and out: atomic, fingerprinted, verified
sealed.py       manifests: how a folder that is cut short or changed is noticed
made_from.py    what finished work was made from, kept beside it
versions.py     which versions computed something
safetensors.py  safetensors files as ranges of bytes
remote/         a workdir at a URL: a local staging folder and its mirror
"""
