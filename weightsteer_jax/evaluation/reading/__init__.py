"""How an answer is read: what is said, refused, chosen, and whether the answer is right."""
