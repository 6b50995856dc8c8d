"""Do two models say the same? Token by token, on the same text, with what each finds likely.

A benchmark's score hides a broken kernel: a model that is slightly wrong everywhere answers nearly
as many questions. Here two sides (servers, recipes, transformers, or answers kept before) are asked
for their log-probabilities of the same tokens, and for their own greedy continuations, which go
through the decode path. `session` runs it, `compare` does the arithmetic, `kl` its heart.
"""
