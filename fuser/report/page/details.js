/* One region: where it is, what was proved, what was put there, or why it was left. */

/** Draw the chosen event, or the whole where none is chosen. */
function drawDetails() {
  const section = byId("details");
  section.scrollTop = 0;
  section.replaceChildren(...(chosen.event < 0 ? overview() : region(chosen.event)));
}

function overview() {
  const counts = STATUSES.map(([status, name]) => {
    const number = D.events.filter((event) => event.status === status).length;
    return number > 0 && make("div", {}, make("dt", {}, make("span", { class: `badge ${status}` }, number)), make("dd", {}, name));
  });
  const outcomes = OUTCOMES.filter(([outcome]) => outcome !== "wrong").map(([outcome, name]) => {
    const number = D.events.filter((event) => outcomeOf(event) === outcome).length;
    return number > 0 && make("div", {}, make("dt", {}, make("span", { class: `badge ${outcome}` }, number)), make("dd", {}, `${name} against fp64`));
  });
  const breaks = D.breaks.length > 0 && [
    make("h3", {}, "Graph breaks: what lies on both sides of one cannot be matched"),
    make("ul", {}, D.breaks.map((line) => make("li", {}, make("code", {}, line)))),
  ];
  return [make("h2", {}, "What this compile did"), make("dl", {}, counts, outcomes),
    make("p", { class: "place" }, "Choose a region in the list, a layer above, or a coloured row of the graph."), breaks]
    .flat().filter(Boolean);
}

function region(e) {
  const event = D.events[e], group = groupOf(event), detail = D.details[event.detail];
  const [file, line, code] = D.places[event.place];
  const name = STATUSES.find(([status]) => status === event.status)[1];
  return [
    make("h2", {}, make("span", { class: `badge ${event.status}` }, name), group.pattern, " ", verdictBadge(event)),
    siblings(group, e),
    make("p", { class: "place" }, "at ", make("code", {}, file ? `${file}:${line}` : `node ${event.node}`),
      moduleOf(event) && [" in ", make("code", {}, moduleOf(event))], file && [", node ", make("code", {}, event.node)]),
    code && make("pre", {}, code),
    event.reason && make("div", { class: `reason ${event.status}`, role: "note" }, make("p", {}, event.reason),
      detail.hint && make("p", {}, make("b", {}, "Hint: "), detail.hint)),
    verdictElements(event),
    facts(detail, event),
    candidates(detail.candidates),
    detail.kernels.length > 0 && [make("h3", {}, "Generated kernels"), detail.kernels.map((k) => kernelElement(D.kernels[k]))],
  ].flat(Infinity).filter(Boolean);
}

/** The same region in other layers. */
function siblings(group, e) {
  if (group.events.length < 2) return null;
  return make("div", { class: "members", role: "group", "aria-label": "The same in other layers" },
    group.events.map((other) => make("button", {
      type: "button", "aria-pressed": String(other === e), title: moduleOf(D.events[other]) || D.events[other].node,
      onclick: () => choose(other),
    }, layerOf(D.events[other]).split(".").pop() || D.events[other].node)));
}

function facts(detail, event) {
  const rows = [...detail.facts, ...(event.inputs || [])].map(([name, text, maths]) => {
    const value = make("dd", { class: maths !== null && "maths", title: maths !== null && text }, maths === null && text);
    if (maths !== null) value.innerHTML = maths; // made by maths.py, which escapes every name
    return make("div", {}, make("dt", {}, name), value);
  });
  for (const [name, text] of [["lowering", detail.lowering], ["because", detail.why]]) {
    if (text) rows.push(make("div", {}, make("dt", {}, name), make("dd", {}, text)));
  }
  return rows.length > 0 && make("dl", {}, rows);
}

function candidates(all) {
  if (!all.length) return null;
  const timed = all.some((c) => c.milliseconds !== null);
  const number = (c) => timed ? (c.milliseconds === null ? "" : `${c.milliseconds.toPrecision(3)} ms`)
    : c.work === null ? "" : `${c.work.toLocaleString("en", { maximumSignificantDigits: 2 })} ×`;
  return [make("h3", {}, "What was considered"), make("table", {},
    make("thead", {}, make("tr", {}, make("th", {}, "candidate"), make("th", { title: timed ? null : "times a plain library kernel" }, timed ? "measured" : "expected work"), make("th", {}, "verdict"))),
    make("tbody", {}, all.map((c) => make("tr", { class: c.chosen && "chosen" },
      make("td", {}, `${c.chosen ? "✓ " : ""}${c.name}`), make("td", { class: "number" }, number(c)), make("td", {}, c.verdict)))))];
}
