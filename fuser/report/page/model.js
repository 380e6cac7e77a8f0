/* The data, what is chosen, and what the filters leave. Fields are described in data.py. */

const D = JSON.parse(byId("data").textContent);

const STATUSES = [
  ["wrong", "Taken back"],
  ["declined", "Declined"],
  ["failed", "Failed"],
  ["rewritten", "Rewritten"],
  ["opened", "Spelled out for other patterns"],
  ["left", "Proved, left to the inner backend"],
];

/** What is chosen: an event or -1, a graph, and the filters. */
const chosen = { event: -1, graph: 0, family: "", layer: "", outcome: "", query: "" };

D.groups.forEach((group, g) => group.events.forEach((e) => { D.events[e].group = g; }));

function moduleOf(event) { return D.modules[event.module][0]; }
function layerOf(event) { return D.modules[event.module][1]; }
function groupOf(event) { return D.groups[event.group]; }

/** "file:line", or "" where nobody knows. */
function placeText([file, line]) { return file ? `${file}:${line}` : ""; }

/** The same without folders. */
function shortPlace([file, line]) { return placeText([file.split("/").pop(), line]); }

/** What the search looks at, in small letters; made when it is first asked for. */
function textOf(event) {
  if (event.text === undefined) {
    const detail = D.details[event.detail], place = D.places[event.place];
    const facts = detail.facts.map(([name, text]) => `${name} ${text}`);
    const parts = [groupOf(event).pattern, moduleOf(event), placeText(place), place[2], event.node,
      event.reason || "", detail.lowering, detail.why, ...facts, ...verdictTexts(event)];
    event.text = parts.join("\n").toLowerCase();
  }
  return event.text;
}

/** What verification said of an event. */
function verdictTexts(event) {
  const verdict = verdictOf(event);
  if (verdict === null) return [];
  const [, name] = OUTCOMES.find(([outcome]) => outcome === verdict.outcome);
  return [name, verdict.reason, verdict.script, ...verdict.compared.map((c) => c.name)];
}

/** The events of a group that the filters leave; a `layer` or `family` of null filters nothing. */
function members(group, { family = chosen.family, layer = chosen.layer, outcome = chosen.outcome, query = chosen.query } = {}) {
  if (family && group.family !== family) return [];
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return group.events.filter((e) => {
    const event = D.events[e];
    if (layer && layerOf(event) !== layer) return false;
    if (outcome && outcomeOf(event) !== outcome) return false;
    return words.every((word) => textOf(event).includes(word));
  });
}

/** What stands in the list: {group, events}, in the order of the statuses. */
function shown() {
  return STATUSES.flatMap(([status]) => D.groups
    .filter((group) => group.status === status)
    .map((group) => ({ group, events: members(group) }))
    .filter(({ events }) => events.length));
}

/** One side of a row of a graph, as [fx, place, module], or null. */
function node(graph, side, position) {
  if (position < 0) return null;
  const found = graph[side][position];
  return typeof found === "number" ? graph.before[found] : found;
}

/** Nodes that the search finds: [graph, row, fx]; the first of them. */
function foundNodes(most) {
  const words = chosen.query.toLowerCase().split(/\s+/).filter(Boolean), found = [];
  if (!words.length) return found;
  for (let g = 0; g < D.graphs.length; g++) {
    const graph = D.graphs[g];
    for (let r = 0; r < graph.rows.length; r++) {
      const [before, after] = graph.rows[r];
      const row = node(graph, "before", before) || node(graph, "after", after);
      if (chosen.layer && D.modules[row[2]][1] !== chosen.layer) continue;
      const text = `${row[0]}\n${D.modules[row[2]][0]}\n${D.places[row[1]][2]}`.toLowerCase();
      if (words.every((word) => text.includes(word))) found.push([g, r, row[0]]);
      if (found.length >= most) return found;
    }
  }
  return found;
}
