"""What a report needs to know of `study.json`: the strategies, the seeds, the network."""

from collections.abc import Mapping, Sequence


def section(source: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return the table `name` of `source`, empty when there is none."""
    value = source.get(name)
    return value if isinstance(value, Mapping) else {}


def resolved_study(study: Mapping[str, object]) -> Mapping[str, object]:
    """Return the resolved settings of a study record."""
    return section(study, "study") or study


def study_name(study: Mapping[str, object]) -> str:
    """Return the study's name, empty when it has none."""
    name = resolved_study(study).get("name")
    return name if isinstance(name, str) else ""


def strategies(study: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Return the strategies compared, in the study's order."""
    resolved = resolved_study(study)
    listed = resolved.get("strategies", resolved.get("strategy"))
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        return []
    return [each for each in listed if isinstance(each, Mapping)]


def expected_cells(study: Mapping[str, object]) -> list[tuple[str, int]]:
    """Return the (label, seed) pairs that the study asks for, in its order."""
    seeds = resolved_study(study).get("seeds")
    whole = [s for s in seeds if isinstance(s, int)] if isinstance(seeds, Sequence) else []
    labels = [str(each.get("label") or each.get("method") or "") for each in strategies(study)]
    return [(label, seed) for label in labels if label for seed in whole]


def network_names(study: Mapping[str, object]) -> list[str]:
    """Return the network profiles that the study names, none when it names none."""
    network = resolved_study(study).get("network")
    if isinstance(network, str):
        return [network] if network else []
    if isinstance(network, Mapping):
        network = network.get("profiles", network.get("profile"))
        return network_names({"network": network})
    if isinstance(network, Sequence):
        return [each for each in network if isinstance(each, str)]
    return []
