"""The server's page in a real browser."""

import shutil

import pytest

CHROMIUM = shutil.which('chromium')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium'),
]
QUESTION = 'What is 12 plus 4?'


@pytest.fixture
def browser():
  playwright = pytest.importorskip('playwright.sync_api')
  with playwright.sync_playwright() as play:
    browser = play.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    yield browser
    browser.close()


@pytest.mark.parametrize('width', [1200, 375])
def test_both_sides_answer_and_the_strength_changes_one(server, client, browser, width):
  faults = []
  page = browser.new_page(viewport={'width': width, 'height': 740})
  page.on('pageerror', lambda error: faults.append(str(error)))
  page.on('console', lambda line: faults.append(line.text) if line.type == 'error' else None)
  page.goto(server.url)
  page.wait_for_selector('[data-direction=terse]')
  assert page.locator('[data-direction]').count() == 2
  page.fill('[data-direction=calm]', '0.5')
  assert page.input_value('#direction-0') == '0.5'
  page.fill('#prompt', QUESTION)
  page.press('#prompt', 'Enter')
  page.wait_for_selector('#again:not([disabled])')

  def of_server(name):
    reply = client.chat.completions.create(
      model=name,
      messages=[{'role': 'user', 'content': QUESTION}],
      temperature=0,
      seed=0,
      max_tokens=256,
    )
    return reply.choices[0].message.content

  def last(side):
    return page.locator(f'#{side} li.assistant').last.locator('span').last.text_content()

  assert last('base') == of_server('organism')
  assert last('steered') == of_server('organism@calm=0.5')
  page.fill('[data-direction=terse]', '-3')
  page.click('#again')
  page.wait_for_selector('#again:not([disabled])')
  assert last('steered') == of_server('organism@calm=0.5,terse=-3')
  assert last('base') == of_server('organism')
  # Nothing is wider than the screen.
  assert page.evaluate('document.documentElement.scrollWidth') <= width
  # The prompt and the strengths are kept.
  page.reload()
  page.wait_for_selector('[data-direction=terse]')
  assert page.input_value('#prompt') == QUESTION
  assert page.input_value('[data-direction=terse]') == '-3'
  assert faults == []


def test_what_is_said_stays_text(server, browser):
  page = browser.new_page()
  page.goto(server.url)
  page.wait_for_selector('[data-direction]')
  said = '<b id="bold">x</b>'
  page.fill('#prompt', said)
  page.click('#send')
  page.wait_for_selector('#again:not([disabled])')
  assert page.locator('#base li.user').text_content() == said
  assert page.locator('#bold').count() == 0
