"""A growing answer as text, with the two ways in which tokenizers spell characters in bytes."""

import pytest
import tokenizers
import transformers
from tokenizers import decoders, pre_tokenizers

from weightsteer_jax.interfaces.serving.texts import Answer

# Characters of two to four bytes, and a family that is several characters in one picture.
TEXTS = ('日本語のテキスト。', '🐴🐈‍⬛👩‍👩‍👧🎉 and é', 'plain, then 🎉🎉🎉🎉🎉 then plain')


def byte_level():
  """Bytes as GPT-2 and Qwen write them."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {character: i for i, character in enumerate(alphabet)}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def byte_fallback():
  """Letters as tokens and all else as <0xNN>, as sentencepiece of Llama 2 and Gemma has it."""
  letters = ['<unk>', '▁', *'abcdefghijklmnopqrstuvwxyz,.']
  names = [*letters, *(f'<0x{byte:02X}>' for byte in range(256))]
  vocab = {name: i for i, name in enumerate(names)}
  bpe = tokenizers.models.BPE(vocab, [], unk_token='<unk>', byte_fallback=True)
  made = tokenizers.Tokenizer(bpe)
  made.normalizer = tokenizers.normalizers.Replace(' ', '▁')
  made.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  )
  return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize('step', [1, 3])
@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize('make', [byte_level, byte_fallback])
def test_no_character_is_cut(make, text, step):
  tokenizer = make()
  tokens = tokenizer(text)['input_ids']
  assert len(tokens) > 20 and tokenizer.decode(tokens) == text
  answer = Answer(tokenizer, ())
  sent = []
  for count in range(step, len(tokens) + step, step):
    sent.append(answer.feed(tokens[:count], last=count >= len(tokens)).answer)
    assert text.startswith(''.join(sent))
  assert ''.join(sent) == text
  # It comes as it grows, and not in one piece at the end.
  assert sum(map(bool, sent)) > 3


@pytest.mark.parametrize('make', [byte_level, byte_fallback])
def test_a_stop_text_of_several_tokens_is_not_sent(make):
  tokenizer = make()
  tokens = tokenizer('🎉🎉🎉🎉 a 🐴🐈 b')['input_ids']
  answer = Answer(tokenizer, (), stops=('🐴🐈',))
  pieces = [answer.feed(tokens[:count], last=False).answer for count in range(1, len(tokens) + 1)]
  assert ''.join(pieces) == '🎉🎉🎉🎉 a ' and answer.is_over
