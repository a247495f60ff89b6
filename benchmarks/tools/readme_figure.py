"""The picture in the README: teacher and students from the same noise, and their distance to the data.

python benchmarks/tools/readme_figure.py runs/digits docs/digits.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from progdist.data.grid import GAP
from progdist.runs.folder import RunFolder
from progdist.runs.pages.figures import STUDENT, TEACHER, draw_quality

COUNTS = (256, 16, 4, 2, 1)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    folder = RunFolder(arguments.run)
    figure = plt.figure(figsize=(12, 4), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(7, 5))
    pictures, plot = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    panels = pictures.subplots(2, len(COUNTS))
    for row, (model, colour) in enumerate((("teacher", TEACHER), ("student", STUDENT))):
        for column, steps in enumerate(COUNTS):
            axes = panels[row][column]
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            path = folder.grid(model, steps)
            if path.is_file():
                with Image.open(path) as sheet:
                    side = (sheet.width + GAP) // 8
                    axes.imshow(sheet.crop((0, 0, 4 * side - GAP, 4 * side - GAP)), cmap="gray", vmin=0, vmax=255)
            if row == 0:
                axes.set_title(f"{steps} step{'s' if steps > 1 else ''}")
            if column == (0 if row == 0 else 1):
                axes.set_ylabel(model, color=colour, fontsize=12)
    draw_quality(plot.subplots(), sorted(folder.evaluations(), key=lambda record: -record.steps), 0)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
