"""The recorder: writes one rank's program while its step runs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._ops import OpOverload

from bench.meters.flops import kernel_of
from bench.meters.memory import MemoryMeter
from bench.meters.traffic import Call, bytes_sent, call_of
from bench.meters.watcher import Watcher
from bench.simulator.device import Device
from bench.simulator.launch import HOST_READS, LAUNCH
from bench.simulator.program import HOST, TO_DEVICE, TO_HOST

_COPIES = ("aten::copy_", "aten::clone", "aten::_to_copy")
# Operations that only allocate or view tensors.
_FREE = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::resize_", "c10d::")
_FREE += ("_c10d_functional::", "prim::")


class Recorder(Watcher):
    """Writes a device's program while it is entered.

    Args:
        memory: A meter entered before, which knows the tensors in host memory.
    """

    def __init__(self, device: Device, memory: MemoryMeter) -> None:
        super().__init__()
        self.device, self.memory = device, memory

    def __enter__(self) -> Recorder:
        self.device.recording = True
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.device.recording = False
        super().__exit__(*exception)

    def observe(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        name = func.name()
        if call := call_of(func, args, self.region):
            if len(call.ranks) > 1:
                self._collective(name, call, result)
            return
        if name == "_c10d_functional::wait_tensor":
            self.device.waited(args[0])
        if func.is_view or name.startswith(_FREE):
            return
        if name == HOST_READS:
            self.device.host_waits(self.device.current.last)
            return
        read, written = _tensors(func, args, kwargs, result)
        moved = sum(map(_bytes, read)) + sum(map(_bytes, written))
        if moved:
            shown = args[0] if name == LAUNCH else name
            fields = {"name": shown, "kind": "elementwise", "bytes": moved, "unit": self.unit}
            if kernel := kernel_of(name, args):
                fields |= {"kind": kernel.kind, "flops": kernel.flops, "sizes": kernel.sizes}
            self._compute(fields, read, written, blocking=len(args) < 3 or args[2] is not True)

    def _collective(self, name: str, call: Call, result: Any) -> None:
        if call.purpose in ("parameter", "gradient"):
            self.device.hooks(self.unit)
        size = max(call.size_bytes, call.received_bytes)  # it lasts until both have ended
        self.device.collective(
            _handle(result),
            call.is_async,
            name=name,
            kind=call.collective,
            bytes=float(bytes_sent(call.collective, size, len(call.ranks))),
            sizes=(round(size),),
            ranks=call.ranks,
            unit=self.unit,
            purpose=call.purpose,
        )

    def _compute(
        self, fields: dict[str, Any], read: list[Tensor], written: list[Tensor], blocking: bool
    ) -> None:
        """Queue an operation that is no collective: on the device, the host, or as a copy."""
        device, on_host = self.device, self.memory.on_host
        from_host = device.has_streams and any(map(on_host, read))
        to_host = device.has_streams and any(map(on_host, written))
        if not (from_host or to_host):
            device.queue(device.current if device.has_streams else None, **fields)
        elif from_host == to_host or fields["name"] not in _COPIES:
            device.queue(None, **fields | {"kind": HOST})
        else:
            kind = TO_HOST if to_host else TO_DEVICE
            copied = {"kind": kind, "bytes": sum(map(_bytes, written))}
            index = device.queue(device.current, **fields | copied)
            if blocking and fields["name"] == "aten::copy_":
                device.host_waits({index})


def _handle(result: Any) -> dist.Work | Tensor | None:
    """Return what the caller of a collective waits for: a functional one's result is a tensor."""
    if isinstance(result, Tensor):
        return result
    boxed = result[1] if isinstance(result, tuple) else result
    return dist.Work.unbox(boxed) if boxed is not None else None


def _tensors(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors that an operation reads, and those that it writes."""
    if func.name() == "fsdp::all_gather_copy_in":  # its schema does not say what it writes
        return _flat([args[0]]), [result[0]]
    positions, names, overwritten, makes = _effects(func)
    written = _flat([args[at] for at in positions] + [kwargs[n] for n in names if n in kwargs])
    read = args if not overwritten else [a for at, a in enumerate(args) if at not in positions]
    return _flat(read), written + (_flat([result]) if makes else [])


@cache
def _effects(func: OpOverload) -> tuple[tuple[int, ...], tuple[str, ...], bool, bool]:
    """Return the effects of an operation.

    They are the arguments that it writes, by position and by name; whether it writes them without
    reading them; and whether its results are new tensors.
    """
    written = [
        (at, argument)
        for at, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    positions = tuple(at for at, argument in written if not argument.kwarg_only)
    names = tuple(argument.name for _, argument in written if argument.kwarg_only)
    overwrites = func.name() in ("aten::copy_", "aten::zero_", "aten::fill_.Scalar", LAUNCH)
    return positions, names, overwrites, not written


def _flat(values: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += _flat(value)
    return tensors


def _bytes(x: Tensor) -> int:
    """Bytes that are read of a tensor: of an expanded one, those of its storage."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
