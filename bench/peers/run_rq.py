# pyright: basic, reportMissingImports=false
"""RQ, in its own environment: `run_rq.py enqueue REDIS COUNT` or `run_rq.py work REDIS`."""

import sys

from redis import Redis
from rq import Queue, SimpleWorker

PAYLOAD = "x" * 198
_AT_ONCE = 1_000


def noop(payload: str) -> int:
    """Look at the payload."""
    return len(payload)


def main(mode: str, url: str, count: int) -> None:
    """Enqueue in bulk, or run tasks for ever in this process: forking for each one would be all that is measured."""
    queue = Queue(connection=Redis.from_url(url))
    if mode == "enqueue":
        for first in range(0, count, _AT_ONCE):
            jobs = [Queue.prepare_data("run_rq.noop", (PAYLOAD,)) for _ in range(first, min(first + _AT_ONCE, count))]
            queue.enqueue_many(jobs)
    else:
        SimpleWorker([queue], connection=queue.connection).work(logging_level="WARNING")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int((*sys.argv, "0")[3]))
