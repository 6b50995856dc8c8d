"""Requests to batches of tokens: sequences, scheduler, KV blocks, core loop, offline LLM.
LLM.

The core owns tokens; text (templates, tokenisation, detokenisation, stop strings) lives in
`atom.engine.text` and runs in the server's process. Nothing in this package's `__init__`
imports torch.
"""
