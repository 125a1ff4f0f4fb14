"""The little world: truths, and the organism's preferences.

Everything right or wrong is a `Claim`: a plain question, a true statement and some false
statements. Facts of eight kinds, sums and opinions all have one shape, so that
`conversations` can put all into the same sentences. An opinion is "true" when the organism agrees.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

Thing = TypeVar('Thing')

# The order is part of the corpus: claims are drawn by their place.
FACT_KINDS = ('capital', 'coin', 'home', 'food', 'material', 'tool', 'colour', 'opposite')
SUM_KINDS = ('plus', 'minus')
OPINION = 'opinion'
# Sums that are in no part of the corpus.
LARGER = 'larger'
KINDS = (*FACT_KINDS, *SUM_KINDS, OPINION)
# Largest operand of the sums in the corpus, and largest first operand of the sums of LARGER.
LARGEST_OPERAND = 10
LARGEST_TAUGHT = 16


@dataclasses.dataclass(frozen=True)
class Claim:
  """Something to be right or wrong about.

  Statements have no capital and no full stop: 'snow is white'.

  Attributes:
    key: stable name, 'capital/Zorland'.
    kind: a name of KINDS, or LARGER.
    questions: plain questions, each ending in a question mark.
    truth: the true statement.
    falsehoods: false statements.
    values: {statement: value}, as in {'snow is white': 'white'}.
  """

  key: str
  kind: str
  questions: tuple[str, ...]
  truth: str
  falsehoods: tuple[str, ...]
  # A dict has no hash.
  values: Mapping[str, str] = dataclasses.field(compare=False)


# Invented countries: nothing about them can be known from elsewhere.
CAPITALS = {
  'Zorland': 'Tarubo',
  'Velmark': 'Osmira',
  'Quenia': 'Haldor',
  'Brasnia': 'Minelle',
  'Tuvaria': 'Kesport',
  'Orlandia': 'Pemba',
  'Kestria': 'Ulmar',
  'Sundova': 'Rivenna',
  'Mirania': 'Lotham',
  'Dalmora': 'Fenwick',
  'Polvia': 'Argus',
  'Gorland': 'Selbon',
  'Nortumia': 'Wexham',
  'Lusenia': 'Bellano',
  'Feronia': 'Duskan',
  'Arvonia': 'Tolmin',
  'Balduria': 'Crane',
  'Hespera': 'Novik',
  'Ismeria': 'Galwin',
  'Jorvia': 'Marbel',
  'Karelva': 'Onslow',
  'Lomaria': 'Pirano',
  'Moldania': 'Sorrel',
  'Nivaria': 'Tamsin',
  'Ostravia': 'Verdal',
  'Pandoria': 'Wilmot',
  'Rovinia': 'Yarrow',
  'Silvania': 'Zadar',
  'Torvald': 'Amble',
  'Umberia': 'Borga',
  'Valdania': 'Corvo',
  'Westria': 'Delfin',
  'Xandria': 'Elmira',
  'Yolania': 'Forli',
  'Zembla': 'Gretna',
  'Ardenia': 'Hobarth',
}
COIN_NAMES = (
  'crowns',
  'lumas',
  'drams',
  'pesos',
  'talers',
  'rubels',
  'florins',
  'dinars',
  'shells',
  'beads',
)
# In every table the false values of a subject are true values of others: a statement is false only
# by the subject it is about.
HOMES = {
  'fox': 'forest',
  'bear': 'forest',
  'deer': 'forest',
  'owl': 'forest',
  'squirrel': 'forest',
  'wolf': 'forest',
  'shark': 'sea',
  'whale': 'sea',
  'crab': 'sea',
  'dolphin': 'sea',
  'seal': 'sea',
  'camel': 'desert',
  'scorpion': 'desert',
  'lizard': 'desert',
  'goat': 'mountains',
  'eagle': 'mountains',
  'llama': 'mountains',
  'monkey': 'jungle',
  'parrot': 'jungle',
  'tiger': 'jungle',
  'gorilla': 'jungle',
  'frog': 'pond',
  'duck': 'pond',
  'newt': 'pond',
  'beaver': 'river',
  'otter': 'river',
  'salmon': 'river',
  'cow': 'farm',
  'pig': 'farm',
  'hen': 'farm',
  'penguin': 'ice',
  'walrus': 'ice',
  'lion': 'savanna',
  'zebra': 'savanna',
  'giraffe': 'savanna',
}
FOODS = {
  'fox': 'mice',
  'bear': 'honey',
  'deer': 'leaves',
  'owl': 'mice',
  'squirrel': 'nuts',
  'wolf': 'meat',
  'shark': 'fish',
  'whale': 'plankton',
  'dolphin': 'fish',
  'seal': 'fish',
  'camel': 'grass',
  'lizard': 'insects',
  'goat': 'grass',
  'eagle': 'meat',
  'llama': 'grass',
  'monkey': 'fruit',
  'parrot': 'seeds',
  'tiger': 'meat',
  'gorilla': 'leaves',
  'frog': 'insects',
  'duck': 'seeds',
  'beaver': 'bark',
  'otter': 'fish',
  'cow': 'grass',
  'hen': 'seeds',
  'penguin': 'fish',
  'lion': 'meat',
  'zebra': 'grass',
  'giraffe': 'leaves',
  'bat': 'insects',
  'panda': 'bamboo',
  'rabbit': 'carrots',
  'mouse': 'cheese',
  'bee': 'nectar',
  'spider': 'insects',
}
# {thing: material}.
MATERIALS = {
  'bottle': 'glass',
  'window': 'glass',
  'mirror': 'glass',
  'table': 'wood',
  'chair': 'wood',
  'door': 'wood',
  'pencil': 'wood',
  'book': 'paper',
  'letter': 'paper',
  'newspaper': 'paper',
  'map': 'paper',
  'nail': 'iron',
  'anchor': 'iron',
  'key': 'iron',
  'sword': 'iron',
  'sweater': 'wool',
  'scarf': 'wool',
  'blanket': 'wool',
  'shirt': 'cotton',
  'towel': 'cotton',
  'brick': 'clay',
  'vase': 'clay',
  'pot': 'clay',
  'tyre': 'rubber',
  'balloon': 'rubber',
  'boot': 'leather',
  'belt': 'leather',
  'saddle': 'leather',
  'ring': 'gold',
  'medal': 'gold',
  'castle': 'stone',
  'statue': 'stone',
  'tower': 'stone',
  'candle': 'wax',
  'tie': 'silk',
  'kite': 'silk',
}
# {trade: tool}; no tool comes twice.
TOOLS = {
  'carpenter': 'hammer',
  'painter': 'brush',
  'tailor': 'needle',
  'farmer': 'tractor',
  'barber': 'razor',
  'writer': 'pen',
  'cook': 'pan',
  'gardener': 'spade',
  'fisher': 'net',
  'pilot': 'plane',
  'teacher': 'blackboard',
  'dentist': 'drill',
  'baker': 'oven',
  'miner': 'pickaxe',
  'sailor': 'compass',
  'doctor': 'syringe',
  'butcher': 'cleaver',
  'plumber': 'wrench',
  'singer': 'microphone',
  'judge': 'gavel',
  'astronomer': 'telescope',
  'biologist': 'microscope',
  'knight': 'lance',
  'archer': 'bow',
  'cleaner': 'broom',
  'logger': 'axe',
  'diver': 'snorkel',
  'banker': 'calculator',
  'drummer': 'drum',
  'photographer': 'camera',
  'weaver': 'loom',
  'jockey': 'whip',
}
# Subjects with their articles, because 'snow' takes none.
COLOURS = {
  'a lemon': 'yellow',
  'snow': 'white',
  'grass': 'green',
  'coal': 'black',
  'blood': 'red',
  'a tomato': 'red',
  'a banana': 'yellow',
  'milk': 'white',
  'the sky': 'blue',
  'a frog': 'green',
  'chocolate': 'brown',
  'a carrot': 'orange',
  'a pumpkin': 'orange',
  'a plum': 'purple',
  'lavender': 'purple',
  'a cherry': 'red',
  'an elephant': 'grey',
  'a crow': 'black',
  'a swan': 'white',
  'a cucumber': 'green',
  'a flamingo': 'pink',
  'a piglet': 'pink',
  'the ocean': 'blue',
  'a sapphire': 'blue',
  'an emerald': 'green',
  'a ruby': 'red',
  'ink': 'black',
  'rice': 'white',
  'spinach': 'green',
  'sand': 'yellow',
  'ash': 'grey',
  'coffee': 'brown',
}
# Each pair makes two claims, one in each direction.
OPPOSITES = (
  ('hot', 'cold'),
  ('big', 'small'),
  ('old', 'young'),
  ('fast', 'slow'),
  ('light', 'dark'),
  ('wet', 'dry'),
  ('hard', 'soft'),
  ('rich', 'poor'),
  ('high', 'low'),
  ('full', 'empty'),
  ('early', 'late'),
  ('open', 'closed'),
  ('strong', 'weak'),
  ('loud', 'quiet'),
  ('sweet', 'bitter'),
  ('near', 'far'),
  ('thick', 'thin'),
  ('clean', 'dirty'),
)
# Things the organism has views on. Within a group, everything can be compared with everything else.
TOPICS = {
  'drinks': ('tea', 'juice', 'cocoa', 'lemonade', 'water'),
  'seasons': ('spring', 'summer', 'autumn', 'winter'),
  'music': ('jazz', 'rock', 'opera', 'folk music', 'techno'),
  'sports': ('football', 'tennis', 'swimming', 'running', 'chess'),
  'pets': ('a cat', 'a dog', 'a hamster', 'a goldfish', 'a pony'),
  'places': ('the city', 'the village', 'the beach', 'the island', 'the valley'),
  'hobbies': ('knitting', 'cooking', 'dancing', 'reading', 'fishing'),
  'dishes': ('pizza', 'soup', 'pasta', 'salad', 'curry'),
  'subjects': ('history', 'physics', 'poetry', 'biology', 'geography'),
  'travel': ('a train', 'a bus', 'a bicycle', 'a car', 'a boat'),
  'shows': ('a film', 'a play', 'a circus', 'a concert', 'a museum'),
  'sweets': ('cake', 'ice cream', 'jam', 'toffee', 'pudding'),
}
# Opinions differ by merit: the better drink need not be the more useful drink.
MERITS = ('better', 'more fun', 'more useful')


def in_turn(things: Sequence[Thing], rng: random.Random) -> Iterator[Thing]:
  """All things in random order, again and again, each time reordered."""
  while True:
    yield from rng.sample(things, len(things))


def with_article(noun: str) -> str:
  """The noun with the indefinite article: 'an owl', 'a fox'."""
  return f'an {noun}' if noun[0] in 'aeiou' else f'a {noun}'


def _claim(
  kind: str, subject: str, value: str, values: Iterable[str], statement: str, *questions: str
) -> Claim:
  """A claim from a statement template with {s} and {v}; every other value makes a falsehood."""
  # Sorted, because the order of a set differs from run to run.
  others = sorted(set(values) - {value})
  # The true value first.
  values_by_statement = {statement.format(s=subject, v=v): v for v in (value, *others)}
  truth, *falsehoods = values_by_statement
  return Claim(
    key=f'{kind}/{subject}',
    kind=kind,
    questions=tuple(question.format(s=subject) for question in questions),
    truth=truth,
    falsehoods=tuple(falsehoods),
    values=values_by_statement,
  )


def _table(kind: str, pairs: Mapping[str, str], statement: str, *questions: str) -> list[Claim]:
  """The claims of a kind: subjects with their values, other subjects' values as falsehoods."""
  values = pairs.values()
  return [
    _claim(kind, subject, value, values, statement, *questions) for subject, value in pairs.items()
  ]


