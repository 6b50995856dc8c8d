"""A server process with the real engine process behind it, on the fake runner.

python serve_fake.py MODEL_DIR '{"config": {...sections...}, "fake": {...FakeOptions...}}'
"""

from __future__ import annotations

import json
import sys

from atom.config.schema import Config, EngineConfig, ModelConfig, SchedulerConfig, ServerConfig
from atom.engine.client import EngineClient
from atom.engine.runner.fake import FakeOptions
from atom.server.run import serve


def main() -> int:
    options = json.loads(sys.argv[2])
    config = Config(
        model=ModelConfig(model=sys.argv[1], load_dummy=True),
        engine=EngineConfig(check_invariants=True, **options.get("engine", {})),
        scheduler=SchedulerConfig(**options.get("scheduler", {})),
        server=ServerConfig(port=0, **options.get("server", {})),
    )
    fake = FakeOptions(**{"vocab_size": 300, "first_token": 97, "span": 26, **options["fake"]})
    return serve(config, lambda config, source: EngineClient(config, source, runner=fake))


if __name__ == "__main__":
    sys.exit(main())
