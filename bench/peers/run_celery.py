# pyright: basic, reportMissingImports=false
"""Celery, in its own environment: `run_celery.py enqueue REDIS COUNT` or `run_celery.py work REDIS`."""

import sys

from celery import Celery

PAYLOAD = "x" * 198

mode, url = sys.argv[1:3]
app = Celery("peer", broker=url, backend=url)
app.conf.update(worker_prefetch_multiplier=1_000, worker_hijack_root_logger=False, task_acks_late=False)


@app.task(name="noop")
def noop(payload: str) -> int:
    """Look at the payload."""
    return len(payload)


if mode == "enqueue":
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(int(sys.argv[3])):
            noop.apply_async((PAYLOAD,), producer=producer)
else:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    app.worker_main(["worker", "--pool=solo", *quiet])
