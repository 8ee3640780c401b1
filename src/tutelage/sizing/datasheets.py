"""Rates of a device that is not at hand, from its data sheet: a projection.

A pass takes as long as its work in the arithmetic units or as reading its weights, whichever
is longer; what grows with tokens is added.
"""

from typing import Literal

from tutelage.sizing.cost import Rate, Speeds
from tutelage.sizing.profiles import Hardware
from tutelage.sizing.shapes import Shape

Precision = Literal["float32", "bfloat16", "float16"]
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SWEEP_PASSES = 14  # times that a chunk's logits are written or read: both sides, gradient, metrics
_ADAMW_BYTES = 40  # moved a number: norm, clipping, two moments, weight


def speeds_on(
    hardware: Hardware, student: Shape, teacher: Shape, precision: Precision, dtype: Precision
) -> Speeds:
    """What a device does with a student that computes in `precision` and a teacher in `dtype`."""
    memory = hardware.bytes_per_s * hardware.memory_utilisation
    head = _flops(hardware, "float32")

    def passing(shape: Shape, kind: Precision, backward: bool) -> Rate:
        weights, flops = _BYTES[kind] * shape.body, _flops(hardware, kind)
        factor = 3 if backward else 1
        return Rate(
            pass_s=factor * max(shape.layers * hardware.layer_s, weights / memory),
            token_s=factor * 2 * shape.body / flops,
            pair_s=factor * 4 * shape.layers * shape.queries / flops,
        )

    forward = passing(student, precision, False)
    logits_s = 2 * student.head / head
    read = _BYTES[precision] * student.body + 4 * student.head
    bytes_of_pair = _BYTES[precision] * student.cached
    sweep = (
        6 * student.head / head
        + 2 * teacher.head / _flops(hardware, dtype)
        + _SWEEP_PASSES * 4 * student.vocabulary / memory
    )
    return Speeds(
        prefill=forward,
        decode=Rate(
            pass_s=max(student.layers * hardware.layer_s, read / memory),
            token_s=forward.token_s + logits_s + 6 * 4 * student.vocabulary / memory,
            pair_s=max(forward.pair_s, bytes_of_pair / memory),
        ),
        teacher=passing(teacher, dtype, False),
        student=passing(student, precision, True),
        head=Rate(pass_s=hardware.layer_s, token_s=sweep),
        look=Rate(forward.pass_s, forward.token_s + logits_s, forward.pair_s),
        optimizer=Rate(hardware.layer_s, _ADAMW_BYTES / memory),
        record=Rate(0.0, hardware.record_token_s),
        rollout_s=hardware.rollout_s,
        answer_s=hardware.answer_s,
        disk_byte_s=1 / hardware.disk_bytes_per_s,
    )


def _flops(hardware: Hardware, kind: Precision) -> float:
    peak = hardware.float32_flops if kind == "float32" else hardware.bfloat16_flops
    return peak * hardware.utilisation
