"""The report: one self-contained HTML page, the same as Markdown with PNG figures, and a LaTeX table.

comparable.choose ─> data.py (numbers) ─> plots.py, plots_directions.py (figures) ─> build.py (pages from templates/)
"""
