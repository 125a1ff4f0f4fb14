"""The schema of a run: an unknown key, a wrong type or an impossible value is named in full."""

import dataclasses
import json

import ml_collections
import pytest

from weightsteer_jax import config as schema
from weightsteer_jax.runtime.errors import InputError


def base() -> ml_collections.ConfigDict:
  """A config that is complete: the defaults, some data, and one task."""
  config = schema.base_config()
  config.data.positive = 'plus.jsonl'
  config.data.negative = 'minus.jsonl'
  config.tasks.opinions = schema.task(items='organism:opinions', role='behaviour')
  return config


def changed(**keys) -> dict:
  """The complete config as plain values, with 'section__key' set."""
  config = base().to_dict()
  for key, value in keys.items():
    *sections, name = key.split('__')
    node = config
    for section in sections:
      node = node[section]
    node[name] = value
  return config


def test_defaults_are_those_of_the_dataclasses():
  run = schema.resolve(base())
  for name, section in (
    ('finetune', schema.FineTune()),
    ('sweep', schema.Sweep()),
    ('model', schema.ModelChoice()),
  ):
    assert getattr(run, name) == section
  assert run.tasks['opinions'] == schema.ChoiceTask(items='organism:opinions', role='behaviour')


def test_a_run_survives_json_and_config_dicts():
  config = base()
  config.finetune.learning_rates = (1e-4, 3e-4)
  config.sweep.alphas = (0.0, 1.0)
  config.name = 'round-trip'
  run = schema.resolve(config)
  assert run.finetune.learning_rates == (1e-4, 3e-4)
  assert schema.resolve(json.loads(json.dumps(schema.to_dict(run)))) == run
  assert schema.resolve(ml_collections.ConfigDict(schema.to_dict(run))) == run
  assert schema.resolve(ml_collections.FrozenConfigDict(config)) == run


