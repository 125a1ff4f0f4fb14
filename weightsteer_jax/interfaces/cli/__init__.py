"""The command `weightsteer`: verbs and their flags, which become calls of experiments/.

  command.py        the words of a command line: a verb, help, a version
  table.py          every verb, with its module and one line of help
  program.py        a verb run as absl runs a program: flags, other processes, the exit status
  arguments.py      flags as they stand on the command line, refused early where they are wrong
  help_page.py      the help of the command and of a verb
  config_page.py    the keys of a config, with their comments
  config_keys.py    config keys as flags name them
  config_changes.py keys of a config changed by flags
  shipped.py        the configs that come with the package, found by name

  process_flags.py  flags of every verb
  run_flags.py      flags of verbs that work on a run
  model_flags.py    flags of verbs that ask a model at some alphas
  chat_flags.py     what a chat template is told
  profile_flags.py  flags of a trace
  named_directions.py  directions under names

A module a verb: chat.py, serve.py, steer.py, data.py, finetune.py, direction.py, sweep.py,
judge.py, report.py, score.py, generate.py, harness.py, combine.py, export.py, inspect_log.py,
track.py, preflight.py, monitor.py, audit.py, interact.py, calibrate.py, real_model.py, smoke.py.

Nothing heavy is imported before a command line is known to be right: help and errors take no time.
"""
