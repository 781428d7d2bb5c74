"""The figure of the packages that were compared as scorers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from polydetox.core.languages import LANGUAGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_candidates(auc: pd.DataFrame) -> Figure:
    """AUC of each packaged scorer by language, a panel a task.

    ``auc`` has ``language, task, scorer`` and ``auc``.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    from polydetox.results.figures import MUTED, ROW, WIDTH, language_axis, legend, use_theme

    use_theme()
    languages = [language for language in LANGUAGES if language in set(auc["language"])]
    names, tasks = list(dict.fromkeys(auc["scorer"])), list(dict.fromkeys(auc["task"]))
    figure, axes = plt.subplots(1, len(tasks), figsize=(WIDTH, 1.2 + ROW * len(languages)), sharey=True, squeeze=False)
    for axis, task in zip(axes.flat, tasks, strict=True):
        language_axis(axis, languages)
        for position, name in enumerate(names):
            rows = auc[(auc["task"] == task) & (auc["scorer"] == name)].set_index("language").reindex(languages)
            axis.plot(rows["auc"], range(len(languages)), linestyle="none", marker="oDs^vP"[position % 6], label=name,
                      color=sns.color_palette("colorblind")[position % 10], markersize=5)  # fmt: skip
        axis.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
        axis.set(xlabel=f"AUC: {task}", xlim=(0.45, 1.02))
    legend(figure, axes.flat[0])
    return figure
