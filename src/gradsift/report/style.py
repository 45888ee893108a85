"""The frame of the page: its typography, and where the parts go."""

STYLE = """
:root { --ink: #1f2937; --faint: #6b7280; --line: #e5e7eb; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
.brand { color: var(--accent); font-weight: 600; font-size: .85rem; letter-spacing: .06em;
  text-transform: uppercase; margin: 0; }
h1 { font-size: 2rem; line-height: 1.2; margin: .2rem 0 1rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
.verdict { font-size: 1.12rem; border-left: 4px solid var(--accent); padding: .1rem 0 .1rem 1rem;
  margin: 0 0 1.6rem; max-width: 52rem; }
figure { margin: 0 0 2rem; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--faint); font-size: .88rem; max-width: 50rem; margin-top: .3rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .38rem 1rem .38rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { font-weight: 600; border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 400; color: var(--faint); }
thead th:first-child { width: 15rem; }
summary { cursor: pointer; font-weight: 600; margin: 1.6rem 0 .6rem; }
footer { color: var(--faint); font-size: .85rem; margin-top: 3rem; }
@media print { main { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gradsift: {title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<p class="brand">gradsift report</p>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
</header>
<section>
<h2>Results</h2>
{results}
</section>
<section>
<h2>Over the run</h2>
{figures}
</section>
<section>
<h2>Settings</h2>
{settings}
<details>
<summary>Everything in summary.json</summary>
{raw}
</details>
</section>
<footer>{versions}</footer>
</main>
</body>
</html>
"""
