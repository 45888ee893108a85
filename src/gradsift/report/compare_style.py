"""The frame of a comparison's page: what it adds to the style of a run's."""

STYLE = """
main { max-width: 70rem; }
.wide { overflow-x: auto; margin: 0 0 1.4rem; }
.wide table { table-layout: auto; }
.wide th, .wide td { white-space: nowrap; padding: .38rem .9rem .38rem 0; text-align: right;
  overflow-wrap: normal; }
.wide th:first-child, .wide td:first-child { text-align: left; width: auto; color: var(--ink); }
.wide thead th { vertical-align: bottom; }
.wide tr.reference th, .wide tr.reference td { background: #f9fafb; }
.wide tr.again th, .wide tr.again td { color: var(--faint); }
.swatch { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin-right: .45rem; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; text-align: inherit; }
th button:hover, th button:focus-visible { color: var(--accent); }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
.note { color: var(--faint); font-size: .88rem; max-width: 56rem; margin: .3rem 0; }
.note.warn { color: #9a3412; }
h4 { margin: 1rem 0 .4rem; font-size: .92rem; font-weight: 600; }
details h4:first-of-type { margin-top: .4rem; }
.picks { list-style: none; padding: 0; margin: 0; font-size: .74rem; line-height: 1.3;
  color: var(--faint); font-variant-numeric: tabular-nums; }
.picks.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.7rem, 1fr));
  gap: .7rem; }
.picks img { display: block; width: 100%; image-rendering: pixelated; border-radius: 3px;
  background: var(--line); }
.picks b { display: block; color: var(--ink); font-size: .85rem; }
.picks.lines li { display: flex; justify-content: space-between; gap: 1rem; padding: .2rem 0;
  border-bottom: 1px solid var(--line); }
.picks.lines code { color: var(--ink); white-space: pre-wrap; overflow-wrap: anywhere; }
.picks.lines span { flex: none; text-align: right; }
"""

SORTING = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  var body = table.tBodies[0], rows = Array.from(body.rows);
  table.querySelectorAll("thead th").forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", function () {
      var up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach(function (other) {
        other.removeAttribute("aria-sort");
      });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      function key(row) { return row.cells[column].dataset.key; }
      rows.slice().sort(function (a, b) {
        var x = key(a), y = key(b);
        if (x === "" || y === "") { return (x === "") - (y === ""); }
        var order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
});
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
<p class="brand">gradsift comparison</p>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
</header>
<section>
<h2>Results</h2>
{table}
{notes}
</section>
{sections}
<section>
<h2>Arms</h2>
{arms}
<details>
<summary>Every run</summary>
{runs}
</details>
</section>
<footer>{versions}</footer>
</main>
<script>{sorting}</script>
</body>
</html>
"""
