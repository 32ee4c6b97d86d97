"""Hand-written reports of plausible sizes, for tests of how reports are rendered and stored."""

from __future__ import annotations

from mem_gpt_cli.report import DeviceSummary, MemoryReport, ModelSummary, Phase, Speed, components

MIB = 2**20
GIB = 2**30


def phase(name: str, **more: int | float | str | None) -> Phase:
    """A phase whose peak is the sum of the components given among ``more``."""
    held = components(**{k: v for k, v in more.items() if k in components() and isinstance(v, int)})
    rest = {key: value for key, value in more.items() if key not in held}
    return Phase(name, sum(held.values()), held, **rest)  # type: ignore[arg-type]


def training(lens: str = "estimate", extra: int = 0) -> MemoryReport:
    """GPT-2 XL trained in fp32; ``extra`` bytes more activations in backward."""
    weights, gradients, state = 6230_444_800, 6230_444_800, 12_460_889_600
    return MemoryReport(
        lens=lens,  # type: ignore[arg-type]
        task="training",
        recipe={
            "model": {"name": "gpt2-xl", "dtype": "fp32"},
            "device": {"name": "cpu"},
            "task": "training",
            "workload": {"batch": 1, "seq": 1024, "autocast": "bf16", "prompt_tokens": None},
        },
        model=ModelSummary("gpt2-xl", "gpt2", 1_557_611_200, 48),
        device=DeviceSummary("cpu", "cpu", None),
        phases=(
            phase("load", weights=weights),
            phase("forward", weights=weights, optimizer_state=state, activations=8 * GIB, logits=205_852_672),
            phase(
                "backward",
                weights=weights,
                optimizer_state=state,
                gradients=gradients,
                activations=1535 * MIB + extra,
                logits=411_705_344,
                peak_operation="aten.mm",
            ),
            phase(
                "optimizer_step",
                weights=weights,
                gradients=gradients,
                optimizer_state=state,
                workspace=321_647_616,
            ),
        ),
        provenance={"weights": "formula", "adapters": "unavailable"},
        cause="the peak is in the forward pass: activations of 48 layers hold 31%",
        warnings=("positions end at 1024",),
    )


def inference(lens: str = "profile") -> MemoryReport:
    """A small measured inference run, with every optional figure set."""
    return MemoryReport(
        lens=lens,  # type: ignore[arg-type]
        task="inference",
        recipe={
            "model": {"name": "memgpt-tiny", "dtype": "fp32"},
            "device": {"name": "cpu"},
            "task": "inference",
            "workload": {
                "batch": 2,
                "seq": 4096,
                "prompt_tokens": 4064,
                "new_tokens": 32,
                "autocast": "none",
            },
        },
        model=ModelSummary("memgpt-tiny", "gpt2", 2_400_000, 4, "embedded"),
        device=DeviceSummary("cpu", "AMD EPYC", 8 * GIB),
        phases=(
            phase("load", weights=9_600_000, duration_s=0.25, process_bytes=400 * MIB),
            phase(
                "prefill",
                weights=9_600_000,
                kv_cache=16_646_144,
                activations=33_292_288,
                logits=402,
                peak_operation="aten.addmm",
                peak_module="transformer.h.3.mlp",
                duration_s=1.5,
                process_bytes=460 * MIB,
                lower_bytes=59_000_000,
                upper_bytes=60_000_000,
            ),
            phase("decode", weights=9_600_000, kv_cache=16_777_216, activations=1_000, duration_s=12.0),
        ),
        provenance={"weights": "measured", "process_bytes": "measured"},
        process_bytes=460 * MIB,
        speed=Speed(tokens_per_s=12.5, ttft_ms=1500.0, decode_ms_per_token=80.0),
        details={"steps": (1, 2)},
    )
