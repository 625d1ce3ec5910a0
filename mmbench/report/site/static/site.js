/* Sorting, filtering and the comparison of two rows. Without this script every page still says all it has to say. */
"use strict";

const MANY = 8; // rows that are worth a filter
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const firstNumber = (text) => {
  const found = /^[\s≈<>~]*(-?[\d,]*\.?\d+(?:e[-+]?\d+)?)/i.exec(text);
  return found ? parseFloat(found[1].replaceAll(",", "")) : NaN;
};

/* Sorting: rows without a value stay last, whichever way the others go. */
const sortBy = (table, head, column) => {
  const body = table.tBodies[0];
  const numeric = head.dataset.number !== undefined;
  const before = head.getAttribute("aria-sort");
  const first = numeric && head.dataset.number !== "lower" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const direction = before === first ? other : first;
  const sign = direction === "ascending" ? 1 : -1;
  const order = new Intl.Collator("en", { numeric: true }).compare;
  const keyed = [...body.rows].map((row) => {
    const text = row.cells[column].textContent.trim();
    return [numeric ? firstNumber(text) : text, row];
  });
  keyed.sort(([a], [b]) => {
    if (!numeric) return sign * order(a, b);
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  });
  body.replaceChildren(...keyed.map(([, row]) => row));
  for (const one of table.tHead.rows[0].cells) one.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
};

const makeSortable = (table) => {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const link = head.querySelector("a");
    const button = make("button", { type: "button" });
    if (link) {
      button.setAttribute("aria-label", `Sort by ${link.textContent}`);
      head.append(button);
    } else {
      button.append(...head.childNodes);
      head.append(button);
    }
    button.addEventListener("click", () => sortBy(table, head, column));
  });
};

/* Filtering: every word must stand somewhere in the row's name and words; choices are exact. */
const makeFilter = (table) => {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  const counted = make("span", { role: "status" });
  const search = make("input", { type: "search", autocomplete: "off" });
  const choices = heads.flatMap((head, column) => {
    if (head.dataset.choice === undefined) return [];
    const values = [...new Set(rows.map((row) => row.cells[column].textContent.trim()))].sort();
    if (values.length < 2) return [];
    const select = make("select", {}, make("option", { value: "", textContent: "all" }));
    select.append(...values.map((value) => make("option", { value, textContent: value })));
    return [{ column, select, label: head.textContent.trim() }];
  });
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const chosen = choices.every(({ column, select }) => !select.value || row.cells[column].textContent.trim() === select.value);
      row.hidden = !(chosen && words.every((word) => texts.get(row).includes(word)));
      shown += !row.hidden;
    }
    counted.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
  };
  const labels = choices.map(({ select, label }) => make("label", {}, label, select));
  const bar = make("div", { className: "filter" }, make("label", {}, "Filter", search), ...labels, counted);
  bar.addEventListener("input", apply);
  table.closest(".scroll").before(bar);
  apply();
};

/* Comparison. */
const shownNumber = (value, digits) => {
  if (digits !== null) return value.toFixed(digits);
  return value === 0 ? "0" : value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
};
const cellWords = (cell, digits) => {
  if (!Array.isArray(cell)) return cell;
  const [mean, std] = cell;
  return shownNumber(mean, digits) + (std === null ? "" : ` ± ${std.toFixed(shownNumber(mean, digits).split(".")[1]?.length ?? 0)}`);
};
const rowName = ([name, regime]) => (regime === "–" ? name : `${name}, ${regime}`);

