"""A workdir at a URL: a local staging folder, and the mirror that keeps the URL up to date.

mirror.py   the staging and its URL: what is pulled, when it is pushed, who owns it
listing.py  the listing by which the URL's files are the state of a run
store.py    files at a URL, through fsspec
"""
