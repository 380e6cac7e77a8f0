/* The list of regions and the filters above it. */

const MOST_NODES = 50;

function drawList() {
  const list = byId("list"), items = shown();
  list.replaceChildren();
  for (const [status, name] of STATUSES) {
    const own = items.filter(({ group }) => group.status === status);
    if (own.length) list.append(make("h2", {}, name), ...own.map(itemOf));
  }
  const nodes = foundNodes(MOST_NODES);
  if (nodes.length) {
    list.append(make("h2", {}, nodes.length < MOST_NODES ? many(nodes.length, "node") : `The first ${MOST_NODES} nodes`));
    list.append(...nodes.map(([g, r, fx]) => make("button", {
      type: "button", class: "item", onclick: () => { drawGraph(g, -1, r); },
    }, make("small", {}, fx))));
  }
  if (!list.childElementCount) list.append(make("h2", {}, "Nothing here"));
}

function itemOf({ group, events }) {
  const event = D.events[events.includes(chosen.event) ? chosen.event : events[0]];
  const module = events.length === group.events.length ? group.module
    : events.length === 1 ? moduleOf(event) : `${events.length} of ${group.events.length}: ${group.module}`;
  const current = chosen.event >= 0 && groupOf(D.events[chosen.event]) === group;
  return make("button", {
    type: "button", class: `item ${group.status}`, "aria-current": String(current), onclick: () => choose(D.events.indexOf(event)),
  },
  make("b", {}, group.pattern), events.length > 1 && make("span", { class: "times" }, ` ×${events.length}`), outcomeBadge(events),
  make("small", {}, module || event.node), make("small", {}, event.reason || shortPlace(D.places[event.place])));
}

function drawFilters() {
  const families = [...new Set(D.groups.map((group) => group.family))].sort();
  byId("families").replaceChildren(...["", ...families].map((family) => make("button", {
    type: "button", "aria-pressed": String(chosen.family === family), onclick: () => filter({ family }),
  }, family || "all")));
  byId("outcomes").replaceChildren(...OUTCOMES.filter(([outcome]) => D.verdicts.some((v) => v.outcome === outcome))
    .map(([outcome, name]) => make("button", {
      type: "button", "aria-pressed": String(chosen.outcome === outcome),
      onclick: () => filter({ outcome: chosen.outcome === outcome ? "" : outcome }),
    }, name)));
  byId("layers").replaceChildren(...D.layers.map(([stack, layers]) => make("div", { class: "stack" },
    make("span", {}, stack || "layer"), layers.map(cellOf))));
}

/** One layer, in the colour of what matters most in it. */
function cellOf(layer) {
  const counts = STATUSES.map(([status, name]) => [status, name, D.groups.filter((group) => group.status === status)
    .reduce((sum, group) => sum + members(group, { layer, query: "" }).length, 0)]).filter(([, , number]) => number);
  const order = ["failed", "wrong", "declined", "rewritten", "opened", "left"];
  const worst = order.find((status) => counts.some(([own]) => own === status)) || "none";
  const told = counts.map(([, name, number]) => `${number} ${name.toLowerCase()}`).join(", ") || "nothing";
  return make("button", {
    type: "button", class: `cell ${worst}`, "aria-pressed": String(chosen.layer === layer),
    "aria-label": `${layer}: ${told}`, title: `${layer}: ${told}`,
    onclick: () => filter({ layer: chosen.layer === layer ? "" : layer }),
  }, layer.split(".").pop());
}