const compareTable = (table, a, b, names) => {
  const cells = [table.rows[a], table.rows[b]];
  const pairs = table.columns.map((column, i) => ({ column, left: cells[0][i], right: cells[1][i] }));
  const both = pairs.filter(({ left, right }) => Array.isArray(left) && Array.isArray(right));
  const most = Math.max(...both.filter(({ column }) => column[1] === "%").map(({ left, right }) => Math.abs(right[0] - left[0])), 1e-9);
  let [better, worse, same] = [0, 0, 0];
  const body = pairs.map(({ column: [label, unit, digits, wanted], left, right }) => {
    const known = Array.isArray(left) && Array.isArray(right);
    const texts = [cellWords(left, digits), cellWords(right, digits)];
    const gap = known ? right[0] - left[0] : NaN;
    const equal = known && shownNumber(left[0], digits) === shownNumber(right[0], digits);
    const winner = !known || !wanted || equal ? "" : (wanted === "higher") === gap > 0 ? "b" : "a";
    if (known && wanted) winner === "b" ? worse++ : winner === "a" ? better++ : same++;
    const bar = make("span", { className: "bar" });
    bar.setAttribute("aria-hidden", "true");
    if (known && unit === "%" && gap) {
      const piece = make("i", { className: winner === "a" ? "side-a" : "side-b" });
      piece.style.width = `${(50 * Math.abs(gap)) / most}%`;
      if (winner) bar.append(piece);
    }
    const sign = gap > 0 ? "+" : gap < 0 ? "−" : "";
    const change = known ? sign + shownNumber(Math.abs(gap), digits) : "–";
    return make("tr", {},
      make("th", { scope: "row" }, label, " ", make("span", { className: "unit", textContent: unit })),
      make("td", { className: winner === "a" ? "win side-a" : "", textContent: texts[0] }),
      make("td", { className: winner === "b" ? "win side-b" : "", textContent: texts[1] }),
      make("td", { textContent: change }), make("td", {}, bar));
  });
  const head = make("tr", {}, ...["", names[0], names[1], "B − A"].map((text, i) => {
    const cell = make("th", { scope: "col", textContent: i ? text : "Measure" });
    if (i === 1 || i === 2) cell.className = i === 1 ? "side-a" : "side-b";
    return cell;
  }), make("td", {}));
  const box = make("div", { className: "scroll", tabIndex: 0, role: "region" },
    make("table", { className: "data versus" }, make("caption", { className: "unseen", textContent: table.title }), make("thead", {}, head), make("tbody", {}, ...body)));
  box.setAttribute("aria-label", table.title);
  return { box, better, worse, same };
};

const startComparison = (form) => {
  const places = JSON.parse(document.getElementById("scores").textContent);
  if (!places.length) return;
  const [place, a, b] = ["place", "a", "b"].map((id) => document.getElementById(id));
  const [verdict, target] = ["verdict", "comparison"].map((id) => document.getElementById(id));
  place.append(...places.map(({ title }, i) => make("option", { value: i, textContent: title })));
  const wanted = new URLSearchParams(location.hash.slice(1));
  const fill = () => {
    const rows = places[place.value].rows;
    [a, b].forEach((select, side) => {
      const kept = select.selectedOptions[0]?.textContent ?? wanted.get("ab"[side]);
      select.replaceChildren(...rows.map((row, i) => make("option", { value: i, textContent: rowName(row) })));
      const found = rows.findIndex((row) => rowName(row) === kept || row[0] === kept);
      select.value = Math.max(found, 0);
      if (found < 0 && side === 1) select.value = String(rows.findIndex((row, i) => String(i) !== a.value && sharesTable(i)));
      if (select.selectedIndex < 0) select.selectedIndex = Math.min(side, rows.length - 1);
    });
  };
  const sharesTable = (i) => places[place.value].tables.some(({ rows }) => a.value in rows && i in rows);
  const show = () => {
    const { rows, tables } = places[place.value];
    const names = [rows[a.value], rows[b.value]].map(rowName);
    const shared = tables.filter((table) => a.value in table.rows && b.value in table.rows);
    const parts = shared.map((table) => ({ table, ...compareTable(table, a.value, b.value, names) }));
    target.replaceChildren(...parts.flatMap(({ table, box }) => [make("h2", { textContent: table.title }), box]));
    const link = (row) => (row[2] ? make("a", { href: row[2], textContent: rowName(row) }) : rowName(row));
    const [first] = parts;
    verdict.replaceChildren(...(first
      ? ["By the means alone, A, ", link(rows[a.value]), `, is ahead in ${first.better} of ${first.better + first.worse + first.same} columns of the first table, B, `,
        link(rows[b.value]), `, in ${first.worse}; equal as shown in ${first.same}.`]
      : ["No table holds both of these rows."]));
    const kept = new URLSearchParams({ place: places[place.value].title, a: names[0], b: names[1] });
    history.replaceState(null, "", `#${kept}`);
  };
  const titled = places.findIndex(({ title }) => title === wanted.get("place"));
  const named = places.findIndex(({ rows }) => rows.some((row) => row[0] === wanted.get("a")));
  place.value = Math.max(titled >= 0 ? titled : named, 0);
  fill();
  show();
  form.hidden = false;
  place.addEventListener("change", () => { fill(); show(); });
  [a, b].forEach((select) => select.addEventListener("change", show));
  document.getElementById("swap").addEventListener("click", () => {
    [a.value, b.value] = [b.value, a.value];
    show();
  });
};

for (const table of document.querySelectorAll("table.data:not(.plain)")) {
  if (table.tBodies[0].rows.length > 1) makeSortable(table);
  if (table.tBodies[0].rows.length > MANY) makeFilter(table);
}
const form = document.getElementById("compare");
if (form) startComparison(form);
