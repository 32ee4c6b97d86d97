"""What hangs on the version of torch, and on the libraries that its wheel for CUDA 13 brings."""

from __future__ import annotations

from dataclasses import dataclass

from mem_gpt_cli.devices.gpu import Gpu

_CUDNN_OF_TORCH = {(2, 11): 91900, (2, 12): 92000, (2, 13): 92000}


@dataclass(frozen=True)
class Build:
    """What the choice depends on in a build of torch for CUDA 13.

    Args:
        cudnn: the cuDNN it is installed with, as cuDNN counts (9.19 is 91900): ``nvidia-cudnn-cu13`` in the
            requirements of torch's wheel.
        cudnn_dropout_in_sixteenths: whether cuDNN is left out unless the dropout is a multiple of 1/16
            (``check_cudnn_dropout``).
        efficient_shares_keys: whether the memory-efficient kernel takes fewer key heads than query heads.
    """

    cudnn: int
    cudnn_dropout_in_sixteenths: bool
    efficient_shares_keys: bool

    @property
    def trusts_cudnn(self) -> bool:
        """Whether cuDNN is tried first on Hopper and Blackwell (``check_prefer_cudnn_attention``)."""
        return self.cudnn > 91500


def build_of(version: str) -> Build:
    """The facts of a version of torch."""
    major, minor = (int(part) for part in version.split(".")[:2])
    release = (major, minor)
    return Build(
        cudnn=_CUDNN_OF_TORCH.get(release, max(_CUDNN_OF_TORCH.values())),
        cudnn_dropout_in_sixteenths=release >= (2, 12),
        efficient_shares_keys=release >= (2, 14),
    )


def prefers_cudnn(gpu: Gpu, made_by: Build) -> bool:
    """Source: ``check_prefer_cudnn_attention``, for builds of CUDA 13."""
    return made_by.trusts_cudnn and gpu.capability[0] in (9, 10)
