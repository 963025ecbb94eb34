"""Results for people to read: a table for the terminal, a report in Markdown, the curves of a training run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal.data.atomic import written_whole
from xmodal.data.text import read_lines
from xmodal.evaluation.pages import fill_page
from xmodal.evaluation.ranks import RECALL_LEVELS
from xmodal.figures import new_figure, save_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEMPLATE = Path(__file__).with_name("report.md")
DIRECTIONS = ("i2t", "t2i")
RECALLS = (*(f"{direction} R@{level}" for direction in DIRECTIONS for level in RECALL_LEVELS), "rsum")
JUDGED = tuple(
    f"{direction} {metric}" for direction in DIRECTIONS for metric in ("R@1", "R-precision", "mAP@R", "nDCG")
)
WITHIN = ("i2i", "t2t")
WITHIN_COLUMNS = (*(f"R@{level}" for level in RECALL_LEVELS), "MedR", "R-precision", "mAP@R")
PLAUSIBLE = tuple(f"{direction} {metric}" for direction in DIRECTIONS for metric in ("R-precision", "R@1"))
HUBNESS = tuple(f"{direction} {measure}" for direction in DIRECTIONS for measure in ("skewness", "never", "most"))
RANKS = tuple(f"{direction} {average}" for direction in DIRECTIONS for average in ("MedR", "MeanR"))


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out recalls in percent as an aligned table for the terminal, a line for each model.

    Args:
        results: model name -> result of `evaluate_retrieval` or `evaluate_protocol`.

    >>> import torch
    >>> from xmodal.evaluation import evaluate_retrieval
    >>> print(format_table({"perfect": evaluate_retrieval(torch.eye(2), torch.tensor([0, 1]))}))
    model    i2t R@1  i2t R@5  i2t R@10  t2i R@1  t2i R@5  t2i R@10   rsum
    ----------------------------------------------------------------------
    perfect    100.0    100.0     100.0    100.0    100.0     100.0  600.0
    """
    return _plain_table(_table_rows(results, RECALLS))


