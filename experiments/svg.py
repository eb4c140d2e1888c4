"""Line plots as SVG: what the report needs of a plotter."""

import math
from html import escape

COLOURS = ["#1f5fa8", "#d1495b", "#2e8b57", "#e08e0b", "#7a4fa3", "#3d3d3d", "#17a2b8", "#a65628", "#9a9a00", "#e377c2"]
WIDTH, HEIGHT = 880, 480
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 40, 48


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers that divide [low, high] into about `wanted` parts."""
    step = 10 ** math.floor(math.log10((high - low) / wanted))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= wanted:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def line_plot(title: str, x_label: str, y_label: str, lines: list[tuple[str, list[tuple[float, float]]]],
              top_quantile: float = 0.85) -> str:
    """Lines with a legend. The vertical axis ends at a quantile of the values: the fall at the start of a run
    would flatten the rest."""
    points = [point for _, line in lines for point in line]
    if not points:
        raise ValueError(f"{title}: there is nothing to draw")
    values = sorted(y for _, y in points)
    low, high = values[0], values[min(len(values) - 1, int(top_quantile * len(values)))]
    margin = 0.05 * (high - low) or 0.1
    low, high = low - margin, high + margin
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    right = right if right > left else left + 1

    def at(x: float, y: float) -> tuple[float, float]:
        return (LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<clipPath id="area"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>',
    ]
    for value in ticks(low, high, 8):
        y = at(left, value)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(left, right, 6):
        x = at(value, low)[0]
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>'
                     f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
                 f'{escape(x_label)}</text>'
                 f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})">'
                 f'{escape(y_label)}</text>')
    for i, (name, line) in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if i >= len(COLOURS) else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} '
                     f'clip-path="url(#area)"/>')
        y = TOP + 14 + 20 * i
        parts.append(f'<line x1="{WIDTH - RIGHT + 14}" x2="{WIDTH - RIGHT + 40}" y1="{y}" y2="{y}" '
                     f'stroke="{colour}" stroke-width="2.4"{dash}/>'
                     f'<text x="{WIDTH - RIGHT + 46}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join(parts) + "\n</svg>\n"
