"""How an answer is read: said, refused or chosen, right or wrong.

answers.py      an answer's status and fields, the same for all kinds of text
rules.py        rules that judge a text without a model; refusals.py: whether a text refuses
letters.py      which lettered option is chosen
aliases.py      whether an answer is right, by answers known to be right and wrong
questions.py    items that are a question and nothing more
consistency.py  whether an answer follows from its reasoning
thinking.py     what became of the thoughts
measures.py     what metrics are made of; failures.py: what became of the answers
"""
