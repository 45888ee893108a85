"""The figure of a probe: what each source of examples costs, gives, and comes to."""

from matplotlib.figure import Figure

from gradsift.prospect import Prospects
from gradsift.report.figures import FAINT, INK, ONE

PARTS = (("loading", "#a8a29e"), ("training", ONE[0]), ("scoring, drawing", "#d9480f"))


def prospects(found: Prospects) -> Figure:
    """Seconds of a step by what they are spent on; variance ratio; progress per second.

    A bar reaches from the lower end of the interval to the estimate; the dashed line is the
    user's own order.
    """
    names = ["your own order", *(source.name for source in found.sources)]
    figure = Figure(figsize=(10.4, 1.8 + 0.34 * len(names)), layout="constrained")
    costs, ratios, gains = figure.subplots(1, 3, sharey=True)
    loading = found.loading_share
    for place, seconds in enumerate([1.0, *(source.seconds for source in found.sources)]):
        start = 0.0
        widths = (loading, 1 - loading, max(seconds - 1, 0.0))
        for (label, colour), width in zip(PARTS, widths, strict=True):
            shown = label if place == 0 else None
            costs.barh(place, width, left=start, height=0.6, color=colour, label=shown)
            start += width
    for panel, key in ((ratios, "variance_ratio"), (gains, "gain")):
        lower = "lower" if panel is ratios else "gain_lower"
        for place, source in enumerate(found.sources, start=1):
            ends = getattr(source, lower), getattr(source, key)
            panel.plot(ends, (place, place), color=INK, solid_capstyle="butt", linewidth=3)
            panel.plot(ends[1], place, "o", color=INK)
        panel.plot(1, 0, "o", color=FAINT)
        panel.axvline(1, color=FAINT, linestyle="--", linewidth=1)
    costs.set(title="Seconds of a step", xlabel="plain steps")
    costs.set_yticks(range(len(names)), names)
    costs.invert_yaxis()
    figure.legend(loc="outside lower left", ncols=len(PARTS), fontsize=8, frameon=False)
    ratios.set(title="Variance ratio", xlabel="uniform / drawn")
    gains.set(title="Progress per second", xlabel="against your own order")
    for panel in (costs, ratios, gains):
        panel.grid(visible=False, axis="y")
    return figure
