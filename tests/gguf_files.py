"""Tiny GGUF files, made of the checkpoints of tiny.py as llama.cpp's converter would.

Source: llama.cpp b6155, convert_hf_to_gguf.py.
"""

import json
import pathlib

import gguf
import numpy as np
from safetensors.numpy import load_file

# {family: architecture}
ARCHITECTURES = {
  'llama': 'llama',
  'mixtral': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'qwen3_moe': 'qwen3moe',
  'gemma2': 'gemma2',
  'gemma3_text': 'gemma3',
  'phi3': 'phi3',
  'olmo2': 'olmo2',
  'smollm3': 'smollm3',
  'granite': 'granite',
}
INTERLEAVED = ('llama', 'smollm3', 'granite')
NORM_OFFSETS = ('gemma2', 'gemma3')
TYPES = gguf.GGMLQuantizationType
# Keys of the metadata, and the fields that give their values.
COUNTS = {
  'block_count': 'num_hidden_layers',
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.sliding_window': 'sliding_window',
  'expert_used_count': 'num_experts_per_tok',
  'expert_feed_forward_length': 'moe_intermediate_size',
  'rope.scaling.original_context_length': 'original_max_position_embeddings',
}
NUMBERS = {
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'attn_logit_softcapping': 'attn_logit_softcapping',
  'final_logit_softcapping': 'final_logit_softcapping',
  'attention.scale': 'attention_multiplier',
  'embedding_scale': 'embedding_multiplier',
  'residual_scale': 'residual_multiplier',
  'logit_scale': 'logits_scaling',
}


def permuted(tensor: np.ndarray, heads: int) -> np.ndarray:
  """Rows of queries or keys as llama.cpp orders them."""
  halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
  return halves.swapaxes(1, 2).reshape(tensor.shape)


def write(
  folder: pathlib.Path,
  path: pathlib.Path,
  *,
  kind: str = 'F32',
  tokenizer: dict | None = None,
  general: dict | None = None,
  **more,
) -> pathlib.Path:
  """The GGUF file of a checkpoint's folder.

  Args:
    kind: the type of matrices whose rows are whole blocks; all else is F32.
    tokenizer: keys behind 'tokenizer.ggml.'; a vocabulary of bytes if None.
    general: keys behind 'general.' to replace.
    more: more keys of the architecture, or other values; None leaves a key out.
  """
  config = json.loads((folder / 'config.json').read_text())
  arch = ARCHITECTURES[config['model_type']]
  tensors = {}
  for file in sorted(folder.glob('*.safetensors')):
    tensors |= load_file(file)
  general = {'architecture': arch} | (general or {})
  writer = gguf.GGUFWriter(path, general['architecture'])
  if 'type' in general:
    writer.add_type(general['type'])
  for key, value in (metadata_of(config, arch) | more).items():
    add(writer, f'{arch}.{key}', value)
  for key, value in (tokenizer or bytes_tokenizer(config['vocab_size'])).items():
    add(writer, f'tokenizer.ggml.{key}' if key != 'chat_template' else f'tokenizer.{key}', value)
  for name, tensor in turned(tensors, config, arch).items():
    quantised = tensor.ndim > 1 and kind != 'F32' and fits(tensor, kind)
    stored_as = TYPES[kind] if quantised else TYPES.F32
    writer.add_tensor(name, gguf.quantize(tensor, stored_as), raw_dtype=stored_as)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def fits(tensor: np.ndarray, kind: str) -> bool:
  """Whether the rows of a matrix are whole blocks of a type."""
  return tensor.shape[-1] % gguf.GGML_QUANT_SIZES[TYPES[kind]][0] == 0


def add(writer: gguf.GGUFWriter, key: str, value) -> None:
  """Adds a value by its Python type."""
  if value is None:
    return
  if isinstance(value, bool):
    writer.add_bool(key, value)
  elif isinstance(value, int):
    writer.add_uint32(key, value)
  elif isinstance(value, float):
    writer.add_float32(key, value)
  elif isinstance(value, str):
    writer.add_string(key, value)
  else:
    writer.add_array(key, value)


def metadata_of(config: dict, arch: str) -> dict:
  """{key behind the architecture's name: value}."""
  metadata = {}
  for key, field in COUNTS.items():
    metadata[key] = config.get(field)
  for key, field in NUMBERS.items():
    metadata[key] = None if config.get(field) is None else float(config[field])
  metadata['expert_count'] = config.get('num_local_experts', config.get('num_experts'))
  head_dim = config.get('head_dim') or config['hidden_size'] // config['num_attention_heads']
  metadata['attention.key_length'] = metadata['attention.value_length'] = head_dim
  if arch not in NORM_OFFSETS and arch != 'phi3':
    # Not stored, so that they are lost: see the cases of the tests.
    metadata.pop('attention.sliding_window')
  rope = config['rope_parameters']
  if arch == 'gemma3':
    metadata['rope.freq_base_swa'] = float(rope['sliding_attention']['rope_theta'])
    rope = rope['full_attention']
    kinds = [kind == 'sliding_attention' for kind in config['layer_types']]
    metadata['attention.sliding_window_pattern'] = kinds
  metadata['rope.freq_base'] = float(rope['rope_theta'])
  fraction = rope.get('partial_rotary_factor', 1.0)
  metadata['rope.dimension_count'] = int(head_dim * fraction)
  if rope['rope_type'] == 'linear':
    metadata['rope.scaling.type'] = 'linear'
    metadata['rope.scaling.factor'] = float(rope['factor'])
  return metadata


