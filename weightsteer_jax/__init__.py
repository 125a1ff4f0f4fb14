"""weightsteer_jax: find a behaviour's direction in weight space, turn it up and down, and hand it
on.

The rooms, in the order data goes through them; imports only go up this list:

  errors.py       the errors a user can meet, with their exit codes
  distributed.py  several processes: how they join, speak and agree
  lifeline.py     how they end together, and how a stuck one is noticed
  files.py        files and folders that appear whole or not at all
  store.py        files at a URL, through fsspec
  compilation.py  what was compiled, kept for the next run in the user's cache folder
  tracing.py      a window of a run as a profile
  listing.py      which files there are the state of a run
  bucket.py       a workdir at a URL: a local staging folder and its mirror
  journal.py      files of finished work, one line at a time
  versions.py     which versions computed something
  tree.py         pytrees named by path: flatten, strict get, masks that cover every leaf,
                  fingerprints
  sharding.py     the mesh, and the two tables that say how arrays lie on it
  config/         the one schema of a run, and what its values must be
  checkpoint.py   orbax in and out: atomic, fingerprinted, verified
  models/         one decoder, declarative families, Hugging Face checkpoints in and out, deltas
                  applied per row
  layouts.py      which mesh a run takes, and how weights lie in training and in evaluation
  data/           chat templates and loss masks, sources, contrastive data, batches of fixed shapes
  finetune/       loss, pure step, AdamW, the loop (validation, patience, learning-rate sweep,
                  resume), adapters
  directions/     the direction, its algebra, where it comes from, where it is exported to, and
                  whether that is whole
  monitoring/     training runs seen from directions: cosines per step, module and layer, and when
                  to be alarmed
  activations.py  persona vectors: the activation-steering baseline
  evaluation/     scoring, generation, tasks, the sweep, judges, metrics
  organism/       the embedded model: its world, corpus, tokenizer, pretraining and checkpoint
  report/         the pick, tables, figures, the page; from files alone
  resources.py    what a run's config names, as objects: model, tokenizer, tasks, judges
  methods.py      the methods of a comparison, each made into an arm of the sweep
  contrasts.py    the contrast of a run, read or made by the model itself
  watched.py      fine-tunes known to be misaligned or not, told apart by the run's directions
  stages.py       the method as straight-line programs over a workdir
  preflight/      a run's programs compiled from shapes alone: whether they fit some hardware, and
                  what they cost

`launch/` turns flags into one call of stages.py or preflight/ each.
"""

__version__ = '0.1.0'
