"""From places in the pool to a turn of exactly the wanted length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atom.bench.errors import BenchError
from atom.bench.types import Endpoint, Turn
from atom.bench.workloads import draw
from atom.bench.workloads.pool import text_of
from atom.bench.workloads.spec import PromptForm, WorkloadSpec
from atom.bench.workloads.tokens import Form, TokenSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Places = NDArray[np.int64]


class Maker:
    """Makes turns whose request has exactly so many tokens, counted as the server counts.

    `overhead` of them are not the workload's own: a template, a BOS, the text's begin.
    """

    def __init__(self, tokens: TokenSource, endpoint: Endpoint, form: PromptForm | None) -> None:
        """`form` None: ids where the pool has them and the server takes them, else text."""
        import numpy as np

        self.endpoint = endpoint
        self.pool = tokens.pool()
        self.notes: list[str] = []
        self.form: Form = "chat" if endpoint == "chat" else (form or "ids")
        if form is None and self.form == "ids":
            try:
                self.overhead = tokens.overhead("ids")
            except BenchError as error:
                self.form = "text"
                self.notes.append(f"prompts are sent as text, not as token ids: {error}")
        self.overhead = tokens.overhead(self.form)
        self._ids = None if self.pool.ids is None else np.array(self.pool.ids, dtype=np.int64)

    def places(self, count: int, *key: object) -> Places:
        """[count] random places in the pool, by a key that begins with the seed."""
        return draw.indices(count, len(self.pool.words), *key)

    def room(self, length: int, shared: int = 0) -> int:
        """Words of its own in a request of `length` tokens, `shared` of them given."""
        return length - self.overhead - shared

    def check_room(self, shortest: int) -> None:
        """Raises `BenchError` unless requests this short can be made."""
        if self.room(shortest) < 1:
            what = "the chat template" if self.form == "chat" else "the begin of a text"
            raise BenchError(
                f"prompts of {shortest} tokens cannot be made: {what} alone takes {self.overhead}; "
                f"ask for at least {self.overhead + 1}"
            )

    def turn(self, places: Places, max_tokens: int, *, delay_s: float = 0.0) -> Turn:
        """A first turn; its length is `overhead` + the number of places."""
        length = self.overhead + len(places)
        if self.form == "ids":
            assert self._ids is not None
            ids: list[int] = self._ids[places].tolist()
            return Turn(prompt=ids, max_tokens=max_tokens, input_len=length, delay_s=delay_s)
        text = self.text(places)
        if self.form == "text":
            return Turn(prompt=text, max_tokens=max_tokens, input_len=length, delay_s=delay_s)
        messages = [{"role": "user", "content": text}]
        return Turn(messages=messages, max_tokens=max_tokens, input_len=length, delay_s=delay_s)

    def text(self, places: Places) -> str:
        words = self.pool.words
        return text_of([words[place] for place in places.tolist()])

    def describe(self) -> dict[str, Any]:
        return {
            "prompt_form": self.form,
            "prompt_overhead": self.overhead,
            "word_pool": len(self.pool.words),
            "word_pool_hash": self.pool.digest,
        }


def check_context(spec: WorkloadSpec, longest_input: int, longest_output: int) -> None:
    """Raises `BenchError` where a synthetic request could not fit the model's context."""
    if spec.max_len is not None and longest_input + longest_output > spec.max_len:
        raise BenchError(
            f"prompts of up to {longest_input} and answers of up to {longest_output} tokens exceed "
            f"the model's context of {spec.max_len}; lower --input-len or "
            "--output-len"
        )
