"""A workdir at a URL: the staging folder, its mirror, and the listing that says which files are its
state.
"""
