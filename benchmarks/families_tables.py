"""Markdown tables of the `families` benchmark; every cell without a value states the reason."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo import FAMILIES, TASKS, TREE

Rows = dict[str, dict[str, Any]]
STEPS = ("expand", "deploy", "fuse")
NOT_RUN = "not run: the converter is given a folded graph, as it is for yolo11n"


def tables(rows: Rows) -> str:
    """Return both tables: round trips and exports."""
    return f"{roundtrips(rows)}\n\n{exports(rows)}"


def roundtrips(rows: Rows) -> str:
    """Return one line per family and task, with the largest error of its models in each column."""
    heads = (
        "family",
        "task",
        "models",
        "expanded / all",
        *STEPS,
        "stock keys",
        "batch norms left by fuse / by stock's",
    )
    lines = head(heads)
    for family, tasks in FAMILIES.items():
        for task in tasks:
            cells = {name: row for name, row in of(rows, family, task).items() if "expanded" in row}
            lines.append(line([family, task, *(summary(cells) if cells else ["not measured"] * (len(heads) - 2))]))
        absent = ", ".join(task for task in TASKS if task not in tasks)
        if absent:
            lines.append(line([family, absent, "the host has no such model", *["—"] * (len(heads) - 3)]))
    return "\n".join(lines)


def summary(rows: Rows) -> list[str]:
    """Return the cells of one family and task."""
    done = list(rows.values())
    return [
        ", ".join(name.removesuffix(f" of a {TREE}") for name in rows),
        ", ".join(f"{row['expanded']}/{row['of']}" for row in done),
        *(figure(max(row[step] for row in done)) for step in STEPS),
        "yes"
        if all(row["keys"] for row in done)
        else "no: " + ", ".join(n for n, row in rows.items() if not row["keys"]),
        ", ".join(dict.fromkeys(f"{row['norms_left']}/{row['norms']}" for row in done)),
    ]


def exports(rows: Rows) -> str:
    """Return one line per exported model and one column per format, with the reasons below."""
    formats = list(dict.fromkeys(form for row in rows.values() for form in row.get("exports", ())))
    lines, notes = head(("model", "task", *formats)), []
    for name, row in rows.items():
        if row.get("exports"):
            cells = []
            for form in formats:
                value = row["exports"].get(form, NOT_RUN)
                if isinstance(value, str) and value not in notes:
                    notes.append(value)
                cells.append(f"({notes.index(value) + 1})" if isinstance(value, str) else figure(value))
            lines.append(line([name, row["task"], *cells]))
    return "\n".join([*lines, "", *(f"({i}) {note}" for i, note in enumerate(notes, 1))])


def of(rows: Rows, family: str, task: str) -> Rows:
    """Return the rows of one family and task."""
    return {name: row for name, row in rows.items() if (row["family"], row["task"]) == (family, task)}


def figure(error: float) -> str:
    """Format an error."""
    return "0" if error == 0 else f"{error:.0e}"


def head(cells: tuple[str, ...]) -> list[str]:
    """Return the first two lines of a table."""
    return [line(list(cells)), "|" + "---|" * len(cells)]


def line(cells: list[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"
