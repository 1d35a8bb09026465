"""What chips can do at most, by the names that their drivers give them, and the share that a step reaches.

From NVIDIA's data sheets, without structured sparsity: products of bfloat16 summed in float32 on tensor
cores, float32 outside of them, and the memory's bandwidth. For boards whose names don't differ (an SXM2 and a
PCIe V100 do), the greater figure.
"""

from __future__ import annotations

from typing import NamedTuple


class Peak(NamedTuple):
    """Of one device."""

    bfloat16: float | None
    """FLOP/s; None for a chip that does not have it."""
    float32: float
    """FLOP/s, without TF32."""
    bandwidth: float
    """Bytes/s."""

    @property
    def of_float32(self) -> float:
        """FLOP/s of a step in float32: with TF32 where the chip has it, as it has since it has bfloat16.

        XLA takes it for float32 by default (jax.lax.Precision.DEFAULT); data sheets give half of bfloat16.
        """
        return self.float32 if self.bfloat16 is None else self.bfloat16 / 2


_T, _G = 1e12, 1e9
PEAKS = {
    # Tesla P100 data sheet (2016): SXM2, then PCIe.
    "P100-SXM2": Peak(None, 10.6 * _T, 732 * _G),
    "P100-PCIE-16GB": Peak(None, 9.3 * _T, 732 * _G),
    "P100-PCIE-12GB": Peak(None, 9.3 * _T, 549 * _G),
    # V100 data sheet (2020).
    "V100-SXM2": Peak(None, 15.7 * _T, 900 * _G),
    "V100-PCIE": Peak(None, 14.0 * _T, 900 * _G),
    "V100S-PCIE": Peak(None, 16.4 * _T, 1134 * _G),
    # "Turing GPU architecture" white paper (2018), appendix on the Tesla T4.
    "T4": Peak(None, 8.1 * _T, 320 * _G),
    # A100 data sheet (2021).
    "A100-SXM4-40GB": Peak(312 * _T, 19.5 * _T, 1555 * _G),
    "A100-PCIE-40GB": Peak(312 * _T, 19.5 * _T, 1555 * _G),
    "A100-SXM4-80GB": Peak(312 * _T, 19.5 * _T, 2039 * _G),
    "A100 80GB PCIe": Peak(312 * _T, 19.5 * _T, 1935 * _G),
    # L4 data sheet (2023), which gives 242 with sparsity.
    "L4": Peak(121 * _T, 30.3 * _T, 300 * _G),
    # "Ada GPU architecture" white paper (2022), appendix A.
    "RTX 4090": Peak(165.2 * _T, 82.6 * _T, 1008 * _G),
    # H100 data sheet (2023), which gives 1,979, 1,513 and 1,671 with sparsity.
    "H100 80GB HBM3": Peak(989.5 * _T, 67 * _T, 3350 * _G),
    "H100 PCIe": Peak(756.5 * _T, 51 * _T, 2000 * _G),
    "H100 NVL": Peak(835.5 * _T, 60 * _T, 3900 * _G),
    # H200 data sheet (2024): SXM, then NVL.
    "H200": Peak(989.5 * _T, 67 * _T, 4800 * _G),
    "H200 NVL": Peak(835.5 * _T, 60 * _T, 4800 * _G),
    # HGX B200 data sheet (2024), an eighth of the eight-GPU board's.
    "B200": Peak(2250 * _T, 75 * _T, 7700 * _G),
}


def find_peak(device_kind: str) -> Peak | None:
    """Of a name such as "NVIDIA H100 80GB HBM3"; None where the table has none of its words in a row."""
    words = f" {device_kind} ".replace("-", " ").lower()
    if any(f" {part} " in words for part in ("laptop", "mig", "d")):
        return None  # less than the whole chip, or than the board of that name
    found = [name for name in PEAKS if f" {name} ".replace("-", " ").lower() in words]
    return PEAKS[max(found, key=len)] if found else None


def fractions(
    flops: float | None, accessed: float | None, seconds: float, peak: Peak | None, devices: int = 1
) -> dict[str, float | None]:
    """Shares, 0 to 1, of the peaks of `devices` that a step reaches; None for what is not known.

    flops, accessed: floating-point operations, and bytes read and written, of a step on all devices.
    """

    def share(amount: float | None, most: float | None) -> float | None:
        return None if not amount or not most else amount / seconds / (most * devices)

    return {
        "of_bfloat16_peak": share(flops, peak and peak.bfloat16),
        "of_float32_peak": share(flops, peak and peak.of_float32),
        "of_bandwidth": share(accessed, peak and peak.bandwidth),
    }


def describe(shares: dict[str, float | None], dtype: str) -> str:
    """For people, of a step that computes in `dtype`: "41.0 % of the bfloat16 peak, ..."."""
    texts = {key: "n/a" if share is None else f"{share:.1%}" for key, share in shares.items()}
    # XLA may leave out what calls into libraries read and write.
    bandwidth = f"at least {texts['of_bandwidth']} of the memory bandwidth"
    name = "float32 peak (TF32 where the chip has it)" if dtype == "float32" else f"{dtype} peak"
    return f"{texts[f'of_{dtype}_peak']} of the {name}, {bandwidth}"
