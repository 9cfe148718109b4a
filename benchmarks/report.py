"""What was measured against what was aimed at: the table of docs/performance.md, and its pictures, from one JSON file.

    python benchmarks/report.py [--json docs/performance.json]

Replaces what stands between the marks in docs/performance.md, and docs/*.svg. What has not been measured is a dot.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- targets -->", "<!-- end of targets -->"
NOTHING = "…"
Results = dict[str, Any]


class Target(NamedTuple):
    """What is aimed at, and where the figure stands."""

    what: str
    at: str  # "≥ 1.7", as it is written in the table
    figure: Callable[[Results], float]
    unit: str = ""
    digits: int = 2


def faster(size: str, own: str, other: str, which: str = "step") -> Callable[[Results], float]:
    """How many times as fast (or which share is saved) a variant of one size is over another."""
    return lambda all_: all_[f"step {size} cpu"]["times_as_fast"][f"maectl {own} over {other}"][which]


def over_reference(kind: str, way: str) -> Callable[[Results], float]:
    """Images a second a core over the reference's input pipeline."""
    return lambda all_: all_["loader photographs"][kind]["over_reference"][way]


def largest_difference(all_: Results) -> float:
    """Grey levels between crops of small JPEGs and Pillow's."""
    return all_["loader photographs"]["500x375"]["difference"]["files"]["max"]


TARGETS = [
    Target("step, bf16, over transformers in bf16: T128", "≥ 1.7", faster("T128", "bf16", "transformers bf16")),
    Target("the same: S96", "≥ 1.8", faster("S96", "bf16", "transformers bf16")),
    Target("the same: B224", "≥ 1.25", faster("B224", "bf16", "transformers bf16")),
    Target("step, float32, over transformers in float32: T128", "≥ 1.1", faster("T128", "fp32", "transformers fp32")),
    Target("the same: B224", "≥ 1.05", faster("B224", "fp32", "transformers fp32")),
    Target("activations, float32, of transformers' in float32: T128", "≤ 0.92",
           faster("T128", "fp32", "transformers fp32", "saved"), "", 3),
    Target("activations, bf16, of transformers' in float32: T128", "≤ 0.62",
           faster("T128", "bf16", "transformers fp32", "saved"), "", 3),
    Target("encoder on visible patches against all tokens, ViT-L/16, float32, over the ratio of FLOP (3.23)", "≥ 0.93",
           lambda all_: all_["step L224 cpu"]["over_flop_ratio"]["maectl fp32 over full_tokens fp32"]),
    Target("loading 500×375 JPEGs without a store, over the reference's pipeline", "≥ 2.7",
           over_reference("500x375", "files")),
    Target("the same from the compact store", "≥ 5", over_reference("500x375", "compact_store")),
    Target("the same from the raw store", "≥ 9", over_reference("500x375", "raw_store")),
    Target("loading 6-megapixel JPEGs without a store", "≥ 4", over_reference("6_megapixel", "files")),
    Target("largest difference of a crop from Pillow's, 500×375", "≤ 1", largest_difference, " grey levels", 0),
    Target("slices of `.nii.gz` from the store, over direct", "≥ 3,000",
           lambda all_: all_["loader volumes"]["ratio"], "", 0),
    Target("224 px windows of a deflated 10-band GeoTIFF from the store, over direct", "≥ 50",
           lambda all_: all_["loader rasters"]["ratio"], "", 0),
    Target("loop of `pretrain` over its bare step, tiny model from the store", "≥ 0.97",
           lambda all_: all_["loader pretrain"]["ratio"], "", 3),
    Target("waiting for data meanwhile", "≤ 1", lambda all_: 100 * all_["loader pretrain"]["data_wait_fraction"], " %"),
    Target("first batch of an index of 10,000,000 rows", "≤ 10",
           lambda all_: all_["scale"]["workers_1"]["first_batch_s"], " s", 1),
    Target("memory a loader's thread adds there", "≤ 200", lambda all_: all_["scale"]["worker_adds_mib"], " MiB", 0),
]  # fmt: skip


def main() -> None:
    """Write the table and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=DOCS / "performance.json")
    results = json.loads(parser.parse_args().json.read_text(encoding="utf-8"))
    page = DOCS / "performance.md"
    page.write_text(with_table(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    for name, picture in pictures(results).items():
        (DOCS / name).write_text(picture, encoding="utf-8")


def with_table(page: str, results: Results) -> str:
    """The page with its table made anew."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


def table(results: Results) -> str:
    """Markdown; targets that are missed are marked."""
    lines = ["| what | target | measured |", "|---|---|---|"]
    for target in TARGETS:
        lines.append(f"| {target.what} | {target.at}{target.unit} | {measured(target, results)} |")
    return "\n".join(lines)


def measured(target: Target, results: Results) -> str:
    """The figure, in bold where the target is missed."""
    try:
        figure = target.figure(results)
    except KeyError:
        return NOTHING
    least, bound = target.at[0] == "≥", float(target.at[1:].replace(",", ""))
    text = f"{figure:,.{target.digits}f}{target.unit}"
    return text if (figure >= bound if least else figure <= bound) else f"**{text}**, missed"


def pictures(results: Results) -> dict[str, str]:
    """Bar charts, by file name, of what there is."""
    found = {}
    for size in ("T128", "S96", "B224"):
        if (each := results.get(f"step {size} cpu")) is not None:
            rates = {name: row["images_per_s"] for name, row in each["variants"].items()}
            found[f"step-{size}.svg"] = bars(f"A training step, {size}: images a second", rates)
    for kind, title in (("500x375", "500×375 JPEGs"), ("6_megapixel", "6-megapixel JPEGs")):
        if (each := results.get("loader photographs", {}).get(kind)) is not None:
            rates = {way.replace("_", " "): rate for way, rate in each["images_a_second"].items()}
            found[f"loading-{kind}.svg"] = bars(f"Loading {title}: images a second a core", rates)
    return found


def bars(title: str, values: dict[str, float], width: int = 640, row: int = 26, left: int = 190) -> str:
    """A horizontal bar chart as SVG; it reads on light and on dark pages."""
    most, height = max(values.values()), 40 + row * len(values)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13" role="img"><title>{escape(title)}</title>',
        f'<text x="8" y="20" font-size="15" fill="#888">{escape(title)}</text>',
    ]
    for place, (name, value) in enumerate(values.items()):
        top, long = 34 + row * place, (width - left - 80) * value / most
        colour = "#8c96a3" if name.startswith(("transformers", "lightly", "monai", "reference")) else "#2a78c2"
        lines += [
            f'<text x="{left - 8}" y="{top + 14}" text-anchor="end" fill="#888">{escape(name)}</text>',
            f'<rect x="{left}" y="{top}" width="{long:.1f}" height="{row - 8}" fill="{colour}"/>',
            f'<text x="{left + long + 6:.1f}" y="{top + 14}" fill="#888">{value:,.4g}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    main()
