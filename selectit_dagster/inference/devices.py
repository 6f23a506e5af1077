"""Where a model runs and in which numbers: torch's devices and dtypes by their names."""

from __future__ import annotations

from selectit_dagster.errors import UserError


def resolve_device(device: str) -> str:
    """Return the torch device that ``device`` stands for (``auto``: CUDA, then MPS, then CPU).

    Raises
    ------
    UserError
        When the device is not on this machine, naming those that are.
    """
    if device == "cpu":
        return device
    import torch

    present = available_devices()
    if device == "auto":
        return present[-1] if present[-1] == "mps" else present[min(1, len(present) - 1)]
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = None
    name = "" if wanted is None else str(wanted if wanted.index is not None else wanted.type)
    if name == "cuda":
        name = "cuda:0"
    if name not in present:
        raise UserError(
            f"device {device!r} is not on this machine, which has {', '.join(present)}",
            hint="use device: auto, or one of those",
        )
    return name


def available_devices() -> list[str]:
    """Return this machine's torch devices, the CPU first."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return devices + (["mps"] if torch.backends.mps.is_available() else [])


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device, or the machine, has no memory left.

    torch has a class of its own for accelerators, and a text for the CPU.
    """
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "allocate memory" in text or "out of memory" in text
    )


def resolve_dtype(dtype: str, device: str) -> str:
    """Return the dtype's name: float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    import torch

    if dtype != "auto":
        return dtype
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
