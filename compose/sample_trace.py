"""Makes sample_trace.csv, a made-up recording with the columns of genai_requests, to try `taskyard replay` on.

python -m taskyard.compose.sample_trace > compose/sample_trace.csv
"""

import csv
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TextIO

_COLUMNS = (
    "gmt_create", "predict_type", "predict_status", "exec_time_seconds", "groupId", "prompt_length",
    "negative_prompt_length", "num_images_per_prompt", "num_inference_steps", "checkpoint_model_version_id", "num_lora",
)  # fmt: skip
_ROWS = 600
_SEED = 20
_GROUPS = [f"T{number:02}" for number in range(24)]
_GROUP_WEIGHTS = [1 / (number + 1) for number in range(24)]
# Requests a second: quiet and busy stretches of 75 rows in turn.
_QUIET, _BUSY, _STRETCH = 0.0875, 0.25, 75


def write(file: TextIO) -> None:
    """Write the recording; always the same one."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_rows(random.Random(_SEED)))


def _rows(chance: random.Random) -> Iterator[tuple[object, ...]]:
    at = datetime(2025, 3, 3, 8, tzinfo=UTC)
    for number in range(_ROWS):
        at += timedelta(seconds=chance.expovariate(_BUSY if number // _STRETCH % 2 else _QUIET))
        images = chance.choices((1, 2, 4, 8), (60, 10, 20, 10))[0]
        steps = chance.choices((20, 30, 40, 50), (35, 40, 15, 10))[0]
        length_s = (2 + steps * 0.25 * images**0.7) * chance.uniform(0.7, 1.6)
        yield (
            f"{at:%Y-%m-%d %H:%M:%S}",
            chance.choices(("TXT_2_IMG", "IMG_2_IMG", "INPAINTING"), (80, 15, 5))[0],
            chance.choices(("SUCCEED", "FAILED", "PENDING"), (970, 20, 5))[0],
            round(length_s + chance.choice((0, 0, 0, 0, 6)), 1),
            chance.choices(_GROUPS, _GROUP_WEIGHTS)[0],
            float(chance.randint(3, 220)),
            float(chance.randint(1, 90)) if chance.random() < 0.7 else "",
            float(images),
            float(steps),
            f"V{chance.randint(0, 11):02}",
            chance.choice((0, 0, 1, 2)),
        )


if __name__ == "__main__":
    write(sys.stdout)
