"""The receipt: how one placement was chosen, kept in the task's entry and shown by `taskyard task`."""

import msgspec


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """The record of one decision of the plan.

    policy: the load policy's name. candidates: instances that could have taken the task. load, runner_up_load: of the
    chosen one and the next, 0 = idle. view_age_ms: how old the view of the fleet was. seed, index: of the batch and
    the task in it, which decide ties. reason: why there was no candidate; empty if there was one.
    """

    policy: str
    candidates: int = 0
    chosen: str = ""
    load: float = 0.0
    runner_up: str = ""
    runner_up_load: float = 0.0
    view_age_ms: int = 0
    seed: int = 0
    index: int = 0
    reason: str = ""


encode_receipt = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Receipt).decode


def decode_receipt(data: bytes) -> Receipt | None:
    """Decode a receipt; None if the task has none or it is of another version or make."""
    if not data:
        return None
    try:
        return _decode(data)
    except ValueError:  # msgspec's, and that of text which is no UTF-8
        return None