def format_judged(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out what judgements add to recalls as an aligned table for the terminal, a line for each model.

    Args:
        results: model name -> result of `evaluate_relevance`.

    >>> import torch
    >>> from xmodal.evaluation import evaluate_relevance
    >>> print(format_judged({"perfect": evaluate_relevance(torch.eye(2), torch.tensor([0, 1]))}))
    judged   i2t R@1  i2t R-precision  i2t mAP@R  i2t nDCG  t2i R@1  t2i R-precision  t2i mAP@R  t2i nDCG
    -----------------------------------------------------------------------------------------------------
    perfect    100.0            100.0      100.0     100.0    100.0            100.0      100.0     100.0
    """
    return _plain_table(_table_rows(results, JUDGED, corner="judged"))


def format_results(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All tables of an evaluation for the terminal: recalls, then judgements and hubness where there are some.

    Args:
        results: model name -> what `evaluate_matchers` gives. Protocols after the first have lines of their own.

    >>> import torch
    >>> from xmodal.evaluation import evaluate_protocol
    >>> result = evaluate_protocol(torch.eye(2), torch.tensor([0, 1]))
    >>> print(format_results({"perfect": {**result, "also": {"mine": result}}}))
    model          i2t R@1  i2t R@5  i2t R@10  t2i R@1  t2i R@5  t2i R@10   rsum
    ----------------------------------------------------------------------------
    perfect          100.0    100.0     100.0    100.0    100.0     100.0  600.0
    perfect, mine    100.0    100.0     100.0    100.0    100.0     100.0  600.0
    """
    tables = [format_table(recalls)] if (recalls := _recalls(results)) else []
    if judged := _judged(results):
        tables.append(format_judged(judged))
    return "\n\n".join([*tables, *map(_plain_table, _further(results))])


def _further(results: Mapping[str, Mapping[str, Any]]) -> list[list[list[str]]]:
    """Rows of the tables that only some evaluations have: plausible matches, within one modality, hubs."""
    lines = _lines(results)
    parts = [("plausible", PLAUSIBLE, {name: result for name, result in lines.items() if "rsum" not in result})]
    for kind in WITHIN:
        within = {model: result[kind] for model, result in results.items() if kind in result}
        parts.append((kind, WITHIN_COLUMNS, within))
    hubs = {name: result["hubness"] for name, result in lines.items() if "hubness" in result}
    parts.append(("hubness", HUBNESS, hubs))
    return [_table_rows(part, columns, corner=corner) for corner, columns, part in parts if part]


def _lines(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """A line for every model and, after it, for every further protocol."""
    lines: dict[str, Mapping[str, Any]] = {}
    for model, result in results.items():
        lines[model] = result
        lines |= {f"{model}, {protocol}": other for protocol, other in result.get("also", {}).items()}
    return lines


def _recalls(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What has been evaluated by recalls."""
    return {name: result for name, result in _lines(results).items() if "rsum" in result}


def _judged(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What has been evaluated by judgements, of a file or of a protocol."""
    lines = {name: result for name, result in _lines(results).items() if "nDCG" in result["i2t"]}
    return lines | {model: result["judged"] for model, result in results.items() if "judged" in result}


def format_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out recalls in percent as a Markdown table; arguments as in `format_table`.

    >>> import torch
    >>> from xmodal.evaluation import evaluate_retrieval
    >>> result = evaluate_retrieval(torch.eye(2), torch.tensor([0, 1]))
    >>> print(format_markdown({"perfect": result}))
    | model   | i2t R@1 | i2t R@5 | i2t R@10 | t2i R@1 | t2i R@5 | t2i R@10 |  rsum |
    | ------- | ------: | ------: | -------: | ------: | ------: | -------: | ----: |
    | perfect |   100.0 |   100.0 |    100.0 |   100.0 |   100.0 |    100.0 | 600.0 |
    """
    return markdown_table(_table_rows(results, RECALLS))


def write_report(
    path: str | Path,
    results: Mapping[str, Mapping[str, Any]],
    *,
    title: str = "Retrieval results",
    details: Mapping[str, Any] | None = None,
    pictures: Mapping[str, str | Path] | None = None,
) -> None:
    """Write a Markdown report: recalls, ranks, judgements, hubs, folds where a protocol cuts them, pictures, details.

    Args:
        path: the file to write; it appears whole or not at all.
        results: model name -> result of `evaluate_retrieval` or `evaluate_protocol`.
        title: the heading.
        details: what is needed to run this again (config, seed, versions, ...); shown as JSON.
        pictures: caption -> image file, linked relative to the report.

    Raises:
        FileNotFoundError: a picture is not there.
        OSError: the report cannot be written.

    >>> import torch
    >>> from xmodal.evaluation import evaluate_retrieval
    >>> result = evaluate_retrieval(torch.eye(2), torch.tensor([0, 1]))
    >>> write_report("report.md", {"perfect": result}, details={"seed": 0})
    >>> print(Path("report.md").read_text().splitlines()[0])
    # Retrieval results
    """
    path = Path(path)
    judged, further, lines, results = _judged(results), _further(results), _lines(results), _recalls(results)
    protocols = [f"- {model}: `{result['protocol']}`" for model, result in lines.items() if "protocol" in result]
    links = [_link_picture(caption, Path(file), path) for caption, file in (pictures or {}).items()]
    folds = {
        f"{model}, fold {number}": fold
        for model, result in results.items()
        if len(result.get("folds", ())) > 1
        for number, fold in enumerate(result["folds"], start=1)
    }
    text = fill_page(
        TEMPLATE,
        title=title,
        recalls=format_markdown(results) if results else "",
        ranks=markdown_table(_table_rows(results, RANKS)) if results else "",
        protocols="\n".join(protocols),
        judgements=markdown_table(_table_rows(judged, JUDGED)) if judged else "",
        further="\n\n".join(map(markdown_table, further)),
        folds=format_markdown(folds) if folds else "",
        pictures="\n\n".join(links),
        details=f"```json\n{json.dumps(details, indent=2, default=str)}\n```" if details else "",
    )
    with written_whole(path) as whole:
        whole.write_text(text, encoding="utf-8")


def plot_learning_curves(log_path: str | Path, output_png: str | Path) -> None:
    """Draw a training run: the terms of the loss on the left, the validation's R@1 and rsum on the right.

    Args:
        log_path: the trainer's log, a JSON object a line: `{"step": 100, "loss/total": 51.2, ...}` for training,
            `{"step": 500, "validation": {...}}` for a validation. A step logged again, as after resuming from an
            earlier checkpoint, replaces what was logged before.
        output_png: the picture to write; it appears whole or not at all.

    Raises:
        FileNotFoundError: no such log.
        ValueError: the log is empty, or a line is no JSON object with a step.
        OSError: the picture cannot be written.

    >>> validation = {"i2t": {"R@1": 20.0}, "t2i": {"R@1": 15.0}, "rsum": 180.0}
    >>> lines = [{"step": 1, "loss/total": 9.0}, {"step": 2, "loss/total": 7.0}, {"step": 2, "validation": validation}]
    >>> _ = Path("log.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    >>> plot_learning_curves("log.jsonl", "curves.png")
    >>> Path("curves.png").exists()
    True
    """
    losses: dict[str, dict[int, float]] = {}
    validations: dict[int, dict[str, Any]] = {}
    for entry in _read_log(Path(log_path)):
        for name, value in entry.items():
            if name.startswith("loss/"):
                losses.setdefault(name.removeprefix("loss/"), {})[entry["step"]] = value
        if "validation" in entry:
            validations[entry["step"]] = entry["validation"]

    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for name, curve in losses.items():
        left.plot(*zip(*sorted(curve.items()), strict=True), label=name)
    left.set(title="Loss", xlabel="step")

    steps = sorted(validations)
    for direction in DIRECTIONS:
        recalls = [validations[step][direction]["R@1"] for step in steps]
        right.plot(steps, recalls, marker="o", markersize=3, label=f"{direction} R@1")
    right.set(title="Validation", xlabel="step", ylabel="R@1 (%)")
    sums = right.twinx()
    sums.plot(steps, [validations[step]["rsum"] for step in steps], color="gray", linestyle="--", label="rsum")
    sums.set_ylabel("rsum")

    if losses:
        left.legend(frameon=False)
    curves = [*right.lines, *sums.lines]
    right.legend(curves, [curve.get_label() for curve in curves], frameon=False, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines["top"].set_visible(False)
    sums.spines["top"].set_visible(False)
    save_figure(figure, Path(output_png), dpi=150)


def _table_rows(
    results: Mapping[str, Mapping[str, Any]], columns: Sequence[str], corner: str = "model"
) -> list[list[str]]:
    """Return the header and a row of cells for each model; the column `i2t R@1` shows `result["i2t"]["R@1"]`."""

    def cell(result: Any, column: str) -> str:
        for key in column.split():
            result = result[key]
        return f"{result:.1f}"

    rows = [[model, *(cell(result, column) for column in columns)] for model, result in results.items()]
    return [[corner, *columns], *rows]


def _plain_table(rows: Sequence[Sequence[str]]) -> str:
    header, *lines = ("  ".join(row) for row in _align(rows))
    return "\n".join([header, "-" * len(header), *lines])


def _align(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Pad the cells of each column to one width: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [name.ljust(widths[0]), *(number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))]
        for name, *numbers in rows
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the header first, as a Markdown table that also reads well as plain text.

    >>> print(markdown_table([["model", "rsum"], ["SCAN", "465.0"]]))
    | model |  rsum |
    | ----- | ----: |
    | SCAN  | 465.0 |
    """
    header, *lines = _align([[cell.replace("|", "\\|") for cell in row] for row in rows])
    rule = ["-" * len(header[0]), *("-" * (len(cell) - 1) + ":" for cell in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *lines))


def _link_picture(caption: str, picture: Path, report: Path) -> str:
    """Return the Markdown that shows a picture in a report, with its path relative to the report.

    Raises:
        FileNotFoundError: the picture is not there.
    """
    if not picture.is_file():
        raise FileNotFoundError(f"picture {caption!r} for {report} is not there: {picture}; draw it before the report")
    return f"![{caption}]({Path(os.path.relpath(picture, report.parent)).as_posix()})"


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a training log.

    Raises:
        FileNotFoundError: no such log.
        ValueError: the log is empty, or a line is no JSON object with a step.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no training log {path}; pass the JSONL file of a run folder")
    entries = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no JSON ({error}): {line[:80]!r}; remove the line") from error
        if not isinstance(entry, dict) or "step" not in entry:
            raise ValueError(f"{path}, line {number} is no JSON object with a step: {line[:80]!r}; remove the line")
        entries.append(entry)
    if not entries:
        raise ValueError(f"{path} is empty; there is nothing to draw before the first logged step")
    return entries