@pytest.mark.parametrize(
  'keys, message',
  [
    (dict(finetunse=1), "'finetunse' (did you mean 'finetune'?)"),
    (
      dict(finetune__learning_rate=1e-5),
      "'finetune.learning_rate' (did you mean 'learning_rates'?)",
    ),
    (dict(model__dtypes='float32'), "'model.dtypes' (did you mean 'dtype'?)"),
    (dict(data__questoins='x'), "'data.questoins' (did you mean 'questions'?)"),
    (dict(sweep__alpha=(0.0,)), "'sweep.alpha' (did you mean 'alphas'?)"),
    (dict(tasks__opinions__itmes='x'), "'tasks.opinions.itmes' (did you mean 'items'?)"),
  ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(keys, message):
  with pytest.raises(InputError) as error:
    schema.resolve(changed(**keys))
  assert 'unknown config key ' + message in str(error.value)


@pytest.mark.parametrize(
  'keys, message',
  [
    (dict(seed=1.5), "'seed' is 1.5, expected int"),
    (dict(seed=True), "'seed' is True, expected int"),
    (dict(seed='1'), "'seed' is '1', expected int"),
    (dict(name=7), "'name' is 7, expected str"),
    (dict(name=None), "'name' is None, expected str"),
    (dict(finetune__remat=True), "'finetune.remat' is True, expected str"),
    (dict(finetune__lora_alpha='16'), "'finetune.lora_alpha' is '16', expected float"),
    (dict(finetune__lora_alpha=True), "'finetune.lora_alpha' is True, expected float"),
    (
      dict(finetune__learning_rates='1e-5'),
      "'finetune.learning_rates' is '1e-5', expected numbers",
    ),
    (
      dict(finetune__learning_rates=(1e-5, None)),
      "'finetune.learning_rates' is None, expected float",
    ),
    (dict(sweep__alphas=(0.0, float('nan'))), "'sweep.alphas' is nan, expected a finite number"),
    (dict(sweep__alphas=(0.0, float('inf'))), "'sweep.alphas' is inf, expected a finite number"),
    (dict(finetune__epochs=float('nan')), "'finetune.epochs' is nan"),
    (dict(finetune=3), "'finetune' is 3, expected a section with the keys of FineTune"),
    (dict(model='organism'), "'model' is 'organism', expected a section"),
    (dict(tasks=3), "'tasks' is 3, expected named sections"),
    (
      dict(tasks__opinions='organism:opinions'),
      "'tasks.opinions' is 'organism:opinions', expected a section with the keys of Task",
    ),
  ],
)
def test_a_value_of_the_wrong_type_is_named(keys, message):
  with pytest.raises(InputError) as error:
    schema.resolve(changed(**keys))
  assert message in str(error.value)


@pytest.mark.parametrize(
  'keys, message',
  [
    (dict(name='../up'), "'name' is '../up'"),
    (dict(name='.hidden'), "'name'"),
    (dict(name=''), "'name'"),
    (dict(model__dtype='bfloat'), "did you mean 'bfloat16'"),
    (dict(data__negative=''), 'both data.positive and data.negative'),
    (dict(data__validation_fraction=0.0), "'data.validation_fraction' is 0.0"),
    (dict(data__validation_fraction=1), "'data.validation_fraction' is 1.0"),
    (dict(data__samples=0), "'data.samples' is 0"),
    (dict(data__max_new_tokens=0), "'data.max_new_tokens' is 0"),
    (dict(data__max_length=-1), "'data.max_length' is -1"),
    (dict(data__num_questions=-1), "'data.num_questions' is -1"),
    (dict(data__temperature=-0.1), "'data.temperature' is -0.1"),
    (dict(data__temperature=1e-46), "'data.temperature' is 1e-46"),
    (dict(tasks__opinions__temperature=1e39), "'tasks.opinions.temperature' is 1e+39"),
    (dict(tasks__opinions__top_k=2**31), "'tasks.opinions.top_k' is 2147483648"),
    (dict(tasks__opinions__seed=-1), "'tasks.opinions.seed' is -1"),
    (dict(seed=2**32), "'seed' is 4294967296"),
    (dict(sweep__seed=-1), "'sweep.seed' is -1"),
    (dict(finetune__steps=3, finetune__epochs=-1), "'finetune.epochs' is -1.0"),
    (dict(data__positive_filter='('), "'data.positive_filter'"),
    (dict(finetune__kind='loras'), "did you mean 'lora'"),
    (
      dict(finetune__remat='dot'),
      "'finetune.remat' is 'dot', expected one of auto, none, dots, full (did you mean 'dots'?)",
    ),
    (dict(finetune__together='yes'), "'finetune.together' is 'yes', expected one of auto, on, off"),
    (dict(finetune__rank=0), "'finetune.rank' is 0"),
    (
      dict(finetune__kind='bias', finetune__targets=('q_proj',)),
      "'finetune.targets' is ('q_proj',)",
    ),
    (dict(finetune__targets=('gate', 'gate')), "'finetune.targets' is ('gate', 'gate')"),
    (dict(finetune__learning_rates=()), "'finetune.learning_rates'"),
    (dict(finetune__learning_rates=(1e-5, 0.0)), "'finetune.learning_rates'"),
    (
      dict(finetune__batch_size=6, finetune__accumulation=4),
      'a divisor of finetune.batch_size = 6',
    ),
    (dict(finetune__steps=-1), "'finetune.steps' is -1"),
    (dict(finetune__steps=0, finetune__epochs=0.0), "'finetune.epochs' is 0.0"),
    (dict(finetune__dropout=1.0), "'finetune.dropout' is 1.0"),
    (dict(finetune__clip_norm=0.0), "'finetune.clip_norm' is 0.0"),
    (dict(finetune__beta2=1.0), "'finetune.beta2' is 1.0"),
    (dict(finetune__epsilon=0.0), "'finetune.epsilon' is 0.0"),
    (dict(finetune__lora_alpha=0.0), "'finetune.lora_alpha' is 0.0"),
    (dict(sweep__alphas=()), "'sweep.alphas'"),
    (dict(sweep__alphas=(1.0, 1)), 'each strength once'),
    (dict(sweep__batch_size=0), "'sweep.batch_size' is 0"),
    (dict(sweep__tolerance=-0.1), "'sweep.tolerance' is -0.1"),
    (dict(tasks__opinions__role='behavior'), "did you mean 'behaviour'"),
    (dict(tasks__opinions__kind='choices'), "did you mean 'choice'"),
    (dict(tasks__opinions__n=-1), "'tasks.opinions.n' is -1"),
    (dict(tasks__opinions__top_p=0.0), "'tasks.opinions.top_p' is 0.0"),
    (dict(tasks__opinions__samples=0), "'tasks.opinions.samples' is 0"),
  ],
)
def test_values_that_cannot_be_are_refused(keys, message):
  with pytest.raises(InputError) as error:
    schema.resolve(changed(**keys))
  assert message in str(error.value)


def test_a_task_needs_items_and_a_role():
  config = base()
  config.tasks.facts = schema.task(items='facts.jsonl')
  with pytest.raises(InputError, match="'tasks.facts.role' is required"):
    schema.resolve(config)


def test_tuples_as_the_command_line_gives_them_become_floats():
  """absl turns `--config.sweep.alphas='-1,0,1'` into integers."""
  config = base()
  config.sweep.alphas = (-1, 0, 1)
  config.finetune.lora_alpha = 8
  run = schema.resolve(config.to_dict() | {'finetune': {'learning_rates': [1], 'lora_alpha': 8}})
  assert run.sweep.alphas == (-1.0, 0.0, 1.0)
  assert all(type(alpha) is float for alpha in run.sweep.alphas)
  assert run.finetune.learning_rates == (1.0,)
  assert type(run.finetune.learning_rates[0]) is float
  assert type(run.finetune.lora_alpha) is float


def test_one_number_in_place_of_several_is_one_number():
  assert schema.resolve(changed(sweep__alphas=1)).sweep.alphas == (1.0,)


def test_a_run_cannot_be_changed():
  run = schema.resolve(base())
  with pytest.raises(dataclasses.FrozenInstanceError):
    run.seed = 1
  with pytest.raises(TypeError):
    run.tasks['new'] = schema.ChoiceTask(items='x', role='behaviour')


def with_judges(**options):
  c = schema.base_config()
  c.data.positive = c.data.negative = 'x.jsonl'
  c.judges.zoe = schema.judge(**{'model': 'm', **options})
  c.judges.adam = schema.judge(kind='rules')
  return c


def test_judges_keep_the_order_in_which_they_are_named():
  assert list(schema.resolve(with_judges()).judges) == ['zoe', 'adam']


@pytest.mark.parametrize(
  'parameters, name',
  [
    ('{"api_key": "word"}', 'api_key'),
    ('{"api\\u005fKey": "word"}', 'api_Key'),
    ('{"extra_body": [{"X-API-Key": "word"}]}', 'extra_body.0.X-API-Key'),
    ('{"extra_headers": {"X-Mine": "word"}}', 'extra_headers'),
    ('{"a": {"Authorization": "word"}}', 'a.Authorization'),
    ('{"token": "word"}', 'token'),
    ('{"user": "Bearer word-word"}', 'user'),
    ('{"user": "{\\"api-key\\": \\"word\\"}"}', 'user'),
  ],
)
def test_a_judge_s_parameters_hold_no_secret(parameters, name):
  with pytest.raises(InputError, match='judges.zoe.parameters.*key_variable') as raised:
    schema.resolve(with_judges(parameters=parameters))
  assert f"'{name}'" in str(raised.value) and 'word' not in str(raised.value)


def test_parameters_without_secrets_are_taken():
  parameters = '{"max_tokens": null, "logit_bias": {"50": 1}, "user": "token", "stop": ["key: "]}'
  assert schema.resolve(with_judges(parameters=parameters)).judges['zoe'].parameters == parameters


SECTIONS = {
  'tasks': (schema.task, schema.TASK_KINDS, {'items': 'x', 'role': 'behaviour'}),
  'arms': (schema.arm, schema.ARM_KINDS, {}),
  'judges': (schema.judge, schema.JUDGE_KINDS, {}),
}
# What a kind needs to be whole.
NEEDED = {
  'prompts': {'positive_prompts': ('Be kind.',)},
  'activation': {'layer': '2'},
  'endpoint': {'model': 'm'},
  'model': {'model': 'm'},
}
EVERY_KIND = [(section, kind) for section in SECTIONS for kind in SECTIONS[section][1]]


def with_section(section, options):
  """A complete config as plain values, with a section of one of the kinds, named 'a'."""
  config = changed(finetune__keep_steps=True, task_model__data='task.jsonl')
  config[section]['a'] = options
  return config


def every_default(section):
  """The defaults of all kinds in one section, as versions before the kinds wrote config.json."""
  _, kinds, _ = SECTIONS[section]
  values = {}
  for cls in kinds.values():
    for field in dataclasses.fields(cls):
      if field.default is not dataclasses.MISSING:
        values[field.name] = field.default
      elif field.default_factory is not dataclasses.MISSING:
        values[field.name] = field.default_factory()
  return values


@pytest.mark.parametrize('section, kind', EVERY_KIND)
def test_a_section_has_the_keys_of_all_kinds_with_their_defaults(section, kind):
  make, _, required = SECTIONS[section]
  made = make(kind=kind, **required)
  assert made.to_dict() == {**every_default(section), **required, 'kind': kind}


def test_a_flag_may_choose_another_kind_and_set_its_keys():
  config = base()
  config.judges.a = schema.judge(kind='endpoint', model='')
  # As --config.judges.a.kind=rules --config.judges.a.pattern=yes.
  config.update_from_flattened_dict({'judges.a.kind': 'rules', 'judges.a.pattern': 'yes'})
  judge = schema.resolve(config).judges['a']
  assert judge == schema.RulesJudge(kind='rules', pattern='yes')


@pytest.mark.parametrize('section, kind', EVERY_KIND)
def test_a_section_becomes_the_dataclass_of_its_kind_and_survives_json(section, kind):
  make, kinds, required = SECTIONS[section]
  fields = {**required, **NEEDED.get(kind, {})}
  run = schema.resolve(with_section(section, make(kind=kind, **fields).to_dict()))
  made = getattr(run, section)['a']
  assert type(made) is kinds[kind]
  assert made == kinds[kind](**fields, kind=kind)
  assert schema.resolve(json.loads(json.dumps(schema.to_dict(run)))) == run


@pytest.mark.parametrize('section, kind', EVERY_KIND)
def test_a_dump_of_every_kinds_defaults_is_a_section_of_any_kind(section, kind):
  _, kinds, required = SECTIONS[section]
  fields = {**required, **NEEDED.get(kind, {})}
  dump = json.loads(json.dumps({**every_default(section), **fields, 'kind': kind}))
  run = schema.resolve(with_section(section, dump))
  assert getattr(run, section)['a'] == kinds[kind](**fields, kind=kind)


@pytest.mark.parametrize('section', SECTIONS)
def test_a_key_has_one_default_in_all_kinds(section):
  for cls in SECTIONS[section][1].values():
    for field in dataclasses.fields(cls):
      if field.name != 'kind' and field.default is not dataclasses.MISSING:
        assert field.default == every_default(section)[field.name]


@pytest.mark.parametrize(
  'section, options, message',
  [
    (
      'judges',
      {'kind': 'rules', 'model': 'gpt-4o'},
      "'judges.a.model' is 'gpt-4o', but 'model' is a key of the kind endpoint or model, and "
      "'judges.a.kind' is 'rules', with the keys kind, pattern",
    ),
    ('judges', {'model': 'm', 'pattern': 'x'}, "'pattern' is a key of the kind rules, and"),
    ('judges', {'kind': 'model', 'model': 'm', 'retries': 1}, "a key of the kind endpoint, and"),
    (
      'arms',
      {'layer': 'all'},
      "'layer' is a key of the kind activation, and 'arms.a.kind' is 'dir",
    ),
    ('arms', {'kind': 'positive', 'upsample': 2.0}, "'upsample' is a key of the kind joint"),
    ('arms', {'layer': 3}, "'layer' is a key of the kind activation"),
    (
      'arms',
      {'kind': 'prompts', 'positive_prompts': ('p',), 'finetune': 'bias'},
      "a key of the kind direction or positive or negative or finetune or joint, and",
    ),
    ('tasks', {'temperature': 1.0}, "'tasks.a.temperature' is 1.0, but"),
    (
      'tasks',
      {'kind': 'mmlu', 'form': 'letter'},
      "'form' is a key of the kind sycophancy_facts or",
    ),
    ('tasks', {'kind': 'generate', 'columns': ['a=b']}, "'tasks.a.columns' is ['a=b'], but"),
    ('tasks', {'kind': 'gcd', 'trait': 'evil'}, "'trait' is a key of the kind trait, and"),
  ],
)
def test_a_key_of_another_kind_that_is_set_is_refused_by_name(section, options, message):
  with pytest.raises(InputError) as error:
    schema.resolve(with_section(section, {**SECTIONS[section][2], **options}))
  assert message in str(error.value)


def test_a_key_that_no_kind_knows_is_unknown_whatever_the_kind():
  with pytest.raises(InputError) as error:
    schema.resolve(with_section('judges', {'kind': 'rules', 'patern': 'x'}))
  assert "unknown config key 'judges.a.patern' (did you mean 'pattern'?)" in str(error.value)


@pytest.mark.parametrize('kind', ['rule', 7])
def test_a_kind_that_nobody_knows_is_refused_by_name(kind):
  with pytest.raises(InputError, match="'judges.a.kind' is "):
    schema.resolve(with_section('judges', schema.judge(kind=kind, model='m').to_dict()))


@pytest.mark.parametrize(
  'options, message',
  [
    ({'kind': 'endpiont'}, "did you mean 'endpoint'"),
    ({'model': ''}, 'a model to judge with'),
    ({'cost_cap': 1.0}, 'prices to count by'),
    ({'parameters': '{'}, 'is no JSON'),
    ({'parameters': '[]'}, 'a JSON object'),
    ({'kind': 'rules', 'model': '', 'pattern': '('}, 'no regular expression'),
    ({'floor': 1.5}, 'a probability'),
    ({'concurrency': 0}, '1 or more'),
    ({'top_logprobs': 21}, '0 to 20'),
    ({'timeout_s': 0.0}, 'seconds'),
  ],
)
def test_a_judge_that_cannot_be_is_refused(options, message):
  with pytest.raises(InputError, match=message):
    schema.resolve(with_judges(**options))


def test_data_from_a_trait_needs_a_judge_and_nothing_beside_it():
  c = schema.base_config()
  c.data.trait = 'evil.json'
  with pytest.raises(InputError, match='a judge of the trait'):
    schema.resolve(c)
  c.judges.words = schema.judge(kind='rules', pattern='x')
  assert schema.resolve(c).data.trait == 'evil.json'
  for key, value in (('judge', 'word'), ('questions', 'q.jsonl'), ('evaluation_share', 1.0)):
    c = schema.base_config()
    c.data.trait, c.judges.words, c.data[key] = 'evil.json', schema.judge(kind='rules'), value
    with pytest.raises(InputError, match=f'data.{"trait" if key == "questions" else key}'):
      schema.resolve(c)


def test_a_chat_template_has_free_keys():
  config = base()
  config.model.chat_template_args = {'enable_thinking': False, 'note': ['a', None]}
  run = schema.resolve(config)
  assert run.model.chat_template_args == {'enable_thinking': False, 'note': ['a', None]}
  # Through JSON and back, as config.json holds it.
  again = schema.resolve(json.loads(json.dumps(schema.to_dict(run))))
  assert again.model == run.model
  judge = schema.judge(kind='model', model='m', chat_template_args={'x': 1})
  config.judges.local = judge
  assert schema.resolve(config).judges['local'].chat_template_args == {'x': 1}


@pytest.mark.parametrize(
  'keys, message',
  [
    ({'model__chat_template_args': 3}, "'model.chat_template_args' is 3, expected a JSON object"),
    ({'model__chat_template_args': {'tools': []}}, "'tools' is set when"),
    ({'model__chat_date': '1 May'}, "'model.chat_date' is '1 May', expected a day, as in"),
    ({'model__chat_date': '2026-02-30'}, "'2026-02-30', expected a day"),
  ],
)
def test_what_no_chat_template_can_be_told(keys, message):
  with pytest.raises(InputError, match=message):
    schema.resolve(changed(**keys))