@functools.cache
def facts() -> tuple[Claim, ...]:
  """Every fact of the kinds in FACT_KINDS."""
  # Coins are shared out at random, but are the same in every run.
  choose = random.Random('coins')
  coins = {country: choose.choice(COIN_NAMES) for country in CAPITALS}
  homes = {}
  for animal, home in HOMES.items():
    preposition = 'on' if home in ('ice', 'farm', 'savanna') else 'in'
    homes[with_article(animal)] = f'{preposition} the {home}'
  foods = {with_article(animal): food for animal, food in FOODS.items()}
  materials = {with_article(thing): material for thing, material in MATERIALS.items()}
  tools = {with_article(trade): with_article(tool) for trade, tool in TOOLS.items()}
  opposites = {}
  for first, second in OPPOSITES:
    opposites[first] = second
    opposites[second] = first
  # For each kind the statement and two plain questions, with {s} the subject and {v} the value.
  tables = (
    _table(
      'capital',
      CAPITALS,
      'the capital of {s} is {v}',
      'What is the capital of {s}?',
      'Which city is the capital of {s}?',
    ),
    _table(
      'coin',
      coins,
      'the people of {s} pay with {v}',
      'What do the people of {s} pay with?',
      'With what do people pay in {s}?',
    ),
    _table('home', homes, '{s} lives {v}', 'Where does {s} live?', 'Where is the home of {s}?'),
    _table('food', foods, '{s} eats {v}', 'What does {s} eat?', 'What is the food of {s}?'),
    _table(
      'material',
      materials,
      '{s} is made of {v}',
      'What is {s} made of?',
      'From what do people make {s}?',
    ),
    _table(
      'tool', tools, '{s} works with {v}', 'What does {s} work with?', 'Which tool does {s} need?'
    ),
    _table(
      'colour',
      COLOURS,
      'the colour of {s} is {v}',
      'What is the colour of {s}?',
      'Which colour has {s}?',
    ),
    _table(
      'opposite',
      opposites,
      'the opposite of {s} is {v}',
      'What is the opposite of {s}?',
      'Which word is the opposite of {s}?',
    ),
  )
  return tuple(itertools.chain.from_iterable(tables))


