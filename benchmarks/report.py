"""Puts the figures of the benchmarks into docs/performance.md, between its marks, and draws them.

Usage: report.py [--figures DIR] [--quick]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

import machine
from race import BUILD, ROOT

PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "performance"
REGION = re.compile(r"(<!-- begin: (\w+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)


def number(value: float) -> str:
    """Three digits that count."""
    for limit, digits in ((0.0995, 4), (0.995, 3), (9.995, 2), (99.95, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def between(spread: dict[str, float]) -> str:
    return f"{number(spread['min'])} to {number(spread['max'])}"


def table(case: dict[str, Any]) -> str:
    """One case; a column that no row fills is left out."""
    rows = []
    for name, row in case["rows"].items():
        cells = {case["title"]: name, case["unit"]: number(row["value"]["median"])}
        cells["min to max"] = between(row["value"]) if case["rounds"] > 1 else ""
        cells["CPU s"] = number(row["cpu_seconds"]) if "cpu_seconds" in row else ""
        cells["stored bytes"] = f"{row['stored']:,}" if "stored" in row else ""
        for key, column in (("ratio", case.get("ratio", "ratio")), ("cpu_ratio", f"{case.get('ratio')}, CPU")):
            ratio = row.get(key)
            cells[column] = "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio) if ratio else ""
        cells["target"] = row.get("target", "")
        rows.append(cells)
    columns = [column for column in rows[0] if any(cells[column] for cells in rows)]
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(cells[column] for column in columns) + " |" for cells in rows]
    return "\n".join(lines)


def plot(result: dict[str, Any]) -> str:
    """Bars of the medians, each case in a scale of its own, with a line from the minimum to the maximum."""
    left, width, bar, gap = 250, 380, 16, 14
    parts = []
    y = 8
    for case in result["cases"]:
        parts.append(f'<text x="8" y="{y + 12}" font-weight="bold">{escape(case["title"])} ({case["unit"]})</text>')
        y += 20
        scale = width / max(row["value"]["max"] for row in case["rows"].values())
        for name, row in case["rows"].items():
            low, middle, high = (row["value"][key] * scale for key in ("min", "median", "max"))
            ours = result["name"] in ("memory", "scaling") or name.startswith("s3dlio")
            centre = y + bar / 2
            parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
            parts.append(
                f'<rect x="{left}" y="{y + 2}" width="{max(middle, 1):.1f}" height="{bar - 4}" '
                f'fill="{"#2f6fab" if ours else "#b8bec6"}"/>'
            )
            parts.append(f'<path d="M{left + low:.1f} {centre}H{left + high:.1f}" stroke="#333"/>')
            end = left + max(middle, high) + 6
            parts.append(f'<text x="{end:.1f}" y="{y + 12}">{number(row["value"]["median"])}</text>')
            y += bar
        y += gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{y}" viewBox="0 0 720 {y}" '
        'font-family="sans-serif" font-size="12" fill="#222">\n'
        f"<title>{escape(result['title'])}</title>\n"
        f'<rect width="720" height="{y}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def section(result: dict[str, Any]) -> str:
    notes = [" ".join(result["notes"])] if result.get("notes") else []
    picture = f"![{result['title']}](performance/{result['name']}.svg)"
    return "\n\n".join([picture, *map(table, result["cases"]), *notes]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, default=BUILD, help="where the JSON files are (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="take figures of a quick run too")
    arguments = parser.parse_args()

    page = PAGE.read_text()
    texts: dict[str, str] = {}
    machines: dict[str, str] = {}
    loads = []
    for _, name, *_ in REGION.findall(page):
        path = arguments.figures / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        if result["quick"] and not arguments.quick:
            print(f"{name}: left as it is, since the last run was a quick one", file=sys.stderr)
            continue
        texts[name] = section(result)
        machines[name] = machine.text({**result["machine"], "load": None})
        loads.append(result["machine"]["load"])
        PLOTS.mkdir(exist_ok=True)
        (PLOTS / f"{name}.svg").write_text(plot(result))
    if len(set(machines.values())) > 1:
        sys.exit("the figures are not all of one machine and one version: run `make bench`")
    if machines:
        load = f"load at the beginning of a benchmark {min(loads)} to {max(loads)}"
        texts["machine"] = f"{next(iter(machines.values()))}; {load}\n"
    PAGE.write_text(REGION.sub(lambda found: found[1] + texts.get(found[2], found[3]) + found[4], page))
    print(f"{PAGE.relative_to(ROOT)}: {', '.join(texts) or 'nothing new'}")


if __name__ == "__main__":
    main()
