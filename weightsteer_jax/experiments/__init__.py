"""Experiments: the parts put together, as programs over a workdir.

organism/         the embedded model: world, corpus, tokenizer, pretraining and checkpoint
real_models/      real models from public packages, and plain English to steer and measure them
monitoring/       training runs seen from directions
auditing/         one fine-tune's update, beside known good ones
calibration/      the strengths at which directions spend equal budgets
interaction/      several directions on several behaviours, on one grid
report/           the pick, tables, figures, the page; from files alone
sources.py        sources in a config, resolved: files, hub datasets, what the package ships
chat_date.py      the day that a run tells its chat templates
experiment.py     the Experiment: a run in a workdir, with the only model in memory
swept_settings.py config.json of a workdir that is swept more than once
arms.py           the arms of a comparison, a kind for each method
answers.py        the model's own answers, sampled, judged, and kept in pairs
contrast.py       the contrast of a run, read or made of answers
monitor_study.py  fine-tunes known to be misaligned or not, told apart by the run's directions
times.py          how long each stage took, on what
stages.py         the method, stage by stage, as functions of an Experiment
standalone.py     programs without a run: export, scores, completions, monitoring
preflight/        a run's programs compiled from shapes alone
"""