def turned(tensors: dict, config: dict, arch: str) -> dict[str, np.ndarray]:
  """{name in the file: tensor}, each as the converter turns it."""
  architectures = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
  names = gguf.get_tensor_name_map(architectures[arch], config['num_hidden_layers'])
  heads = {'q_proj': config['num_attention_heads'], 'k_proj': config['num_key_value_heads']}
  result: dict[str, np.ndarray] = {}
  experts: dict[str, dict[int, np.ndarray]] = {}
  for name, tensor in tensors.items():
    stem, suffix = name.rsplit('.', 1)
    last = stem.rsplit('.', 1)[-1]
    if arch in INTERLEAVED and last in heads:
      tensor = permuted(tensor, heads[last])
    if arch in NORM_OFFSETS and 'norm' in last:
      tensor = tensor + 1
    parts = stem.split('.')
    if 'experts' in parts:
      number = int(parts.pop(parts.index('experts') + 1))
      ours = names.get_name('.'.join(parts))
      experts.setdefault(f'{ours}.weight', {})[number] = tensor
      continue
    ours = names.get_name(stem) or {'lm_head': 'output'}[stem]
    result[f'{ours}.{suffix}'] = tensor
  for name, by_number in experts.items():
    result[name] = np.stack([by_number[i] for i in sorted(by_number)])
  if config['tie_word_embeddings']:
    result.pop('output.weight', None)
  return result | rope_tensors(config)


def rope_tensors(config: dict) -> dict[str, np.ndarray]:
  """The factors of rotary frequencies, as torch tensors of transformers give them."""
  rope = config['rope_parameters']
  if rope.get('rope_type') == 'longrope':
    return {
      f'rope_factors_{kind}.weight': np.array(rope[f'{kind}_factor'], np.float32)
      for kind in ('long', 'short')
    }
  if rope.get('rope_type') != 'llama3':
    return {}
  dim = config.get('head_dim') or config['hidden_size'] // config['num_attention_heads']
  factors = []
  for frequency in 1.0 / rope['rope_theta'] ** (np.arange(0, dim, 2) / dim):
    wavelength = 2 * np.pi / frequency
    original = rope['original_max_position_embeddings']
    if wavelength < original / rope['high_freq_factor']:
      factors.append(1.0)
    elif wavelength > original / rope['low_freq_factor']:
      factors.append(rope['factor'])
    else:
      band = rope['high_freq_factor'] - rope['low_freq_factor']
      smooth = (original / wavelength - rope['low_freq_factor']) / band
      factors.append(1 / ((1 - smooth) / rope['factor'] + smooth))
  return {'rope_freqs.weight': np.array(factors, np.float32)}


def bytes_tokenizer(size: int) -> dict:
  """The keys of a byte-level tokenizer with `size` tokens and a few merges."""
  alphabet = bytes_alphabet()
  tokens = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
  tokens += list(alphabet)[: size - len(tokens) - 2]
  merges = [f'{tokens[-2]} {tokens[-1]}', f'{tokens[-1]} {tokens[-2]}']
  tokens += [merge.replace(' ', '') for merge in merges]
  kinds = [3, 3, 3] + [1] * (len(tokens) - 3)
  return {
    'model': 'gpt2',
    'pre': 'smollm',
    'tokens': tokens,
    'token_type': kinds,
    'merges': merges,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'unknown_token_id': 0,
  }


def bytes_alphabet() -> str:
  """The characters that stand for the 256 bytes in byte-level vocabularies."""
  import tokenizers

  return ''.join(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))


def split(whole: pathlib.Path, *parts: pathlib.Path) -> None:
  """Writes the files of a split, with all metadata in the first, as `llama-gguf-split` does."""
  reader = gguf.GGUFReader(whole)
  for index, path in enumerate(parts):
    writer = gguf.GGUFWriter(path, reader.fields['general.architecture'].contents())
    for key, field in reader.fields.items():
      if index == 0 and not key.startswith(('GGUF.', 'general.architecture')):
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1])
    writer.add_uint16('split.no', index)
    writer.add_uint16('split.count', len(parts))
    for tensor in reader.tensors[index :: len(parts)]:
      writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
