"""transformers in a process of its own; started as a program, imported by nobody."""
