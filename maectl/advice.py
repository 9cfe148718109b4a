"""What a benchmark's figures mean: a table, and the one change that would help most."""

from collections.abc import Mapping
from typing import Any

__all__ = ["advice", "report"]

WORTH = 1.05  # times as fast: smaller gains are not worth a change
LARGER = 4  # times the batch, of which the optimizer's share is reckoned
LOW = 0.25  # share of the peak below which a GPU is not filled
WORDS = {"read": "reading", "decode": "decoding", "crop_resize": "cropping and resizing"}


def advice(result: Mapping[str, Any]) -> str:
    """The change that would speed up `maectl.bench.bench`'s result most, by its own figures."""
    gains = [each for each in (_data(result), _precision(result), _optimizer(result)) if each is not None]
    best = max(gains, default=(1.0, ""))
    if best[0] >= WORTH:
        return best[1]
    if result["device"].startswith("cuda") and result["mfu"] < LOW:
        return (
            f"the step reaches {result['mfu']:.0%} of what products of matrices reach here: a model or micro-batch "
            f"this small does not fill the device; try --batch-size {2 * result['batch_size']} with "
            f"--set train.micro_batch={2 * result['micro_batch']}"
        )
    return f"nothing stands out: the step is products of matrices at {result['mfu']:.0%} of the peak"


def _data(result: Mapping[str, Any]) -> tuple[float, str]:
    """How much faster the run would be if loading cost nothing, and how to come nearer to that.

    Not more than what is waited for, and on a CPU what loading takes of the cores: the rest of a difference is noise.
    """
    on_cpu, wait = result["device"].startswith("cpu"), result["data_wait_fraction"]
    taken = result["loading_s_an_image"][result["source"]] * result["images_per_s"] / result["cores"] if on_cpu else 0.0
    gain = min(result["step_images_per_s"] / result["images_per_s"], 1 / max(0.05, 1 - wait - taken))
    stages = {name: result["stages"][name]["s_an_image"] for name in WORDS if name in result["stages"]}
    worst = max(stages, key=lambda name: stages[name])
    threads, cores = result["workers"], result["cores"]
    also = f" and loading takes {taken:.0%} of the cores" if on_cpu else ""
    words = (
        f"data is waited for {wait:.0%} of the time{also}: {WORDS[worst]} takes {1000 * stages[worst]:.1f} ms an image "
        f"in each of {threads} threads"
    )
    times = result["loading_s_an_image"]
    if result["source"] == "files" and times["store"] is not None and times["store"] < 0.8 * times["files"]:
        return gain, (
            f"{words}; from a store an image takes {1000 * times['store']:.1f} ms, not {1000 * times['files']:.1f}: "
            f"--set data.store=FOLDER ({result['store_bytes'] / 1e9:.1f} GB)"
        )
    if threads < cores:
        return gain, f"{words}: --workers {cores}"
    return gain, f"{words}: more cores, or a smaller model.image_size"


def _precision(result: Mapping[str, Any]) -> tuple[float, str] | None:
    if result["bf16_step_images_per_s"] is None:
        return None
    gain = result["bf16_step_images_per_s"] / result["step_images_per_s"]
    return gain, f"the step is float32: bf16 is {gain:.1f} times as fast on this machine, --set train.precision=bf16"


def _optimizer(result: Mapping[str, Any]) -> tuple[float, str]:
    share = result["step_shares"]["optimizer"]
    gain = 1 / (1 - share * (1 - 1 / LARGER))
    return (
        gain,
        f"the optimizer takes {share:.0%} of a step: a larger batch, --batch-size {LARGER * result['batch_size']}",
    )


def report(result: Mapping[str, Any]) -> str:
    """The result for people."""
    model, flops = result["recipe"]["model"], result["flops_an_image"]
    size = "x".join(map(str, model["image_size"]))
    times = result["loading_s_an_image"]
    lines = [
        f"{result['device']}, {result['precision']}, {result['workers']} loader threads on {result['cores']} cores",
        f"model {model['size']} at {size} px, {result['batch_size']} images a step ({result['micro_batch']} at once), "
        f"loaded from {'a store' if result['source'] == 'store' else 'their files'}",
        "",
        f"{'stage':<16}{'ms an image':>12}{'ms a step':>12}",
        *(
            f"{name.replace('_', ', '):<16}{1e3 * each['s_an_image']:>12.3f}{1e3 * each['s_a_step']:>12.1f}"
            for name, each in result["stages"].items()
        ),
        "",
        *(
            f"loading one image from {name:<6}{1e3 * seconds:>9.2f} ms in one thread"
            for name, seconds in times.items()
            if seconds is not None
        ),
        f"loader alone    {result['loader_images_per_s']:>12,.0f} images/s",
        f"step alone      {result['step_images_per_s']:>12,.0f} images/s",
        f"both together   {result['images_per_s']:>12,.0f} images/s",
        f"data wait       {result['data_wait_fraction']:>12.1%} of the time",
        f"peak memory     {result['peak_memory_bytes'] / 2**30:>12.2f} GiB",
        f"FLOP an image   {flops['standard'] / 1e9:>12.2f} G by convention, {flops['computed'] / 1e9:.2f} G computed",
        f"utilisation     {result['mfu']:>12.1%} of {result['product_flops_per_s'] / 1e12:.2f} TFLOP/s, "
        "a product of matrices in this precision",
        "",
        result["advice"],
    ]
    return "\n".join(lines)
