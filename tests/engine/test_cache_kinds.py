"""Window blocks and checkpoints under any workload: what a step reads is what must be there, every
hit is the longest that computing can go on from, and nothing is lost."""

from __future__ import annotations

import random

from engine.engine_helpers import Engine, make_config, random_sampling
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.engine.runner.fake import FakeOptions

VOCAB = 40


@st.composite
def engines(draw: st.DrawFn) -> Engine:
    block_size = draw(st.sampled_from([1, 4, 16]))
    kind = draw(st.sampled_from(["window", "state", "both"]))
    engine = Engine(
        make_config(
            block_size=block_size,
            num_blocks=draw(st.sampled_from([112, 144, 2000])) // block_size,
            overlap=draw(st.booleans()),
            caching=draw(st.sampled_from([True, True, True, False])),
            policy=draw(st.sampled_from(["prefill_first", "mixed", "throughput"])),
            max_num_seqs=draw(st.sampled_from([2, 3, 12])),
            max_num_batched_tokens=draw(st.sampled_from([8, 32, 32, 256])),
            max_prefill_chunk=draw(st.sampled_from([1, 5, 64])),
        ),
        FakeOptions(
            vocab_size=VOCAB,
            max_model_len=112,
            window=draw(st.sampled_from([1, 2, 7, 16, 40])) if kind != "state" else 0,
            spare_window_blocks=draw(st.sampled_from([0, 0, 4, 20])),
            has_state=kind != "window",
            num_checkpoints=draw(st.sampled_from([0, 1, 3, 30])),
            checkpoint_interval=draw(st.sampled_from([0, 16, 48])),
        ),
    )
    least = draw(st.sampled_from([1, 6, 20]))
    state = engine.core.scheduler.state
    state.limits = state.limits._replace(min_checkpoint_tokens=least)
    return engine


# What happens before a step: requests come (how many, of which stem, how much of it), one is
# aborted, the cache is reset, or nothing.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6), st.integers(0, 2), st.integers(0, 60)),
        st.tuples(st.sampled_from(["step", "step", "step", "abort", "reset"])),
    ),
    max_size=60,
)


@given(engine=engines(), events=EVENTS, seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_any_workload_reads_what_it_must_and_loses_nothing(
    engine: Engine, events: list[tuple[object, ...]], seed: int
) -> None:
    rng = random.Random(seed)
    stems = [[rng.randrange(VOCAB) for _ in range(60)] for _ in range(3)]
    for event in events:
        match event:
            case ("add", int(count), int(stem), int(length)):
                for _ in range(count):
                    tail = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 12))]
                    prompt = stems[stem][:length] + tail
                    sampling = random_sampling(rng, VOCAB, len(prompt))
                    engine.add(f"r{len(engine.requests)}", prompt, sampling)
            case ("abort",):
                engine.abort(*[n for n in engine.requests if n not in engine.finished][:1])
            case ("reset",):
                engine.reset_prefix_cache()
        engine.step()
    engine.run()
    engine.check_idle()
    for name in engine.requests:
        got, expected = engine.tokens[name], engine.expected(name)
        assert got == (expected[: len(got)] if engine.finished[name] == "abort" else expected)
