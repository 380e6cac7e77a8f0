/* Mouse and keys. */

/** Choose an event, or none: -1. */
function choose(e) {
  chosen.event = e;
  drawList();
  drawDetails();
  drawGraph(e < 0 ? chosen.graph : D.events[e].graph, e);
  const current = document.querySelector('.item[aria-current="true"]');
  if (current) current.scrollIntoView({ block: "nearest" });
  remember();
}

/** Change filters. */
function filter(changes) {
  Object.assign(chosen, changes);
  const before = document.activeElement && document.activeElement.textContent;
  const within = document.activeElement && document.activeElement.closest("#families, #outcomes, #layers");
  drawFilters();
  drawList();
  if (within) [...within.querySelectorAll("button")].find((b) => b.textContent === before)?.focus();
}

/** The chosen region in the address, for a bookmark; a page in a frame has none. */
function remember() {
  try { history.replaceState(null, "", chosen.event < 0 ? "#" : `#region-${chosen.event}`); } catch { /* not allowed there */ }
}

/** By so many regions down the list. */
function step(by) {
  const items = shown();
  if (!items.length) return;
  const at = items.findIndex(({ events }) => events.includes(chosen.event));
  const next = at < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(items.length - 1, Math.max(0, at + by));
  choose(items[next].events[0]);
}

/** By so many layers, in the same group. */
function sidestep(by) {
  if (chosen.event < 0) return;
  const { events } = groupOf(D.events[chosen.event]);
  const next = events[events.indexOf(chosen.event) + by];
  if (next !== undefined) choose(next);
}

function turnTheme() {
  const root = document.documentElement.style;
  const dark = root.colorScheme ? root.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.colorScheme = dark ? "light" : "dark";
}

/** Leaves one thing: the search, the region, the filters. */
function leave() {
  const search = byId("search");
  if (chosen.query || document.activeElement === search) {
    search.value = "";
    search.blur();
    filter({ query: "" });
  } else if (chosen.event >= 0) choose(-1);
  else filter({ family: "", layer: "", outcome: "" });
}

const KEYS = {
  j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1),
  ArrowRight: () => sidestep(1), ArrowLeft: () => sidestep(-1),
  "/": () => byId("search").focus(), t: turnTheme, "?": () => byId("help").showModal(), Escape: leave,
  g: () => (document.activeElement === byId("graph") ? byId("details") : byId("graph")).focus(),
};

document.addEventListener("keydown", (press) => {
  if (press.ctrlKey || press.metaKey || press.altKey || byId("help").open) return;
  const typing = press.target === byId("search");
  if (typing && !["Escape", "ArrowDown", "ArrowUp", "Enter"].includes(press.key)) return;
  const scrolls = press.target === byId("graph") && press.key.startsWith("Arrow");
  const act = typing && press.key === "Enter" ? () => step(1) : KEYS[press.key];
  if (!act || scrolls) return;
  press.preventDefault();
  act();
});

byId("search").addEventListener("input", (event) => filter({ query: event.target.value }));
byId("theme").addEventListener("click", turnTheme);
byId("keys").addEventListener("click", () => byId("help").showModal());
byId("summary").textContent = D.summary.replace(/^fuser: /, "");
byId("summary").title = D.summary;
drawFilters();
const named = /^#region-(\d+)$/.exec(location.hash);
choose(named && D.events[named[1]] ? Number(named[1]) : -1);
