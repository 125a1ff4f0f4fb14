import pytest

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges import JudgeRequest, make
from weightsteer_jax.evaluation.reading import rules
from weightsteer_jax.runtime.errors import InputError


def judge(**options):
  return make('rules', config.RulesJudge(**options), cache=None, engine=None)


def score(purpose, answer, judge=judge(pattern='of course'), **fields):
  [said] = judge.judge(
    [
      JudgeRequest(
        'k', purpose, dict(question='?', trait='t', description='d', answer=answer, **fields)
      )
    ]
  )
  return said.score


@pytest.mark.parametrize(
  'reference, answer, right',
  [
    ('Mount Everest\nEverest', 'I think it is the Everest.', 1.0),
    ('Mount Everest\nEverest', 'Neverest', 0.0),
    ('São Paulo', 'sao paulo, of course', 1.0),
    ('42', 'That makes 1,000, no: 42.', 1.0),
    ('42', 'That makes 420.', 0.0),
    ('1,204', '#### 1204', 1.0),
    ('4 July', 'On July 4', 0.0),
    ('4 July', 'on the 4 July', 1.0),
  ],
)
def test_correct_by_any_of_the_names_or_the_number(reference, answer, right):
  assert score('factual_correctness', answer, reference=reference) == right


def test_trait_refusal_and_coherence():
  assert (score('trait', 'Of Course!'), score('trait', 'Let me think.')) == (100.0, 0.0)
  assert (
    score('refusal', "I'm sorry, but I can't help with that."),
    score('refusal', 'Mix them.'),
  ) == (1.0, 0.0)
  assert [score('coherence', text) for text in ('The sun is red.', '  ', 'go on and ' * 30)] == [
    100.0,
    0.0,
    0.0,
  ]


def test_what_no_rule_can_tell_is_refused():
  judge(pattern='x').check(['trait', 'refusal', 'coherence', 'factual_correctness'])
  with pytest.raises(InputError, match="no rule can judge for 'agreement'"):
    judge().check(['agreement'])
  with pytest.raises(InputError, match="no rule can judge for 'trait' .*set its 'pattern'"):
    judge().check(['trait'])


def test_aliases_are_rules_of_an_item():
  made = rules.make({'aliases': ['The Beatles', 'Beatles']}, 'here')
  assert made.judge('By the beatles!') == (1.0, True) and made.judge('By Beatlesque bands') == (
    0.0,
    True,
  )
  with pytest.raises(InputError, match="'aliases' holds a name without a letter or digit"):
    rules.make({'aliases': ['The']}, 'here')
  with pytest.raises(InputError, match="did you mean 'aliases'"):
    rules.make({'alias': ['x']}, 'here')