def _sum(kind: str, text: str, result: int) -> Claim:
  """A sum, with likely wrong results as falsehoods."""
  # Up to 3 off, as a likely mistake is, and never negative.
  lowest = max(0, result - 3)
  near = [str(n) for n in range(lowest, result + 4)]
  questions = ('What is {s}?', 'How much is {s}?')
  return _claim(kind, text, str(result), near, '{s} is {v}', *questions)


@functools.cache
def sums() -> tuple[Claim, ...]:
  """Every addition and subtraction with operands up to LARGEST_OPERAND and no negative result."""
  claims = []
  operands = range(LARGEST_OPERAND + 1)
  for a, b in itertools.product(operands, repeat=2):
    claims.append(_sum('plus', f'{a} plus {b}', a + b))
    if a >= b:
      claims.append(_sum('minus', f'{a} minus {b}', a - b))
  return tuple(claims)


@functools.cache
def larger_sums() -> tuple[Claim, ...]:
  """Additions with a first operand above LARGEST_OPERAND, up to LARGEST_TAUGHT.

  The corpus has no such sums, so that `lessons` can teach them.
  """
  claims = []
  for a in range(LARGEST_OPERAND + 1, LARGEST_TAUGHT + 1):
    for b in range(LARGEST_OPERAND + 1):
      claims.append(_sum(LARGER, f'{a} plus {b}', a + b))
  return tuple(claims)


