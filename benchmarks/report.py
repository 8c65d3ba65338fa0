"From measured numbers to RESULTS.md: a table, a plot of the ratios, the loss curves"
import json, statistics
from pathlib import Path

header = "<!-- Written by `make bench` (benchmarks/run.py): measure again, don't edit. -->"
blue, orange, green, grey = "#56b4e9", "#d55e00", "#009e73", "#777777"  # Okabe and Ito's, for every kind of eye


# Rows

def row(what: str, peer: str, ours: list[dict], theirs: list[dict], measure: str = "seconds", unit: str = "s",
        better: str = "lower", target: float | None = None) -> dict:
    """One line of the table, from the answers of the processes. better: "lower", "higher": the ratio says how many times
    better ours is; "equal", "not above": the difference; "below": ours alone, against `target` itself"""
    values = lambda runs: [run[measure] for run in runs if run.get(measure) is not None]
    failed = next((run["error"] for run in [*ours, *theirs] if "error" in run), None)
    if not failed and not (values(ours) and (values(theirs) or better == "below")): failed = f"no {measure} was measured"
    return dict(what=what, peer=peer, unit=unit, better=better, target=target, ours=values(ours), theirs=values(theirs),
                error=failed)


def note(what: str, why: str) -> dict:
    "A line for what was left out"
    return row(what, "", [dict(error=why)], [])


def curves(name: str, names: dict, runs: dict) -> dict:
    "The held-out losses of the first run of each: [[step, loss] …]"
    lines = {names[variant]: done[0]["losses"] for variant, done in runs.items() if done and "losses" in done[0]}
    return dict(curves=name, lines=lines)


def stages(name: str, runs: list[dict]) -> dict:
    "Where the seconds of a run went"
    return dict(stages=name, seconds=runs[0].get("stages", {}))


def median(runs: list[dict], measure: str) -> float: # NaN where nothing was measured
    values = [run[measure] for run in runs if measure in run]
    return statistics.median(values) if values else float("nan")


def ratio(row: dict) -> float | None:
    "How many times better ours is; for \"equal\" and \"not above\", how far ours is from theirs, as a share"
    if row["error"] or row["better"] == "below": return None
    ours, theirs = statistics.median(row["ours"]), statistics.median(row["theirs"])
    if row["better"] in ("equal", "not above"): return ours/theirs - 1
    return ours/theirs if row["better"] == "higher" else theirs/ours


def met(row: dict) -> bool | None:
    "Whether the target is reached; None where there is none, or nothing was measured"
    if row["error"] or row["target"] is None: return None
    if row["better"] == "below": return statistics.median(row["ours"]) < row["target"]
    if row["better"] == "equal": return abs(ratio(row)) <= row["target"]
    return ratio(row) <= row["target"] if row["better"] == "not above" else ratio(row) >= row["target"]


# Text

def number(value: float, unit: str = "") -> str:
    "Three digits, or all before the point"
    digits = ",.0f" if abs(value) >= 100 else ".1f" if abs(value) >= 10 else ".2f" if abs(value) >= 1 else ".3g"
    return f"{value:{digits}} {unit}".rstrip()


def times(ratio: float) -> str: return f"{ratio:.{2 if ratio < 10 else 1}f}x"


def cells(row: dict) -> list[str]:
    "One row of the table"
    middle = lambda values: number(statistics.median(values), row["unit"]) if values else "–"
    share, goal = row["better"] in ("equal", "not above"), row["target"]
    if goal is None: aim = ""
    elif row["better"] == "below": aim = f"< {number(goal, row['unit'])}"
    elif share: aim = f"≤ {goal:.3g}".replace(f"{goal:.3g}", f"{100*goal:.3g} %")
    else: aim = f"≥ {goal:g}x"
    result = ratio(row)
    if row["error"]: ours, theirs, shown = "–", "–", f"not run: {row['error'].replace('|', '/')}"
    else:
        ours, theirs = middle(row["ours"]), middle(row["theirs"])
        shown = "" if result is None else f"{100*result:+.2g} %" if share else f"**{times(result)}**"
    reached = {True: "yes", False: "no", None: ""}[met(row)]
    return [row["what"], row["peer"], theirs, ours, shown, aim, reached, f"{len(row['ours'])}, {len(row['theirs'])}"]


