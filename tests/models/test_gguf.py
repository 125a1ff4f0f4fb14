"""GGUF files as models: logits of the checkpoint that the file was made of, and of transformers'
own reading."""

import gguf_files
import numpy as np
import pytest
import tiny

from weightsteer_jax import models
from weightsteer_jax.models import gguf

# What a file has no key for: the windows of these families, other activations than the usual one,
# biases of some layers, and the like.
REPLACED = dict(
  llama2={},
  llama3={},
  llama32_tied={},
  llama_biases=dict(hidden_act='silu'),
  qwen2=dict(hidden_act='silu', rope_parameters=dict(rope_type='default', rope_theta=600.0)),
  qwen2_tied=dict(hidden_act='silu'),
  qwen3=dict(use_sliding_window=False),
  gemma2=dict(attention_bias=False, query_pre_attn_scalar=8),
  gemma3=dict(query_pre_attn_scalar=12),
  olmo2=dict(attention_bias=False),
  phi3={},
  phi3_short={},
  phi3_long={},
  smollm3=dict(use_sliding_window=False, num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0]),
  granite=dict(attention_bias=False, mlp_bias=False),
  qwen3_moe=dict(use_sliding_window=False, attention_bias=False),
  mixtral=dict(sliding_window=None),
)


@pytest.mark.parametrize('name', REPLACED)
def test_a_file_has_the_logits_of_the_checkpoint_it_was_made_of(name, tmp_path):
  fields = tiny.CASES[name] | REPLACED[name]
  checkpoint = tiny.make(tmp_path / 'hf', **fields)
  path = gguf_files.write(checkpoint.folder, tmp_path / 'model.gguf')
  folder = gguf.write_folder(path, tmp_path / 'folder')
  model = models.load(folder)
  tokens = tiny.tokens((2, 30))
  ours = np.asarray(tiny.forward(model.config, model.params, tokens))
  np.testing.assert_allclose(ours, checkpoint.torch_logits(tokens), atol=1e-4)
