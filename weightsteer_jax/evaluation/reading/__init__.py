"""How an answer is read: what it says, whether it refuses, which option it chooses, whether it is
right.
"""
