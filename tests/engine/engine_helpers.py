"""What the engine's tests share: small engines, random workloads and a judge of every plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

from engine.naive_cache import Entry, NaiveCache

from atom.config.schema import Config, EngineConfig, ModelConfig, SchedulerConfig
from atom.engine.core import EngineCore
from atom.engine.messages import GenerateRequest, TokenChunk
from atom.engine.plan import StepOutput, StepPlan
from atom.engine.runner.fake import FakeOptions, FakeRunner, reference_tokens
from atom.engine.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def make_config(
    *,
    block_size: int = 4,
    num_blocks: int = 64,
    overlap: bool = False,
    caching: bool = True,
    max_model_len: int | None = None,
    **scheduler: Any,
) -> Config:
    return Config(
        model=ModelConfig(max_model_len=max_model_len),
        engine=EngineConfig(
            kv_cache_block_size=block_size,
            num_kvcache_blocks=num_blocks,
            overlap=overlap,
            enable_prefix_caching=caching,
        ),
        scheduler=SchedulerConfig(**scheduler),
    )


class Clock:
    """Time that only moves when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class JudgedRow:
    def __init__(self, name: str, salt: str, tokens: list[int], asks_prompt: bool) -> None:
        self.name = name
        self.salt = salt
        self.tokens = list(tokens)  # prompt and every token sampled since
        self.asks_prompt = asks_prompt
        self.prefill_end = len(tokens)
        self.table: list[int] = []
        self.computed = -1
        self.parent = 0  # serial of the last published block
        self.num_published = 0
        self.window: dict[int, int] = {}  # place -> window block, as long as a token may see it


