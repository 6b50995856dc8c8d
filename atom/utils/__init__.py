"""Small things that every room may use; imports nothing of the house but `atom.errors`."""
