"""`python -m weightsteer_jax.models.families` prints docs/families.md."""

from weightsteer_jax.models.families.page import page

if __name__ == '__main__':
  print(page(), end='')
