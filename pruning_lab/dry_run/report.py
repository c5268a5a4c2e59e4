"""Print the plan of an experiment as tables, with estimates of its cost."""

from omegaconf import OmegaConf

from pruning_lab.config.sections import shown
from pruning_lab.dry_run.estimate import Estimate, Forecast
from pruning_lab.experiment.setup import Setup
from pruning_lab.graph.kinds import units_of
from pruning_lab.profiling.flops import flops_by_module
from pruning_lab.pruning.schedules import LayerByLayer, ToTarget
from pruning_lab.runtime.terminal import amount, duration, kind_of, table

NOTES = """\
A pass is one sample through the whole network as it stands; parts count by their share of the
FLOPs. There are "at most" so many where units that a sample leaves at 0 are skipped, or a rule may
end the sampling. Looks at the model, a few samples a layer, come on top.
Times are passes by the time of one, measured on this device on the network as it is built. They are
rough: the time of small parts does not go with their FLOPs. Networks after a cut are estimates,
too: units drawn at random went. What is on disk already (baseline, its scores) takes nothing."""

AT_MOST = "at most"


def dry_run(setup: Setup) -> str:
    """Return the plan of an experiment as text; nothing is written or trained."""
    forecast = Forecast(setup)
    config = OmegaConf.to_yaml(shown(setup.config), resolve=True)
    sections = {
        "Dry run: nothing is written, nothing is trained": config.splitlines(),
        _network_title(setup): _layers(setup),
        "Criteria on the baseline": _criteria(forecast),
        _steps_title(forecast): _steps(forecast),
        "In all": [*_total(forecast), "", *NOTES.splitlines()],
    }
    parts = [[title, "-" * len(title), *lines] for title, lines in sections.items()]
    return "\n\n".join("\n".join(part) for part in parts)


def _network_title(setup: Setup) -> str:
    size, shape = setup.network.original, " x ".join(map(str, setup.splits.input_size))
    return (
        f"{type(setup.network.model).__name__} on {shape}: {amount(size.flops)}FLOPs, "
        f"{size.parameters:,} parameters, {size.units:,} removable units"
    )


def _layers(setup: Setup) -> list[str]:
    """Return the table of the layers with removable units, with the layers coupled to them."""
    network = setup.network
    flops = flops_by_module(network.model, network.input_size)
    home = {
        layer: [other for other in group.unit_groups if other != layer]
        for group in network.groups().values()
        for layer in group.unit_groups
    }
    rows = []
    for name, layer in network.pruned.items():
        others = home.get(name, [])
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        share = flops.get(name, 0) / network.original.flops
        rows.append(
            [name, kind_of(layer), f"{units_of(layer):,}", f"{100 * share:.1f} %",
             others[0] + more if others else "", "" if name in network.layers else "no"]
        )  # fmt: skip
    heads = ["layer", "kind", "units", "FLOPs", "coupled to", "scored"]
    filled = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    heads, *rows = ([row[place] for place in filled] for row in (heads, *rows))
    return table(heads, rows, "llrrll"[: len(filled)])


def _criteria(forecast: Forecast) -> list[str]:
    together, rows = forecast.together(), []
    for name, estimate in forecast.on_baseline.items():
        others = [other for other in together if other != name]
        shared = f"one pass with {', '.join(others)}" if name in together and others else ""
        note = AT_MOST if estimate and estimate.at_most else shared
        rows.append([name, *_cells(estimate), note])
    return table(["criterion", "forward", "backward", "time", ""], rows, "lrrrl")


def _steps_title(forecast: Forecast) -> str:
    schedule = forecast.schedule
    of = f" (of the {schedule.of})" if isinstance(schedule, ToTarget) else ""
    if isinstance(schedule, LayerByLayer):
        of = " (target: of one layer, the last first; removed: of all units)"
    bounded = any(stage.scoring and stage.scoring.at_most for stage in forecast.stages)
    chosen = forecast.setup.names.metric
    return f"Steps{of}, scored by {chosen}" + (f": {AT_MOST}" if bounded else "")


def _steps(forecast: Forecast) -> list[str]:
    rows, schedule = [], forecast.schedule
    for number, stage in enumerate(forecast.stages, 1):
        of = schedule.of if isinstance(schedule, ToTarget) else "units"
        removed = 100 * (1 - getattr(stage.size, of) / getattr(forecast.network.original, of))
        aim, reached = forecast.aim(stage.step), ["below 0", "unknown"]
        if aim is not None:
            reached = [f"{100 * aim:.1f} %", f"{removed:.1f} %"]
        cells = ["as above", "", ""] if number == 1 else _cells(stage.scoring)
        rows.append(
            [str(number), *reached, str(stage.scored), amount(stage.size.flops),
             amount(stage.size.parameters), f"{stage.size.units:,}", *cells,
             duration(forecast.tuning(stage).seconds)]
        )  # fmt: skip
    heads = ["step", "target", "removed", "scored", "FLOPs", "params", "units",
             "forward", "backward", "scoring", "fine-tuning"]  # fmt: skip
    return table(heads, rows, "r" * len(heads))


def _total(forecast: Forecast) -> list[str]:
    parts = {name: each for name, each in forecast.parts().items() if each.seconds}
    parts["in all"] = sum(parts.values(), Estimate())
    rows = [[name, *_cells(each), AT_MOST if each.at_most else ""] for name, each in parts.items()]
    return table(["", "forward", "backward", "time", ""], rows, "lrrrl")


def _cells(estimate: Estimate | None) -> list[str]:
    """Forward, backward, time."""
    if estimate is None:
        return ["unknown"] * 3
    return [f"{estimate.forward:,.0f}", f"{estimate.backward:,.0f}", duration(estimate.seconds)]
