"""Experiments: the parts put together, as programs over a workdir.

experiment.py     what a run's config names, as objects
arms.py           the methods of a comparison, each made into an arm of the sweep
contrast.py       the contrast of a run, read or made by the model itself; answers.py samples it
monitor_study.py  fine-tunes known to be misaligned or not, told apart by the run's directions
stages.py         the method as straight-line programs
organism/         the embedded model: its world, corpus, tokenizer, pretraining and checkpoint
monitoring/       training runs seen from directions
report/           the pick, tables, figures, the page; from files alone
preflight/        a run's programs compiled from shapes alone
"""
