# pyright: basic, reportMissingImports=false
"""Dramatiq, in its own environment: `run_dramatiq.py enqueue REDIS COUNT` or `run_dramatiq.py work REDIS`."""

import signal
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

PAYLOAD = "x" * 198
THREADS = 16

mode, url = sys.argv[1:3]
broker = RedisBroker(url=url)
broker.add_middleware(Results(backend=RedisBackend(url=url), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(payload: str) -> int:
    """Look at the payload."""
    return len(payload)


if mode == "enqueue":
    for _ in range(int(sys.argv[3])):
        noop.send(PAYLOAD)
else:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    dramatiq.Worker(broker, worker_threads=THREADS).start()
    signal.pause()
