"""The report: from the files of a finished sweep to a table, figures and one page.

Nothing here needs a model.

study.py          the workdir, read and checked
facts.py          on what, when and how long a run ran
comparison.py     one arm against its own base
pick.py           which alpha to use on each side of zero; words.py says why
tables.py         the terminal's table, Markdown and csv
axis.py           the axis of strengths, to scale
figures.py        PNG and SVG; labels.py keeps their labels apart
curves.py         the page's curves, every point a link to its answers; exchange.py: behaviour
                  against capability, alike
safe.py           foreign text made safe to show
examples.py       the sweep's rows counted, and where each stands; judged.py has judges' scores
parts.py          every example as the scripts read it; beside.py keeps large ones out of the page
markup.py         the HTML of every page, with style and scripts of assets/ inside
results_table.py  the page's table of an arm
sections.py       the sections of the sweep's page; metrics.py adds what no figure shows
page.py           report/index.html of a sweep
runs_page.py      index.html over many runs, their curves in the same panels
redraw.py         pages made anew from the files of finished runs
monitor_page.py   index.html of a monitored run, with monitor_figures.py
audit_page.py     index.html of an audit
calibration_page.py  index.html of strengths at equal budgets
interaction_page.py  index.html of several directions measured together
watched_page.py   the page of a study of watched fine-tunes
"""
