/* What verification found about a region. */

const OUTCOMES = [["wrong", "taken back"], ["unverified", "not verified"], ["verified", "verified"]];

/** The verdict on an event, or null. */
function verdictOf(event) { return event.verdict === undefined ? null : D.verdicts[event.verdict]; }

/** "wrong", "unverified", "verified", or "" where nobody verified. */
function outcomeOf(event) { return event.verdict === undefined ? "" : verdictOf(event).outcome; }

/** Of a verdict's values the one that came nearest to what is allowed, or went farthest beyond. */
function worstOf({ compared }) {
  const share = (c) => (c.problem ? 1e300 : 0) + (c.error === null ? Infinity : c.error / (c.allowed || 1));
  return compared.reduce((worst, c) => (worst === null || share(c) > share(worst) ? c : worst), null);
}

function errorText(error) { return error === null ? "∞" : error.toExponential(1); }

/** For the list: the outcome of some events, if they were verified, and of how many of them. */
function outcomeBadge(events) {
  const found = OUTCOMES.map(([outcome, name]) => [outcome, name, events.filter((e) => outcomeOf(D.events[e]) === outcome).length])
    .find(([, , number]) => number > 0);
  if (!found || found[0] === "wrong") return null; // these stand under their own title
  const [outcome, name, number] = found;
  return make("span", { class: `badge small ${outcome}` }, number < events.length ? `${number} of ${events.length} ${name}` : name);
}

/** For a region: its outcome, with the worst error beside the original's. */
function verdictBadge(event) {
  const verdict = verdictOf(event);
  if (verdict === null || verdict.outcome === "wrong") return null;
  const [, name] = OUTCOMES.find(([outcome]) => outcome === verdict.outcome), worst = worstOf(verdict);
  const errors = worst && `: error ${errorText(worst.error)}, the original's ${errorText(worst.original)}`;
  return make("span", { class: `badge ${verdict.outcome}` }, name, errors);
}

/** For a region: why it was not verified, errors of all its values, and the script. */
function verdictElements(event) {
  const verdict = verdictOf(event);
  if (verdict === null) return null;
  const number = (error) => make("td", { class: "number" }, errorText(error));
  const rows = verdict.compared.map((c) => make("tr", { class: c.problem && "wrong" },
    make("td", {}, c.name), number(c.error), number(c.original), number(c.allowed),
    make("td", {}, c.problem && [c.worst.length > 0 && make("code", {}, `[${c.worst.join(", ")}]`), ` ${c.problem}`])));
  const heads = ["against fp64", "ours", "original", "allowed", "worst element"];
  return [
    verdict.outcome === "unverified" && make("div", { class: "reason unverified", role: "note" },
      make("p", {}, make("b", {}, "Not verified: "), verdict.reason)),
    rows.length > 0 && [make("h3", {}, "Verification"), make("table", { class: "verdict" },
      make("thead", {}, make("tr", {}, heads.map((head) => make("th", {}, head)))), make("tbody", {}, rows))],
    verdict.script && make("p", { class: "place" }, "A script that shows it: ", make("code", {}, verdict.script)),
  ];
}
