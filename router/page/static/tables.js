// A table that is told its rows again and again: it changes what has changed, and keeps focus, order and place.

const compare = new Intl.Collator("en", { numeric: true }).compare;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Sets what is not so yet: a text that stays costs nothing, and is not read out again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/**
 * columns: {label, title, numeric, wide, value(row): what it is sorted by, text(row), draw(cell, row) in place of text}.
 * key(row): the same for the same row. limit: rows shown before all are asked for. open(row): what a click or Enter does.
 * A row with `values` is drawn anew only when one of them is another.
 */
export class Table {
  constructor(place, { label, columns, key, limit, order, empty, open }) {
    this.columns = columns;
    this.key = key;
    this.limit = limit;
    this.order = order;
    this.open = open;
    this.sorted = null; // {column, down}
    this.all = false;
    this.rows = [];
    this.lines = new Map();
    this.body = element("tbody", { role: "rowgroup" });
    this.heads = columns.map((column, number) => this.#head(column, number));
    this.table = element(
      "table", { role: "table", "aria-label": label },
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...this.heads)), this.body,
    );
    this.more = element("button", { type: "button", class: "more", "aria-expanded": "false", onclick: () => this.#toggle() });
    this.nothing = element("p", { class: "empty" }, empty);
    place.replaceChildren(this.table, this.nothing, this.more);
  }

  show(rows) {
    this.rows = rows;
    const ordered = this.#ordered(rows);
    const shown = this.all ? ordered : ordered.slice(0, this.limit);
    this.table.hidden = !rows.length;
    this.nothing.hidden = rows.length > 0;
    this.more.hidden = rows.length <= this.limit;
    setText(this.more, this.all ? "Show fewer" : `Show all ${rows.length}`);
    setAttribute(this.more, "aria-expanded", String(this.all));
    this.#place(shown);
  }

  #toggle() {
    this.all = !this.all;
    this.show(this.rows);
  }

  #ordered(rows) {
    if (!this.sorted) return this.order ? [...rows].sort(this.order) : rows;
    const { column, down } = this.sorted;
    const value = this.columns[column].value;
    const sign = down ? -1 : 1;
    return [...rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      const unknown = (a ?? null) === null || (b ?? null) === null;
      if (unknown) return ((a ?? null) === null) - ((b ?? null) === null);
      return sign * (typeof a === "string" ? compare(a, b) : a - b);
    });
  }

  #place(shown) {
    const wanted = new Set(shown.map(this.key));
    for (const [key, line] of this.lines) {
      if (wanted.has(key) || line.node.contains(document.activeElement)) continue; // nobody's focus is taken away
      line.node.remove();
      this.lines.delete(key);
    }
    let before = this.body.firstChild;
    for (const row of shown) {
      const key = this.key(row);
      let line = this.lines.get(key);
      if (!line) { line = this.#line(); this.lines.set(key, line); }
      this.#draw(line, row);
      if (line.node === before) before = before.nextSibling;
      else if (before && before.nextSibling === line.node) before = line.node.nextSibling; // it goes further down itself
      else this.body.insertBefore(line.node, before);
    }
  }

  #draw(line, row) {
    const was = line.row;
    line.row = row;
    if (was?.values && row.values && was.values.every((value, at) => value === row.values[at])) return;
    this.columns.forEach((column, number) => {
      if (column.draw) column.draw(line.cells[number], row);
      else setText(line.cells[number], column.text(row));
    });
  }

  #line() {
    const cells = this.columns.map((column) => element("td", {
      role: "cell", "data-label": column.label, class: (column.numeric ? "number " : "") + (column.class ?? ""),
    }));
    const node = element("tr", { role: "row" }, ...cells);
    const line = { node, cells, row: null };
    if (this.open) {
      node.classList.add("opens");
      node.addEventListener("click", () => this.open(line.row));
    }
    return line;
  }

  #head(column, number) {
    const head = element("th", { role: "columnheader", scope: "col", class: column.numeric ? "number" : "" });
    if (column.title) head.title = column.title;
    if (column.value) head.append(element("button", { type: "button", onclick: () => this.#sort(number) }, column.label));
    else head.append(column.label);
    return head;
  }

  #sort(number) {
    const was = this.sorted?.column === number ? this.sorted : null;
    const first = Boolean(this.columns[number].numeric); // the most first, and names from A
    if (!was) this.sorted = { column: number, down: first };
    else this.sorted = was.down === first ? { column: number, down: !first } : null;
    this.heads.forEach((head, at) => {
      const sorted = this.sorted?.column === at;
      setAttribute(head, "aria-sort", sorted ? (this.sorted.down ? "descending" : "ascending") : null);
    });
    this.show(this.rows);
  }
}

export const byName = compare;

/** An amount, and a meter of `parts` before it that shows how much that is. Both, to be filled in. */
export function gauge(cell, parts) {
  if (!cell.firstChild) {
    const amount = element("span", { class: "amount" });
    const meter = element("span", { class: "meter", "aria-hidden": "true" }, ...parts.map((part) => element("i", { class: part })));
    cell.append(element("span", { class: "gauge" }, meter, amount));
  }
  const [meter, amount] = cell.firstChild.children;
  return [amount, meter];
}