class JudgedRunner(FakeRunner):
    """A `FakeRunner` that also checks each plan against the policy and the naive cache."""

    def __init__(self, config: Config, options: FakeOptions | None = None) -> None:
        super().__init__(config, options)
        self.config = config
        self.caching = True
        layout = self.cache_layout
        self.naive = NaiveCache(self.block_size, layout.window, layout.has_state)
        self.judged: dict[int, JudgedRow] = {}
        self.salts: dict[str, str] = {}
        self.ended: set[str] = set()  # the driver adds what it has seen ending
        self.streak = 0  # steps for prompts alone since the streams last moved
        self.limit_of: Callable[[str], int] = lambda name: 1 << 30
        self.prompt_tokens = 0
        self.launched: list[StepPlan] = []

    def launch(self, plan: StepPlan) -> Any:
        self._judge_blocks(plan)
        self._judge_windows_and_states(plan)
        self._judge_policy(plan)
        self.launched.append(plan)
        return Judged(self, plan, super().launch(plan))

    def _judge_blocks(self, plan: StepPlan) -> None:
        for row in plan.free_rows:
            self.naive.drop(self.judged.pop(row).name)
        started = dict(zip(plan.rows.tolist(), plan.num_computed.tolist(), strict=True))
        for new in plan.new_rows:
            asks = new.sampling.prompt_logprobs is not None
            salt = self.salts.get(new.request_id, "")
            row = JudgedRow(new.request_id, salt, new.token_ids, asks)
            self.judged[new.row] = row
            # What is scored of a prompt needs the logits of the token before it.
            readable = new.token_ids[: new.sampling.logprobs_start] if asks else new.token_ids
            expected = self.naive.match(salt, readable) if self.caching else []
            assert started[new.row] == len(expected) * self.block_size, "not the longest prefix"
            row.computed = started[new.row]
            row.num_published = len(expected)
            row.parent = expected[-1].serial if expected else 0
            blocks = next(b for b in plan.new_blocks if b.row == new.row)
            hits = blocks.block_ids[: len(expected)]
            assert hits == [e.block_id for e in expected], "hits are other blocks"
            self.naive.hold(row.name, hits)
            self._judge_hit(new.row, expected, plan)
        for blocks in plan.new_blocks:
            row = self.judged[blocks.row]
            skip = row.num_published if blocks.start == 0 else 0
            for block_id in blocks.block_ids[skip:]:
                assert block_id not in self.naive.users, f"block {block_id} is in use"
                self.naive.overwrite(block_id)
            self.naive.hold(row.name, blocks.block_ids[skip:])
            row.table += blocks.block_ids
        assert len(self.naive.users) <= self.num_blocks

    def _judge_hit(self, row_id: int, expected: list[Entry], plan: StepPlan) -> None:
        """What an admission got of windows and states."""
        if self.naive.window:
            seen = max(0, len(expected) * self.block_size - self.naive.window + 1)
            blocks = next(b for b in plan.new_window_blocks if b.row == row_id)
            shown = [e.window_id for e in expected[seen // self.block_size :]]
            assert blocks.start == min(seen // self.block_size, len(expected))
            assert blocks.block_ids[: len(shown)] == shown, "window hits are other blocks"
            row = self.judged[row_id]
            row.window = dict(enumerate(shown, blocks.start))
        if self.naive.has_state:
            restored = [copy.source for copy in plan.restores if copy.target == row_id]
            assert restored == [e.checkpoint for e in expected[-1:]], "restored from elsewhere"

    def _judge_windows_and_states(self, plan: StepPlan) -> None:
        ends = dict(
            zip(plan.rows.tolist(), (plan.num_computed + plan.num_scheduled).tolist(), strict=True)
        )
        assert {copy.target for copy in plan.restores} <= {new.row for new in plan.new_rows}
        for row_id, start, ids in plan.new_window_blocks:
            row = self.judged[row_id]
            new = [(p, id_) for p, id_ in enumerate(ids, start) if p not in row.window]
            held = self.held_windows()
            assert not held & {id_ for _, id_ in new}, "a window block that is in use"
            for place, id_ in new:
                self.naive.overwrite_window(id_)
                row.window[place] = id_
            assert max(row.window) == (ends[row_id] - 1) // self.block_size, "too many or too few"
        for source, target in plan.saves:
            assert ends[source] % self.block_size == 0, "a state saved in mid-block"
            self.naive.overwrite_checkpoint(target)

    def held_windows(self, given_up: Collection[str] = ()) -> set[int]:
        """Window blocks that a row's next tokens see; not of the rows `given_up`."""
        rows = [row for row in self.judged.values() if row.name not in given_up]
        return {id_ for row in rows for id_ in row.window.values()}

    def _judge_policy(self, plan: StepPlan) -> None:
        scheduler = self.config.scheduler
        budget = scheduler.max_num_batched_tokens
        default = 512 if scheduler.policy == "throughput" else 256
        chunk = min(scheduler.max_prefill_chunk or default, budget)
        assert 0 < plan.num_tokens <= budget, "over the token budget"
        assert len(plan.rows) <= scheduler.max_num_seqs
        prompt_tokens = decodes = 0
        scheduled = set()
        for row_id, count in zip(plan.rows.tolist(), plan.num_scheduled.tolist(), strict=True):
            row = self.judged[row_id]
            scheduled.add(row_id)
            if row.computed < row.prefill_end:
                prompt_tokens += count
            else:
                assert count == 1
                decodes += 1
        streams = {
            row_id
            for row_id, row in self.judged.items()
            if row.computed >= row.prefill_end
            and row.name not in self.ended
            and row.computed < self.limit_of(row.name) - 1
        }
        self.prompt_tokens += prompt_tokens
        if streams:
            assert prompt_tokens <= chunk, "a chunk too large for the running streams"
        if scheduler.policy == "mixed":
            assert streams <= scheduled, "a running stream was left out of a mixed step"
        elif scheduler.policy == "throughput":
            full = prompt_tokens == chunk and not decodes
            assert full or streams <= scheduled, "a stream waits for a step that is not full"
        else:
            assert not (prompt_tokens and decodes), "prefill_first mixed a step"
            self.streak = self.streak + 1 if prompt_tokens and streams else 0
            assert self.streak <= 1, "streams stalled for more than one chunk"
        for row_id, count in zip(plan.rows.tolist(), plan.num_scheduled.tolist(), strict=True):
            self.judged[row_id].computed += count

    def collected(self, plan: StepPlan, output: StepOutput) -> None:
        """Called when the core takes the step's tokens: only now may its blocks be published."""
        rows = plan.rows.tolist()
        ends = (plan.num_computed + plan.num_scheduled).tolist()
        for row_id, end in zip(rows, ends, strict=True):
            row = self.judged[row_id]
            if row.name in self.ended or not self.caching:
                continue
            for i in range(row.num_published, end // self.block_size):
                head = row.tokens[: (i + 1) * self.block_size]
                row.parent = self.naive.publish(row.table[i], row.salt, head, row.parent)
                row.num_published = i + 1
                entry = self.naive.entry(row.parent)
                if self.naive.window and entry is not None and entry.window_id < 0:
                    entry.window_id = row.window[i]
        self._saved_and_passed(plan, rows, ends)
        sampled = [row for row, samples in zip(rows, plan.samples.tolist(), strict=True) if samples]
        for row_id, token_id in zip(sampled, output.token_ids.tolist(), strict=True):
            self.judged[row_id].tokens.append(token_id)

    def _saved_and_passed(self, plan: StepPlan, rows: list[int], ends: list[int]) -> None:
        for source, target in plan.saves:
            row = self.judged[source]
            entry = self.naive.entry(row.parent)
            if row.name not in self.ended and entry is not None and entry.checkpoint < 0:
                entry.checkpoint = target
        for row_id, end in zip(rows, ends, strict=True):
            row = self.judged[row_id]
            first = max(0, end - self.naive.window + 1) // self.block_size
            row.window = {place: id_ for place, id_ in row.window.items() if place >= first}


class Judged:
    def __init__(self, runner: JudgedRunner, plan: StepPlan, handle: Any) -> None:
        self._runner, self._plan, self._handle = runner, plan, handle

    def wait(self) -> StepOutput:
        output: StepOutput = self._handle.wait()
        self._runner.collected(self._plan, output)
        return output


class Engine:
    """A core on a judged runner; collects what each request got and checks every step."""

    def __init__(self, config: Config, options: FakeOptions | None = None) -> None:
        self.options = options or FakeOptions()
        self.clock = Clock()
        self.runner = JudgedRunner(config, self.options)
        self.core = EngineCore(config, self.runner, clock=self.clock)
        self.requests: dict[str, GenerateRequest] = {}
        self.tokens: dict[str, list[int]] = {}
        self.chunks: dict[str, list[TokenChunk]] = {}
        self.finished: dict[str, str] = {}
        self.runner.limit_of = self._limit_of
        self.runner.caching = self.core.info.prefix_caching

    def _limit_of(self, name: str) -> int:
        request = self.requests[name]
        assert request.sampling.max_tokens is not None
        return len(request.prompt_token_ids) + request.sampling.max_tokens

    def add(
        self,
        name: str,
        prompt: list[int],
        sampling: SamplingParams = GREEDY,
        salt: str = "",
    ) -> None:
        request = GenerateRequest(name, prompt, sampling, salt)
        self.requests[name] = request
        self.runner.salts[name] = salt
        self.tokens[name], self.chunks[name] = [], []
        self.core.add(request)

    def abort(self, *names: str) -> None:
        self.core.abort(list(names))
        self.runner.ended.update(names)

    def reset_prefix_cache(self) -> None:
        self.core.reset_prefix_cache()
        self.runner.naive.entries = []

    def step(self) -> list[TokenChunk]:
        chunks = self.core.step()
        for chunk in chunks:
            name = chunk.request_id
            assert name not in self.finished, f"{name} got a chunk after its last"
            self.tokens[name] += chunk.token_ids
            self.chunks[name].append(chunk)
            if chunk.finish_reason is not None:
                self.finished[name] = chunk.finish_reason
                self.runner.ended.add(name)
        self.core.check_invariants()
        self._compare_accounts()
        return chunks

    def _compare_accounts(self) -> None:
        """The block manager's accounts equal those of whoever watched the plans."""
        table = self.core.scheduler.table
        given_up = {self.runner.judged[row].name for row in table.given_up}
        held = {
            block_id
            for block_id, names in self.runner.naive.users.items()
            if not given_up.issuperset(names)
        }
        blocks = self.core.scheduler.blocks
        assert blocks.num_used == len(held)
        entries = self.runner.naive.entries
        assert blocks.num_cached == len(entries)
        if blocks.windows is not None:
            assert blocks.windows.num_used == len(self.runner.held_windows(given_up))
            assert blocks.windows.num_cached == sum(e.window_id >= 0 for e in entries)
        if blocks.checkpoints is not None:
            assert blocks.checkpoints.num_cached == sum(e.checkpoint >= 0 for e in entries)

    def run(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError(f"still at work after {max_steps} steps")

    def expected(self, name: str) -> list[int]:
        request = self.requests[name]
        seed = request.sampling.seed or 0
        return reference_tokens(request.prompt_token_ids, request.sampling, self.options, seed)

    def check_idle(self) -> None:
        """Nothing of any request is left."""
        core = self.core
        core.check_invariants()
        assert not core.has_work
        blocks = core.scheduler.blocks
        assert blocks.num_used == 0
        assert blocks.windows is None or blocks.windows.num_used == 0
        assert blocks.checkpoints is None or blocks.checkpoints.num_used == 0
        assert core.scheduler.table.num_free == core.info.max_num_seqs


def random_sampling(rng: random.Random, vocab_size: int, num_prompt_tokens: int) -> SamplingParams:
    scores = rng.random() < 0.25
    max_tokens = rng.choice([0, 1, 5, *[rng.randrange(1, 40) for _ in range(3)]])
    return SamplingParams(
        temperature=rng.choice([0.0, 1.0]),
        seed=rng.randrange(1000),
        max_tokens=max_tokens,
        min_tokens=rng.randrange(max_tokens + 1) if rng.random() < 0.3 else 0,
        ignore_eos=rng.random() < 0.3,
        stop_token_ids=tuple(rng.sample(range(vocab_size), 2)) if rng.random() < 0.3 else (),
        logprobs=2 if rng.random() < 0.2 else None,
        prompt_logprobs=1 if scores else None,
        logprobs_start=rng.randrange(num_prompt_tokens + 1) if scores else 0,
    )
