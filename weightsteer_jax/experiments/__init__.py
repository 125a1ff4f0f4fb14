"""Experiments: the parts put together, as programs over a workdir.

sources.py        what a config's sources name: files, hub datasets, what the organism makes
experiment.py     the Experiment: a run in its workdir, with the one model in memory
arms.py           the arms of a comparison, one for each method
contrast.py       the contrast of a run, read or made by the model itself; answers.py samples it
monitor_study.py  fine-tunes known to be misaligned or not, told apart by the run's directions
stages.py         the method, stage by stage, as functions of an Experiment
standalone.py     what needs no run: export, scores, completions, monitoring, from files to files
organism/         the embedded model: its world, corpus, tokenizer, pretraining and checkpoint
monitoring/       training runs seen from directions
report/           the pick, tables, figures, the page; from files alone
preflight/        a run's programs compiled from shapes alone
"""
