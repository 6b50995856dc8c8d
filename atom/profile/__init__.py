"""`atom profile`: recordings of chosen steps, in this process or on a running server.

`shapes` says what may be asked for, `driver` makes the engine run exactly that, `offline` and
`online` are the two ways to a recording, `document` writes down what was recorded, `verdict` has
`atom.trace` read it.
"""