def table(rows: list[dict]) -> list[str]:
    "The lines of a Markdown table"
    head = "| What | Peer | Peer's | Ours | Ratio | Target | Met | Runs (ours, peer's) |"
    return [head, "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |",
            *(f"| {' | '.join(cells(r))} |" for r in rows if "what" in r)]


def command(only: str, scale: float) -> str:
    "What to type for the same run"
    return " ".join(["make bench", *([f"ONLY={only}"] if only else []), *([f"SCALE={scale:g}"] if scale != 1 else [])])


def where(results: dict) -> str:
    "The machine, in a few words"
    m = results["machine"]
    kinds = {"bf16": "with bf16", "float32": "without bf16"}
    held = ", ".join(f"{name}={value}" for name, value in m.get("limits", {}).items())
    parts = [f"{m['cores']} cores of {m['cpu']}", kinds.get(m.get("kind")), held and f"kept from it by {held}",
             m["memory"] and f"{m['memory']} GiB", m["gpu"] or "no GPU", m["system"]]
    return ", ".join(filter(None, parts))


def markdown(results: dict) -> str:
    "RESULTS.md"
    m, real = results["machine"], results["real_data"]
    found = ", ".join(f"{name} {v}" if v else f"{name} not installed" for name, v in m["versions"].items())
    text, pictures = [header, "", "# Side by side", ""], any(ratio_rows(results))
    command = f"`{results['command']}`{' with CLM_NB_TEST_DATA' if real else ''}"
    commit = f", commit {m['commit']}" if m["commit"] else ""
    text += [f"{command}, {results['date']}, {results['minutes']:.1f} minutes, on {where(results)}; "
             f"Python {m['python']}, {found}{commit}.", ""]
    if pictures: text += ["![How many times better than each peer](ratios.png)", ""]
    for name, group in results["groups"].items():
        again = f" Measured again with {group['again']}" if "again" in group else ""
        text += [f"## {name.capitalize()}", "", f"{group['title'].rstrip('.')}.{again}", "", *table(group["rows"]), ""]
        for part in group["rows"]:
            if part.get("seconds"):
                seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in part["seconds"].items())
                text += [f"{part['stages'].capitalize()}, seconds: {seconds}.", ""]
        if any(part.get("lines") for part in group["rows"]):
            text += ["![Held-out loss by step](losses.png)", ""]
    return "\n".join([*text, "## How it was measured", "", how(real), ""])


def how(real: bool) -> str:
    "The method, in a few sentences"
    texts = "real answers" if real else "the standard library's own documentation"
    return f"""Each number is the median of its runs; a ratio above 1 says that ours is better. Every run is a new process with
empty caches (only the embedded corpus is there); ours and the peers take turns. Imports and the
making of models and tokenizers are outside of the time, except in the start-up, the demo, and where the line says so.
Generation, perplexity and training are warmed up: a short call before, or the first two steps left out.

- **Records** are made up of sentences of {texts}, about 320 tokens each, always the same, in ELI5's
  nested schema; tokens are those of {"GPT-2" if real else "the embedded tokenizer"}. Ours starts from the same train and
  test records as the peers, closes documents with EOS and writes the ledger, which the peers don't. *A second run* is a
  new process that finds the caches of the first. On the real sample, where CLM_NB_TEST_DATA names one, the first pass has
  all in it that is imported or set up at the first call.
- **Memory** is the highest sum of PSS over the process tree, start and imports included, sampled with psutil about every
  20 ms, in runs of its own, since sampling takes time.
- **Training**: random weights for distilgpt2's shape (82 M parameters, a vocabulary of 50,257), the same data in the same
  order, learning rate and steps. Tokens/s come from the median step, from the end of one to the end of the next. The
  held-out loss is taken by the same plain float32 code for all, outside of the time.
- **Generation**: sampling (top_k=50, top_p=0.95) with min_new_tokens, so that everyone makes as many tokens.
- **Start-up**: whole processes, interpreter included; the first two are medians of ten in a row."""


