"""The report: from the files of a finished sweep to a table, figures and one page. Needs no model
and no jax.

study.py       the workdir, read and checked
comparison.py  one arm against its own base
pick.py        which alpha to use on each side of zero; words.py says why
tables.py      the terminal's table, and Markdown
figures.py     PNG and SVG; labels.py keeps their labels apart
examples.py    the sweep's rows: counts of what failed, and the examples to look through
page.py        report/index.html, with page.css and page.js inside
"""
