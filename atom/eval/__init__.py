"""The accuracy evaluator: lm-eval's tasks on any OpenAI-compatible server, offline where bundled.

A run goes harness (lm-eval's tasks, prompts, filters, metrics) -> client (requests to the server,
journal) -> outcome -> history and verdict. The model stays behind HTTP: nothing here imports torch,
but for a transformers reference of `--agree`, in a process of its own.
"""
