"""Compile level 3: the forward as pieces between opaque operators, compiled once, kept on disk.

`compiler.compile_forward` is the way in. The order of work: `structure` names the model's tensors
and hashes all that decides the code, `store` looks for what an earlier start left, and only where
there is nothing `trace`, `split` and `inductor` make it. `program` runs it.
"""
