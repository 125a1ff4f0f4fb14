"""Changes and checkpoints read from disk in pieces, so that no model is ever held whole."""