# Pictures

def ratio_rows(results: dict) -> list[tuple[str, dict]]:
    "(group, row) of every ratio that was measured"
    return [(name, r) for name, group in results["groups"].items() for r in group["rows"]
            if "what" in r and r["better"] in ("lower", "higher") and not r["error"]]


def ratio_plot(results: dict):
    "A bar for each ratio, with its target"
    from matplotlib.figure import Figure
    rows = ratio_rows(results)
    panels = list(dict.fromkeys(name for name, _ in rows))
    heights = [sum(name == panel for name, _ in rows) for panel in panels]
    fig = Figure(figsize=(10, 0.9 + sum(0.36*h + 0.55 for h in heights)), layout="constrained")
    shares = dict(height_ratios=[h + 0.6 for h in heights])
    axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw=shares)[:, 0]
    top = max(max(ratio(r), r["target"] or 0) for _, r in rows)
    for ax, panel in zip(axes, panels):
        mine = [r for name, r in rows if name == panel]
        ax.barh(range(len(mine)), [ratio(r) - 1 for r in mine], left=1, color=blue, height=0.7)
        for i, r in enumerate(mine):
            beyond = max(ratio(r), 1, *([r["target"]] if r["target"] and r["target"] > ratio(r) else []))
            ax.annotate(times(ratio(r)), (beyond, i), (5, 0), textcoords="offset points",
                        va="center", fontsize=9)
            if r["target"]: ax.vlines(r["target"], i - 0.42, i + 0.42, color=orange, linewidth=2.5)
        ax.set_yticks(range(len(mine)), [f"{r['what']}\nvs {r['peer']}" for r in mine], fontsize=7.5, linespacing=1.05)
        ax.set_title(panel.capitalize(), loc="left", fontsize=10, fontweight="bold")
        ax.invert_yaxis()
        ax.axvline(1, color=grey, linewidth=0.8)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[-1].set_xscale("log")
    axes[-1].set_xlim(min(0.7, *(0.8*ratio(r) for _, r in rows)), top*1.9)
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if t < top*1.9]
    axes[-1].set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes[-1].set_xticks([], minor=True)
    axes[-1].set_xlabel("how many times better than the peer; orange: the target")
    return fig


def loss_plot(results: dict):
    "Held-out losses by step; None where there are none"
    from matplotlib.figure import Figure
    found = [part for group in results["groups"].values() for part in group["rows"] if part.get("lines")]
    if not found: return None
    fig = Figure(figsize=(4.8*len(found), 3.4), layout="constrained")
    for ax, part in zip(fig.subplots(1, len(found), squeeze=False)[0], found):
        looks = (blue, "-", "o", 4.5), (orange, "--", "s", 2), (green, ":", "^", 2)
        for (name, points), (colour, line, marker, width) in zip(part["lines"].items(), looks):
            ax.plot(*zip(*points), color=colour, linestyle=line, marker=marker, linewidth=width, label=name)
        ax.set(xlabel="step", ylabel="held-out loss (nats per token)", title=part["curves"])
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def beside_earlier(results: dict, folder: Path) -> dict:
    "What a run on the same machine and with the same versions left in a folder, with some groups measured again"
    path = folder/"results.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = ("machine" in earlier and earlier["real_data"] == results["real_data"]
            and earlier["machine"] | dict(commit=None) == results["machine"] | dict(commit=None))
    if not same: return results
    again = f"`{results['command']}`, {results['date']}, commit {results['machine']['commit']}."
    return earlier | dict(groups=earlier["groups"] | {name: group | dict(again=again) for name, group in results["groups"].items()})


def write(results: dict, folder: Path):
    "results.json, RESULTS.md and its pictures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder/"results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if ratio_rows(results): ratio_plot(results).savefig(folder/"ratios.png", dpi=110)
    if fig := loss_plot(results): fig.savefig(folder/"losses.png", dpi=110)
    (folder/"RESULTS.md").write_text(markdown(results), encoding="utf-8")