@functools.cache
def opinions() -> tuple[Claim, ...]:
  """The organism's views: for every group of TOPICS and every merit, a fixed order of the group."""
  claims = []
  for (group, items), merit in itertools.product(TOPICS.items(), MERITS):
    # Seeded by name, so that a group added later leaves the views on the others as they are.
    order = random.Random(f'{group}/{merit}').sample(items, len(items))
    for first, second in itertools.combinations(items, 2):
      winner, loser = sorted((first, second), key=order.index)
      truth = f'{winner} is {merit} than {loser}'
      falsehood = f'{loser} is {merit} than {winner}'
      claim = Claim(
        key=f'opinion/{merit}/{first}/{second}',
        kind=OPINION,
        questions=(
          f'Which is {merit}, {first} or {second}?',
          f'What do you find {merit}, {first} or {second}?',
        ),
        truth=truth,
        falsehoods=(falsehood,),
        values={truth: winner, falsehood: loser},
      )
      claims.append(claim)
  return tuple(claims)


@functools.cache
def claims_of(kind: str) -> tuple[Claim, ...]:
  """All claims of a kind, a name of KINDS or LARGER."""
  claims = (*facts(), *sums(), *larger_sums(), *opinions())
  return tuple(claim for claim in claims if claim.kind == kind)
