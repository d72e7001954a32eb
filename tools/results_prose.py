"""Sentences of README and ``docs/results.md``, made from the committed CSV files: each number and each
verdict comes from a line of them."""

from collections.abc import Iterable, Mapping, Sequence

from modbench.records.run_name import budget_text

Line = Mapping[str, str]

NAMES = {
    "vanilla": "the dense model",
    "token_choice": "token choice",
    "expert_choice": "expert choice",
    "mod": "Mixture-of-Depths",
    "mod:gaussian": "the random control",
    "mode_staged": "staged MoDE",
    "mode_integrated": "integrated MoDE",
}
#: What a verdict says of a loss compared with another one.
VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "equivalent": "equivalent to",
    "undecided": "not separable from",
}


def budget_name(flops: float) -> str:
    return budget_text(int(flops))


def listed(words: Sequence[str]) -> str:
    """``words`` as a list in a sentence."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def by_budget(lines: Iterable[Line], scheme: str) -> dict[float, Line]:
    """The lines of ``scheme`` by budget, the smallest first."""
    of_scheme = {float(line["budget"]): line for line in lines if line["scheme"] == scheme}
    return dict(sorted(of_scheme.items()))


def lower_or_higher(line: Line) -> str:
    """The difference with its interval, such as "lower by 0.0126 (0.0600 lower to 0.0276 higher)"."""
    middle = float(line["difference"])
    ends = [float(line["difference_low"]), float(line["difference_high"])]
    word = "lower" if middle < 0 else "higher"
    if min(ends) < 0 < max(ends):
        low, high = (f"{abs(end):.4f} {'lower' if end < 0 else 'higher'}" for end in ends)
        return f"{word} by {abs(middle):.4f} ({low} to {high})"
    low, high = sorted(abs(end) for end in ends)
    return f"{word} by {abs(middle):.4f} ({low:.4f} to {high:.4f})"


def verdict_in_words(lines: Mapping[float, Line], other: str, key: str = "difference_verdict") -> str:
    """Such as "better than OTHER at every budget", or "better than OTHER at 3e12, and not separable from
    it at 1e13"."""
    groups: dict[str, list[str]] = {}
    for budget, line in lines.items():
        groups.setdefault(line[key], []).append(budget_name(budget))
    if len(groups) == 1:
        (verdict,) = groups
        if verdict == "undecided":
            return f"at no budget {VERDICTS[verdict].removeprefix('not ')} {other}"
        return f"{VERDICTS[verdict]} {other} at every budget"
    parts = zip(groups.items(), [other, *["it"] * len(groups)], strict=False)
    return ", and ".join(
        f"{VERDICTS[verdict]} {name} at {listed(budgets)}" for (verdict, budgets), name in parts
    )


def span(values: Iterable[float], digits: int = 2) -> str:
    """The smallest and the largest of ``values``."""
    low, high = min(values := list(values)), max(values)
    return f"{low:.{digits}f} to {high:.{digits}f}"


def against_dense(optima: Sequence[Line], scheme: str) -> str:
    """The verdicts of ``scheme`` and its differences at each budget."""
    lines = by_budget(optima, scheme)
    each = [f"{lower_or_higher(line)} at {budget_name(budget)}" for budget, line in lines.items()]
    name = NAMES[scheme][0].upper() + NAMES[scheme][1:]
    verdict = verdict_in_words(lines, NAMES["vanilla"])
    return f"{name} is {verdict}: its loss is {listed(each)} FLOPs."


def experts_in_words(optima: Sequence[Line], schemes: Sequence[str]) -> str:
    """The verdicts of several schemes, and the span of their differences."""
    same = {scheme: verdict_in_words(by_budget(optima, scheme), NAMES["vanilla"]) for scheme in schemes}
    differences = [
        float(line["difference"]) for scheme in schemes for line in by_budget(optima, scheme).values()
    ]
    if len(set(same.values())) == 1:
        text = f"{listed([NAMES[scheme] for scheme in schemes])} are {same[schemes[0]]}"
    else:
        text = "; ".join(f"{NAMES[scheme]} is {words}" for scheme, words in same.items())
    text = text[0].upper() + text[1:]
    if max(differences) < 0:
        return f"{text}; the loss is lower by {span(-value for value in differences)} nats."
    return (
        f"{text}; the differences in loss are {min(differences):+.2f} to {max(differences):+.2f} nats."
    )


def pair(differences: Sequence[Line], scheme: str, other: str) -> list[Line]:
    """The lines that compare two schemes, each as ``scheme`` minus ``other``."""
    lines = []
    for line in differences:
        if (line["scheme"], line["minus"]) == (scheme, other):
            lines.append(line)
        elif (line["scheme"], line["minus"]) == (other, scheme):
            lines.append(turned(line))
    return lines


def turned(line: Line) -> Line:
    """The difference the other way round."""
    low, middle, high = (f"difference{end}" for end in ("_high", "", "_low"))
    opposite = {"better": "worse", "worse": "better"}
    return {
        **line,
        "difference": str(-float(line[middle])),
        "difference_low": str(-float(line[low])),
        "difference_high": str(-float(line[high])),
        "verdict": opposite.get(line["verdict"], line["verdict"]),
        "lower_in": str(int(line["cells"]) - int(line["lower_in"])) if line["lower_in"] else "",
    }


def pair_in_words(differences: Sequence[Line], scheme: str, other: str) -> str:
    """Two schemes at their optima, and in runs that differ in the router only."""
    lines = pair(differences, scheme, other)
    optima = {float(line["budget"]): line for line in lines if line["budget"]}
    words = verdict_in_words(dict(sorted(optima.items())), NAMES[other], "verdict")
    text = f"At its optima {NAMES[scheme]} is {words}"
    for line in lines:
        if not line["budget"]:
            verdict = VERDICTS[line["verdict"]].rpartition(" ")[0]
            text += (
                f"; in runs of equal shape, rate and seed its loss is {lower_or_higher(line)} nats on "
                f"average of {line['cells']} shapes and budgets, lower in {line['lower_in']} (verdict: "
                f"{verdict})"
            )
    return f"{text}."


def in_seconds(optima: Sequence[Line], schemes: Sequence[str]) -> str:
    """The speed-ups in FLOPs and in seconds, at the budgets where both are known exactly."""
    known = [
        line
        for scheme in schemes
        for line in by_budget(optima, scheme).values()
        if line["speed_up_seconds"] and not line["speed_up_bound"]
    ]
    if not known:
        return "No speed-up in seconds is known."
    doubtful = sum(bool(line["doubtful_times"]) for line in known)
    marks = "all" if doubtful == len(known) else f"{doubtful} of {len(known)}"
    return (
        "Where the dense model's FLOPs for an equal loss are known, it needs "
        f"{_span(known, 'speed_up')} times as many as the other schemes, and "
        f"{_span(known, 'speed_up_seconds')} times as many seconds of training steps on this CPU; "
        f"{marks} of these times are marked loaded or unstable."
    )


def _span(lines: Sequence[Line], name: str) -> str:
    return span(float(line[name]) for line in lines)
