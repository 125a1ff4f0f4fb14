"""A workdir at a URL: a local staging folder, and a mirror to keep the URL up to date.

mirror.py   the staging and the URL: pulling, pushing, ownership
listing.py  the listing of a URL's files as the state of a run
store.py    files at a URL, through fsspec
"""
