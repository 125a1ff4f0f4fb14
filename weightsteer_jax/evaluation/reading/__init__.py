"""How an answer is read: said, refused or chosen, right or wrong."""
