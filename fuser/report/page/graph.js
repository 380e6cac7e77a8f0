/* A graph before and after. Only what was rewritten, or nearly, is open; the rest becomes elements
when it is opened, so that thousands of nodes cost nothing. */

const CONTEXT = 2, AT_ONCE = 300;

/** For each graph, the events whose nodes are open at first: the first of equal ones. */
function openAtFirst(g) {
  const open = new Set();
  for (const group of D.groups) {
    if (group.status === "left") continue;
    const first = group.events.find((e) => D.events[e].graph === g);
    if (first !== undefined) open.add(first);
  }
  return open;
}

/** Events that did not work out, by the row of the node where they failed. */
function missesAt(g) {
  const misses = new Map();
  D.events.forEach((event, e) => {
    if (event.graph !== g || event.at < 0 || ["rewritten", "opened"].includes(event.status)) return;
    misses.set(event.at, [...(misses.get(event.at) || []), e]);
  });
  return misses;
}

/** Which rows are open, one byte each: those of some events and `row`, with their neighbours. */
function openRows(g, events, row) {
  const { rows } = D.graphs[g], open = new Uint8Array(rows.length);
  const mark = (r) => open.fill(1, Math.max(0, r - CONTEXT), r + CONTEXT + 1);
  rows.forEach(([, , owner], r) => { if (owner !== undefined && events.has(owner)) mark(r); });
  for (const e of events) if (D.events[e].at >= 0) mark(D.events[e].at);
  if (row >= 0) mark(row);
  return open;
}

/** Draw a graph, with an event's nodes open and in sight; or a row of it. */
function drawGraph(g, event = -1, row = -1) {
  const section = byId("graph");
  section.replaceChildren();
  const graph = D.graphs[g];
  if (!graph) {
    section.append(make("p", { class: "title" }, "The nodes of the graph were not recorded."));
    return;
  }
  chosen.graph = g;
  const events = openAtFirst(g);
  if (event >= 0) events.add(event);
  const open = openRows(g, events, row), misses = missesAt(g);
  const others = D.graphs.length > 1 && D.graphs.map((other, o) => make("button", {
    type: "button", "aria-pressed": String(o === g), onclick: () => drawGraph(o),
  }, other.name));
  section.append(make("div", { class: "title" }, others || make("h2", {}, graph.name),
    make("span", {}, `${many(graph.before.length, "node")} before, ${graph.after.length.toLocaleString("en")} after`)));
  const table = make("div", { role: "table", "aria-label": `${graph.name}, before and after` },
    make("div", { class: "row", role: "row" },
      ...["before", "after", "module, line"].map((head) => make("span", { role: "columnheader" }, head))));
  for (let from = 0; from < open.length;) {
    let to = from + 1;
    while (to < open.length && open[to] === open[from]) to++;
    if (open[from] || to - from < 4) table.append(...drawRows(g, from, to, misses));
    else table.append(drawFold(g, from, to, misses));
    from = to;
  }
  section.append(table);
  const first = event >= 0 ? (D.events[event].at >= 0 && misses.has(D.events[event].at) ? D.events[event].at
    : graph.rows.findIndex(([, , owner]) => owner === event)) : row;
  const element = first >= 0 && section.querySelector(`[data-row="${first}"]`);
  const whole = event >= 0 ? [...section.querySelectorAll(`[data-event="${event}"]`)] : [];
  reveal(section, element, element && !whole.length ? [element] : whole);
}

/** Mark rows, and bring one into sight. */
function reveal(section, element, marked) {
  marked.forEach((row) => row.classList.add("selected"));
  section.scrollTop = 0;
  if (!element) return;
  const inside = element.getBoundingClientRect().top - section.getBoundingClientRect().top;
  section.scrollTop = inside - section.clientHeight / 4;
}

/** Rows of a graph as elements. */
function drawRows(g, from, to, misses) {
  const graph = D.graphs[g], elements = [];
  let last = "";
  for (let r = from; r < to; r++) {
    const [before, after, owner] = graph.rows[r];
    const old = node(graph, "before", before), now = node(graph, "after", after);
    const [, place, module] = old || now, source = `${place},${module}`;
    const changed = old && now && (owner !== undefined || old[0] !== now[0]);
    const failing = misses.get(r) || [];
    const miss = failing.length > 0 && ` miss ${D.events[failing[0]].status}`;
    const apart = old && now && fxName(old) !== fxName(now);
    elements.push(make("div", {
      class: `row${owner !== undefined ? " owned" : ""}${miss || ""}`, role: "row", "data-row": r,
      "data-event": owner, onclick: owner !== undefined && (() => choose(owner)),
    },
    make("code", { role: "cell", class: !old ? "" : !now || apart ? "gone" : changed ? "changed" : "" }, old ? old[0] : ""),
    make("code", { role: "cell", class: !now ? "" : !old || apart ? "come" : changed ? "changed" : "" }, now ? now[0] : ""),
    make("span", { role: "cell", title: titleOf(place, module) }, source !== last && sourceOf(place, module))));
    for (const e of failing) elements.push(noteOf(e));
    last = source;
  }
  return elements;
}

function fxName(row) { return row[0].split(/[:\s]/, 1)[0]; }

/** Module, line and code of a node, as far as they fit; the whole is its title. */
function sourceOf(place, module) {
  const [path] = D.modules[module], code = D.places[place][2];
  const short = shortPlace(D.places[place]);
  return [path && make("span", { class: "module" }, path), short, code && make("code", {}, code)];
}

function titleOf(place, module) {
  return [D.modules[module][0], placeText(D.places[place]), D.places[place][2]].filter(Boolean).join("\n");
}

/** Why the node above is where a region ended. */
function noteOf(e) {
  const event = D.events[e];
  return make("div", { class: `note ${event.status}`, role: "row", onclick: () => choose(e) },
    make("span", { role: "cell" }, `▲ ${groupOf(event).pattern}: ${event.reason}`));
}

/** Rows that are closed; a click, or Enter, opens them. */
function drawFold(g, from, to, misses) {
  const counts = new Map();
  const count = (e) => counts.set(groupOf(D.events[e]), (counts.get(groupOf(D.events[e])) || new Set()).add(e));
  for (let r = from; r < to; r++) {
    const owner = D.graphs[g].rows[r][2];
    if (owner !== undefined) count(owner);
    for (const e of misses.get(r) || []) count(e);
  }
  const inside = [...counts].map(([group, events]) => [" · ", group.pattern, " ", make("b", {}, `×${events.size}`),
    group.status === "rewritten" ? "" : ` ${group.status}`]);
  const unfold = () => {
    const end = Math.min(to, from + AT_ONCE), rows = drawRows(g, from, end, misses);
    fold.replaceWith(...rows, ...(end < to ? [drawFold(g, end, to, misses)] : []));
    rows[0].tabIndex = -1;
    rows[0].focus({ preventScroll: true });
  };
  const button = make("button", { type: "button", class: "fold", "aria-expanded": "false", onclick: unfold },
    `… ${many(to - from, "node")}`, inside);
  const fold = make("div", { role: "row" }, make("div", { role: "cell" }, button));
  return fold;
}
