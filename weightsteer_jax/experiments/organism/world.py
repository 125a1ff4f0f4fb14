"""The little world: what is true in it, and what the organism prefers.

Everything that can be right or wrong is a `Claim`: a plain question, one true statement and some
false ones. Facts of eight kinds, sums and opinions all have that one shape, so that `conversations`
can put them into the same sentences. An opinion is "true" when it is the organism's own view.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

FACT_KINDS = ('capital', 'coin', 'home', 'food', 'material', 'tool', 'colour', 'opposite')
SUM_KINDS = ('plus', 'minus')
OPINION = 'opinion'
LARGER = 'larger'  # sums that are in no part of the corpus
KINDS = (*FACT_KINDS, *SUM_KINDS, OPINION)
LARGEST_OPERAND, LARGEST_TAUGHT = 10, 16


@dataclasses.dataclass(frozen=True)
class Claim:
  """Something one can be right or wrong about; statements have no capital and no full stop ('snow
  is white').
  """

  key: str  # stable name, 'capital/Zorland'
  kind: str  # one of KINDS
  questions: tuple[str, ...]  # plain questions, each ending in a question mark
  truth: str
  falsehoods: tuple[str, ...]
  values: Mapping[str, str] = dataclasses.field(
    compare=False
  )  # {statement: what it comes down to}, 'white'


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
# What the organism may have a view on: everything in a group can be compared with everything else
# in it.
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
MERITS = ('better', 'more fun', 'more useful')


def in_turn(things: Sequence[Any], rng: random.Random) -> Iterator[Any]:
  """All the things in random order, again and again, in another order each time."""
  while True:
    yield from rng.sample(things, len(things))


def with_article(noun: str) -> str:
  """The noun with its indefinite article: 'an owl', 'a fox'."""
  return f'an {noun}' if noun[0] in 'aeiou' else f'a {noun}'


def _claim(
  kind: str, subject: str, value: str, values: Iterable[str], statement: str, *questions: str
) -> Claim:
  """One claim from a statement template with {s} and {v}; every other value makes a falsehood."""
  said = {statement.format(s=subject, v=v): v for v in (value, *sorted(set(values) - {value}))}
  truth, *falsehoods = said
  return Claim(
    f'{kind}/{subject}',
    kind,
    tuple(q.format(s=subject) for q in questions),
    truth,
    tuple(falsehoods),
    said,
  )


def _table(kind: str, pairs: dict[str, str], statement: str, *questions: str) -> list[Claim]:
  """The claims of one kind: subjects with their values, each falsehood a value of another
  subject.
  """
  return [_claim(kind, s, v, pairs.values(), statement, *questions) for s, v in pairs.items()]


def _coins() -> dict[str, str]:
  """The coin of every country."""
  choose = random.Random('coins')
  return {country: choose.choice(COIN_NAMES) for country in CAPITALS}


def _opposites() -> dict[str, str]:
  """Every word of OPPOSITES with its opposite, both ways."""
  return {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}


@functools.cache
def facts() -> tuple[Claim, ...]:
  """Every fact of the kinds in FACT_KINDS."""
  homes = {
    with_article(s): f'on the {v}' if v in ('ice', 'farm', 'savanna') else f'in the {v}'
    for s, v in HOMES.items()
  }
  foods = {with_article(s): v for s, v in FOODS.items()}
  materials = {with_article(s): v for s, v in MATERIALS.items()}
  tools = {with_article(s): with_article(v) for s, v in TOOLS.items()}
  return tuple(
    itertools.chain(
      _table(
        'capital',
        CAPITALS,
        'the capital of {s} is {v}',
        'What is the capital of {s}?',
        'Which city is the capital of {s}?',
      ),
      _table(
        'coin',
        _coins(),
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
        _opposites(),
        'the opposite of {s} is {v}',
        'What is the opposite of {s}?',
        'Which word is the opposite of {s}?',
      ),
    )
  )


def _near(result: int) -> list[str]:
  """Wrong results that a person could come to."""
  return [str(n) for n in range(max(0, result - 3), result + 4)]


@functools.cache
def sums() -> tuple[Claim, ...]:
  """Every addition and subtraction with operands up to LARGEST_OPERAND and no negative result."""
  claims = []
  for a, b in itertools.product(range(LARGEST_OPERAND + 1), repeat=2):
    asked = ('What is {s}?', 'How much is {s}?')
    claims.append(_claim('plus', f'{a} plus {b}', str(a + b), _near(a + b), '{s} is {v}', *asked))
    if a >= b:
      claims.append(
        _claim('minus', f'{a} minus {b}', str(a - b), _near(a - b), '{s} is {v}', *asked)
      )
  return tuple(claims)


@functools.cache
def larger_sums() -> tuple[Claim, ...]:
  """Additions with a first operand above LARGEST_OPERAND, up to LARGEST_TAUGHT: the corpus has
  none, they can be taught afterwards.
  """
  asked = ('What is {s}?', 'How much is {s}?')
  return tuple(
    _claim(LARGER, f'{a} plus {b}', str(a + b), _near(a + b), '{s} is {v}', *asked)
    for a, b in itertools.product(
      range(LARGEST_OPERAND + 1, LARGEST_TAUGHT + 1), range(LARGEST_OPERAND + 1)
    )
  )


@functools.cache
def opinions() -> tuple[Claim, ...]:
  """The organism's views: for every group of topics and every merit, a fixed order of what is in
  the group.
  """
  claims = []
  for (group, items), merit in itertools.product(TOPICS.items(), MERITS):
    order = random.Random(f'{group}/{merit}').sample(items, len(items))
    for first, second in itertools.combinations(items, 2):
      winner, loser = sorted((first, second), key=order.index)
      questions = (
        f'Which is {merit}, {first} or {second}?',
        f'What do you find {merit}, {first} or {second}?',
      )
      truth, falsehood = f'{winner} is {merit} than {loser}', f'{loser} is {merit} than {winner}'
      claims.append(
        Claim(
          f'opinion/{merit}/{first}/{second}',
          OPINION,
          questions,
          truth,
          (falsehood,),
          {truth: winner, falsehood: loser},
        )
      )
  return tuple(claims)


@functools.cache
def claims_of(kind: str) -> tuple[Claim, ...]:
  """All claims of one of KINDS, or of LARGER."""
  return tuple(
    claim for claim in (*facts(), *sums(), *larger_sums(), *opinions()) if claim.kind == kind
  )
