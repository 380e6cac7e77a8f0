/* Colours of a generated kernel, which is Python. */

const TOKENS = new RegExp([
  /(?<com>#[^\n]*)/, /(?<str>"""[^]*?"""|'''[^]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')/,
  /(?<kw>\b(?:def|return|for|in|if|else|elif|while|import|from|as|and|or|not|is|True|False|None|pass|class|with|lambda)\b|@[\w.]+)/,
  /(?<num>\b\d[\w.]*(?:[eE][-+]?\d+)?)/, /(?<fn>\btl(?:\.\w+)+)/,
].map((part) => part.source).join("|"), "g");

/** A kernel's text as an element. */
function highlighted(text) {
  const block = make("pre", { class: "code" });
  let end = 0;
  for (const match of text.matchAll(TOKENS)) {
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    block.append(text.slice(end, match.index), make("span", { class: kind }, match[0]));
    end = match.index + match[0].length;
  }
  block.append(text.slice(end));
  return block;
}

/** A kernel, closed; its text is coloured when it is opened. */
function kernelElement({ name, text }) {
  const lines = text.trimEnd().split("\n").length;
  const element = make("details", { class: "kernel" }, make("summary", {}, make("code", {}, name), ` ${many(lines, "line")}`));
  element.addEventListener("toggle", () => {
    if (element.open && !element.querySelector("pre")) element.append(highlighted(text));
  });
  return element;
}
